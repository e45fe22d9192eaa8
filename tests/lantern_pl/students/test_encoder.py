"""The encoder: pooling, the loss on levels and distributions, and folders that transformers loads."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import Ran
from torch import nn

from lantern_pl.data.featurize import EncoderFeaturizer
from lantern_pl.data.pair import Pair
from lantern_pl.depth_pruning import DepthPruning
from lantern_pl.divergences.contract import WeightedDivergence
from lantern_pl.divergences.first_party import JS, KL
from lantern_pl.errors import UserError
from lantern_pl.pair_classifier import load_classifier, new_classifier, pool, write_classifier
from lantern_pl.students import EncoderStudent
from lantern_pl.tasks import Task
from lantern_pl.teachers.classifier import EncoderTeacher
from lantern_pl.teachers.rule_based import RubricTeacher
from lantern_pl.text import load_tokenizer

MINILM = "embedded:minilm-l6"


def make_encoder(**changes) -> EncoderStudent:
    arguments = {"model": MINILM, "layers": DepthPruning(2), "dropout": 0.0, **changes}
    student = EncoderStudent(**arguments)
    student.task = Task()
    return student.eval()


def batch_of(student: EncoderStudent, pairs: list[Pair]):
    features = student.featurizer(Task(), 256)
    return features.collate([features.encode(pair) for pair in pairs])


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_pooling_ignores_padding(pooling: str) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(2, 5, 3)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    expected = {"cls": hidden[1, 0], "mean": hidden[1, :3].mean(0), "last": hidden[1, 2]}[pooling]
    assert torch.allclose(pool(hidden, mask, pooling)[1], expected)


def test_loss_equals_the_naive_formula(pairs: list[Pair]) -> None:
    student = make_encoder(
        mixture=[WeightedDivergence(KL(), 0.7), WeightedDivergence(JS(0.4), 0.2)], cross_entropy=0.5, temperature=2.0
    )
    batch = batch_of(student, pairs[:6])
    output, rows = student.summed_loss(batch)
    z = student.classifier(batch.inputs).double()
    p_teacher = torch.tensor([pair.level_probs for pair in pairs[:6]]).double()
    log_p, log_q = (p_teacher.log() / 2).log_softmax(-1), (z / 2).log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    m = 0.4 * p + 0.6 * q
    kl = (p * (log_p - log_q)).sum()
    js = (0.4 * p * (log_p - m.log()) + 0.6 * q * (log_q - m.log())).sum()
    ce = nn.functional.cross_entropy(z, batch.levels, reduction="sum")
    assert rows == 6
    assert float(output.loss.detach()) == pytest.approx(float((4 * (0.7 * kl + 0.2 * js) + 0.5 * ce).detach()), rel=1e-4)


def test_the_distribution_comes_from_the_teacher_and_is_asked_once(pairs: list[Pair], monkeypatch) -> None:
    teacher = RubricTeacher()
    asked = []
    real = teacher.level_probs
    monkeypatch.setattr(teacher, "level_probs", lambda pairs, task: asked.extend(pairs) or real(pairs, task))
    student = make_encoder(teacher=teacher, mixture=[WeightedDivergence(KL())])
    batch = batch_of(student, pairs[:4])
    first = student.summed_loss(batch)[0].terms["kl"]
    again = student.summed_loss(batch)[0].terms["kl"]
    assert [pair.pair_id for pair in asked] == [pair.pair_id for pair in pairs[:4]]
    assert torch.equal(first, again)


def test_two_pairs_of_one_id_are_two_pairs(pairs: list[Pair]) -> None:
    """Files of training and validation pairs may both number theirs from 0."""
    teacher = RubricTeacher()
    student = make_encoder(teacher=teacher, mixture=[WeightedDivergence(KL())])
    one = next(pair for pair in pairs if pair.level == "low")
    other = replace(next(pair for pair in pairs if pair.level == "high"), pair_id=one.pair_id)
    apart = [student._distributions(batch_of(student, [pair]))[0] for pair in (one, other)]
    assert torch.equal(torch.cat(apart), teacher.level_probs([one, other], Task()).probs)
    assert not torch.equal(*apart)


@pytest.mark.parametrize("choose", ["first", "even"])
def test_a_student_of_an_encoder_student_may_have_fewer_layers(choose: str, pairs: list[Pair], tmp_path: Path) -> None:
    first_stage = make_encoder(layers=DepthPruning(4))
    first_stage.write(tmp_path)
    student = make_encoder(model=str(tmp_path), layers=DepthPruning(2, choose))
    stage1, stage2 = (each.classifier.backbone.encoder.layer for each in (first_stage, student))
    assert len(stage2) == 2
    last = 1 if choose == "first" else 3
    kept = zip(stage2[1].parameters(), stage1[last].parameters(), strict=True)
    assert all(torch.equal(own, theirs) for own, theirs in kept)
    assert torch.equal(student.classifier.head[-1].weight, first_stage.classifier.head[-1].weight)
    student.write(tmp_path / "second")
    assert len(load_classifier(str(tmp_path / "second")).backbone.encoder.layer) == 2


def test_a_mixture_without_any_distribution_is_refused(pairs: list[Pair]) -> None:
    student = make_encoder(mixture=[WeightedDivergence(KL())])
    bare = [Pair(p.pair_id, p.job_id, p.candidate_id, p.job_text, p.candidate_text, p.level) for p in pairs[:2]]
    with pytest.raises(UserError, match=f"{pairs[0].pair_id}.*neither votes nor confidence"):
        student.summed_loss(batch_of(student, bare))


def test_a_pair_with_votes_alone_is_labelled_by_the_most_frequent(pairs: list[Pair]) -> None:
    student = make_encoder(mixture=[WeightedDivergence(KL())], cross_entropy=1.0)
    p = pairs[0]
    voted = Pair(p.pair_id, p.job_id, p.candidate_id, p.job_text, p.candidate_text, level_probs=(0.1, 0.2, 0.7))
    batch = batch_of(student, [voted])
    logits = student.classifier(batch.inputs)
    ce = student.summed_loss(batch)[0].terms["cross_entropy"]
    assert float(ce[0]) == pytest.approx(-float(logits.log_softmax(-1)[0, 2].detach()), rel=1e-5)


def test_batch_neighbours_do_not_change_an_answer(pairs: list[Pair]) -> None:
    student = make_encoder()
    with torch.no_grad():
        together = student.classifier(batch_of(student, pairs[:5]).inputs)
        alone = torch.cat([student.classifier(batch_of(student, [pair]).inputs) for pair in pairs[:5]])
    assert torch.allclose(together, alone, atol=1e-5)


NATIVE = [(MINILM, "cls", 1), ("small_lm", "last", 0)]
WITH_HEAD_FILE = [(MINILM, "mean", 2), (MINILM, "cls", 0), ("small_lm", "mean", 1)]


@pytest.mark.parametrize(("model", "pooling", "depth"), [*NATIVE, *WITH_HEAD_FILE])
def test_a_saved_student_runs_without_this_package(
    model: str, pooling: str, depth: int, request: pytest.FixtureRequest, pairs: list[Pair], tmp_path: Path
) -> None:
    """The README.md in the folder is run as it stands, in a process where lantern_pl can't be imported."""
    name = request.getfixturevalue(model) if model == "small_lm" else model
    torch.manual_seed(0)
    classifier = new_classifier(name, ["low", "medium", "high"], pooling, depth, 0.0, DepthPruning(2)).eval()
    nn.init.normal_(classifier.head[-1].weight)
    tokenizer = load_tokenizer(name)
    native = write_classifier(classifier, tokenizer, tmp_path)
    assert native == ((model, pooling, depth) in NATIVE)
    pair = pairs[0]
    features = EncoderFeaturizer(tokenizer, Task(), 512)
    with torch.no_grad():
        inputs = features.collate([features.encode(pair)]).inputs
        expected = classifier(inputs)[0]
        assert torch.allclose(load_classifier(str(tmp_path)).eval()(inputs)[0], expected, atol=1e-5)
    snippet = (tmp_path / "README.md").read_text().split("```python\n")[1].split("```")[0]
    script = "\n".join(
        [
            "import sys",
            "sys.modules['lantern_pl'] = None  # any import of it fails",
            f"job_text, candidate_text = {pair.job_text!r}, {pair.candidate_text!r}",
            snippet,
            "print('LOGITS', *logits.detach().flatten().tolist())",
        ]
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [float(x) for x in done.stdout.split("LOGITS")[1].split()]
    assert found == pytest.approx(expected.tolist(), abs=1e-3)


def test_a_teacher_reads_as_much_as_it_was_trained_with(
    lantern: Callable[..., Ran], tiny_encoder_config: Path, tmp_path: Path
) -> None:
    assert lantern("fit", "--config", tiny_encoder_config).code == 0
    student = tmp_path / "run" / "student"
    assert EncoderTeacher(str(student)).max_length == 128
    assert EncoderTeacher(str(student), max_length=64).max_length == 64
    (student / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="isn't JSON"):
        EncoderTeacher(str(student))


def test_a_first_token_that_sees_nothing_is_refused(tiny_lm: Path, tiny_encoder: Path) -> None:
    """The student would answer the same to all."""
    with pytest.raises(UserError, match=r"Set model\.pooling to last"):
        EncoderStudent(str(tiny_lm))
    EncoderStudent(str(tiny_lm), pooling="last")
    EncoderStudent(str(tiny_encoder))


def test_a_saved_student_is_a_teacher_and_a_start(pairs: list[Pair], tmp_path: Path) -> None:
    student = make_encoder()
    student.write(tmp_path)
    teacher = EncoderTeacher(str(tmp_path), max_length=256)
    probs = teacher.level_probs(pairs[:3], Task()).probs
    with torch.no_grad():
        expected = student.classifier(batch_of(student, pairs[:3]).inputs).softmax(-1)
    assert torch.allclose(probs, expected, atol=1e-5)
    again = EncoderStudent(str(tmp_path), dropout=0.0).eval()
    assert torch.allclose(again.classifier.head[-1].weight, student.classifier.head[-1].weight)
    with pytest.raises(UserError, match="pooling"):
        EncoderStudent(str(tmp_path), pooling="mean")
