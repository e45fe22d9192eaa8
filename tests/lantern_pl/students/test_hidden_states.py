"""Learning a teacher's hidden states: the formula, its share of the global batch, and projections that stay behind."""

import copy
import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lantern_kernels import MixtureOutput
from one_epoch import train_one_epoch
from one_optimizer_step import KeepGradients
from safetensors.torch import load_file
from support import Ran

from lantern_pl.data.pair import Pair
from lantern_pl.depth_pruning import DepthPruning
from lantern_pl.divergences.contract import WeightedDivergence
from lantern_pl.divergences.first_party import KL
from lantern_pl.errors import UserError
from lantern_pl.students import DecoderStudent, EncoderStudent, HiddenStates, Lora, Student
from lantern_pl.students.hidden_states import HiddenStateTerm
from lantern_pl.tasks import Task
from lantern_pl.teachers.classifier import EncoderTeacher
from lantern_pl.teachers.local_model import HFTeacher
from lantern_pl.teachers.rule_based import RubricTeacher
from lantern_pl.testing import TeacherContract

DISTANCES = ["mse", "cosine"]
LAYERS = [(0, 1), (1, -2), (-1, -1)]


@pytest.fixture(scope="module")
def wider_lm(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path) -> str:
    """Four layers of 24 numbers each, where tiny_lm has three of 16; with the same tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from lantern_pl.text import load_tokenizer

    folder = tmp_path_factory.mktemp("models") / "wider-lm"
    torch.manual_seed(1)
    config = LlamaConfig.from_pretrained(tiny_lm, hidden_size=24, head_dim=12, num_hidden_layers=4)
    LlamaForCausalLM(config).save_pretrained(folder)
    load_tokenizer(str(tiny_lm)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def wider(wider_lm: str) -> HFTeacher:
    return HFTeacher(wider_lm, max_new_tokens=4).to(torch.device("cpu"))


@pytest.fixture(scope="module")
def saved_encoder(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> str:
    """The folder of an encoder student."""
    folder = tmp_path_factory.mktemp("models") / "saved-encoder"
    torch.manual_seed(2)
    EncoderStudent(str(tiny_encoder), pooling="mean").write(folder)
    return str(folder)


@pytest.fixture
def make(tiny_lm: Path, tiny_encoder: Path, wider: HFTeacher) -> Callable[..., Any]:
    """A two-layer student of `kind` that learns nothing but hidden states, unless told otherwise."""

    def make_student(kind: str, **changes: Any) -> Student:
        torch.manual_seed(0)
        common: dict[str, Any] = {"layers": DepthPruning(2), "teacher": wider, "cross_entropy": 0.0}
        common["hidden_states"] = HiddenStates(LAYERS, weight=0.5)
        student: Student
        if kind == "decoder":
            own = {"model": str(tiny_lm), "max_new_tokens": 4, "generate_pairs": 0}
            student = DecoderStudent(**(common | own | changes))
        else:
            own = {"model": str(tiny_encoder), "dropout": 0.0, "pooling": "mean"}
            student = EncoderStudent(**(common | own | changes))
        student.task = Task()
        return student

    return make_student


def batch_of(student: Student, pairs: list[Pair]) -> Any:
    features = student.featurizer(Task(), 320)
    return features.collate([features.encode(pair) for pair in pairs])


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def naive_rows_of_decoder(student: Any, model: Any, batch: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Row after row, the hidden states [layers, d] of student and teacher at each supervised position, in float64."""
    tokens = batch.tokens
    asked = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask, "output_hidden_states": True}
    own = model.lm(**asked).hidden_states
    with torch.no_grad():
        theirs = copy.deepcopy(student.teacher.lm).double()(**asked).hidden_states
    return [
        (torch.stack([own[s][row, at] for s, _ in LAYERS]), torch.stack([theirs[t][row, at] for _, t in LAYERS]))
        for row, at in tokens.positions.nonzero().tolist()
    ]


def naive_rows_of_encoder(student: Any, model: Any, batch: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The same for each pair: the mean over the student's tokens, and the teacher's state after the prompt."""
    own = model.classifier.backbone(**batch.inputs, output_hidden_states=True).hidden_states
    teacher, rows = copy.deepcopy(student.teacher.lm).double(), []
    for row, pair in enumerate(batch.pairs):
        length = int(batch.inputs["attention_mask"][row].sum())
        (prompt,) = student.teacher._prompts([pair], Task())
        ids = student.teacher.tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            theirs = teacher(input_ids=ids, output_hidden_states=True).hidden_states
        pooled = [own[s][row, :length].sum(0) / length for s, _ in LAYERS]
        rows.append((torch.stack(pooled), torch.stack([theirs[t][0, -1] for _, t in LAYERS])))
    return rows


def naive_loss(model: Any, rows: list[tuple[torch.Tensor, torch.Tensor]], distance: str) -> torch.Tensor:
    """The term's sum over the rows."""
    total = torch.zeros((), dtype=torch.double)
    for own, theirs in rows:
        for x, y, weight in zip(own, theirs, model.hidden_states.projections, strict=True):
            z = weight @ x
            if distance == "mse":
                value = ((z - y) ** 2).sum() / len(y)
            else:
                value = 1 - (z * y).sum() / ((z * z).sum().sqrt() * (y * y).sum().sqrt())
            total = total + value / len(LAYERS)
    return total


def test_the_teacher_runs_once_for_its_layers_and_its_distributions(
    make: Callable[..., Any], wider: HFTeacher, pairs: list[Pair]
) -> None:
    student = make("decoder", mixture=[WeightedDivergence(KL(), 1.0)])
    batch = batch_of(student, pairs[:3])
    runs: list[int] = []
    hook = wider.lm.get_decoder().register_forward_hook(lambda *_: runs.append(1))
    student.summed_loss(batch)
    assert len(runs) == 1
    # What it knows of a batch is of that batch alone, and is what a run of its own gives.
    other = batch_of(student, pairs[3:5]).tokens
    wider.token_hidden_states(batch.tokens, [-1])
    assert torch.equal(wider.score_tokens(other).hidden, wider.score_tokens(other).hidden)
    wider.token_hidden_states(other, [-1])
    known, anew = wider.score_tokens(other).hidden, wider.score_tokens(other).hidden
    assert torch.equal(known, anew)
    assert len(runs) == 6
    hook.remove()


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_value_and_gradient_equal_the_naive_formula(
    make: Callable[..., Any], pairs: list[Pair], kind: str, distance: Any
) -> None:
    student = make(kind, hidden_states=HiddenStates(LAYERS, weight=0.5, distance=distance))
    batch = batch_of(student, pairs[:3])
    output, count = student.summed_loss(batch)
    output.loss.backward()
    teacher, student.teacher, student.hidden_states._teacher = student.teacher, None, None
    model = copy.deepcopy(student).double()
    model.zero_grad()
    student.teacher = teacher
    rows = (naive_rows_of_decoder if kind == "decoder" else naive_rows_of_encoder)(student, model, batch)
    expected = naive_loss(model, rows, distance)
    (0.5 * expected).backward()
    assert count == len(rows) == len(output.terms["hidden_states"])
    assert output.terms["hidden_states"].sum().item() == pytest.approx(expected.item(), rel=1e-5)
    assert output.loss.item() == pytest.approx(0.5 * expected.item(), rel=1e-5)
    found, wanted = gradients(student), gradients(model)
    assert {f"hidden_states.projections.{i}" for i in range(3)} <= wanted.keys()
    for name, gradient in found.items():
        exact = wanted.get(name, torch.zeros_like(gradient)).float()
        assert torch.allclose(gradient, exact, rtol=1e-3, atol=1e-5 * max(float(exact.abs().max()), 1e-3)), name


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_the_term_comes_on_top_of_the_others(make: Callable[..., Any], pairs: list[Pair], kind: str) -> None:
    """Neither the temperature nor any other weight touches it."""
    others = {"mixture": [WeightedDivergence(KL(), 0.7)], "cross_entropy": 0.3, "temperature": 2.0}
    both, without = make(kind, **others), make(kind, **others, hidden_states=None)
    both.load_state_dict(without.state_dict() | {k: v for k, v in both.state_dict().items() if "projections" in k})
    batch = batch_of(both, pairs[:2])
    with torch.no_grad():
        found, plain = both.summed_loss(batch)[0], without.summed_loss(batch)[0]
    assert set(found.terms) == {*plain.terms, "hidden_states"}
    assert float(found.loss) == pytest.approx(float(plain.loss) + 0.5 * float(found.terms["hidden_states"].sum()), rel=1e-6)


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
@pytest.mark.parametrize("wanted", [True, False])
def test_the_backbone_runs_once(make: Callable[..., Any], pairs: list[Pair], kind: str, wanted: bool) -> None:
    """And keeps the states of its layers only where they are wanted."""
    student = make(kind, cross_entropy=1.0) if wanted else make(kind, cross_entropy=1.0, hidden_states=None)
    backbone = student.lm.get_decoder() if kind == "decoder" else student.classifier.backbone
    calls: list[bool] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        calls.append(kwargs["output_hidden_states"])

    backbone.register_forward_pre_hook(note, with_kwargs=True)
    student.summed_loss(batch_of(student, pairs[:2]))
    assert calls == [wanted]


def test_it_is_computed_in_float32_under_autocast(wider: HFTeacher, tiny_lm: Path) -> None:
    term = HiddenStateTerm(HiddenStates(), wider, "token_hidden_states", str(tiny_lm), None)
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, width, generator=generator).bfloat16() for width in (16, 24))
    nothing = MixtureOutput(torch.zeros(()), {})
    expected = term.add(nothing, [student.float()], [teacher.float()])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = term.add(nothing, [student], [teacher])
    assert found.loss.dtype == torch.float32
    assert torch.equal(found.terms["hidden_states"], expected.terms["hidden_states"])


def test_widths_that_are_equal_need_no_projection(make: Callable[..., Any], tiny_lm: Path, pairs: list[Pair]) -> None:
    teacher = HFTeacher(str(tiny_lm))
    student = make("decoder", layers=None, teacher=teacher, hidden_states=HiddenStates(project=False))
    assert not list(student.hidden_states.parameters())
    batch = batch_of(student, pairs[:2])
    assert float(student.summed_loss(batch)[0].loss.detach()) == pytest.approx(0, abs=1e-9)


def test_an_attention_free_student_learns_from_an_attention_free_teacher(
    tiny_lm: Path, pairs: list[Pair], tmp_path: Path
) -> None:
    """There are no attention maps to compare, only states."""
    from transformers import MambaConfig, MambaForCausalLM

    from lantern_pl.text import load_tokenizer

    tokenizer = load_tokenizer(str(tiny_lm))
    for name, width, depth in (("student", 16, 2), ("teacher", 24, 4)):
        torch.manual_seed(width)
        config = MambaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            state_size=4,
            num_hidden_layers=depth,
            eos_token_id=2,
            pad_token_id=2,
        )
        MambaForCausalLM(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    teacher = HFTeacher(str(tmp_path / "teacher")).to(torch.device("cpu"))
    terms = HiddenStates(LAYERS, weight=0.5)
    student = DecoderStudent(str(tmp_path / "student"), teacher=teacher, cross_entropy=0.0, hidden_states=terms)
    batch = batch_of(student, pairs[:3])
    output, count = student.summed_loss(batch)
    with torch.no_grad():
        rows = naive_rows_of_decoder(student, copy.deepcopy(student).double(), batch)
        expected = naive_loss(copy.deepcopy(student).double(), rows, "mse")
    assert count == len(rows)
    assert output.loss.item() == pytest.approx(0.5 * expected.item(), rel=1e-4)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        student.summed_loss(batch)[0].loss.backward()
        optimizer.step()
    assert float(student.summed_loss(batch)[0].loss.detach()) < output.loss.item()


# Training


def one_step(student: Student, file: Path, out: Path, batch_size: int, accumulate: int) -> tuple[dict[str, Any], float]:
    """The gradients that the optimizer gets in the first step over all of a file's pairs, and the term as logged."""
    trainer = train_one_epoch(student, str(file), batch_size, KeepGradients(out), accumulate_grad_batches=accumulate)
    return torch.load(out, weights_only=True), float(trainer.callback_metrics["train/hidden_states"])


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_micro_batches_of_different_size_give_the_gradient_of_the_whole(
    make: Callable[..., Any], pairs_file: Path, tmp_path: Path, kind: str
) -> None:
    five = tmp_path / "five.jsonl"
    five.write_text("".join(line + "\n" for line in pairs_file.read_text().splitlines()[:5]))
    expected, whole = one_step(make(kind), five, tmp_path / "whole.pt", 5, 1)
    found, parts = one_step(make(kind), five, tmp_path / "parts.pt", 3, 2)
    assert parts == pytest.approx(whole, rel=1e-5)
    assert found.keys() == expected.keys()
    assert "hidden_states.projections.0" in found
    for name, gradient in expected.items():
        atol = 1e-6 * max(float(gradient.abs().max()), 1e-3)
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=atol), name


@pytest.mark.parametrize(
    ("kind", "more"), [("decoder", []), ("decoder", ["--model.lora={rank: 8}"]), ("encoder", [])], ids=str
)
def test_a_fit_brings_them_closer_and_leaves_the_projections_behind(
    lantern: Callable[..., Ran], request: pytest.FixtureRequest, wider_lm: str, kind: str, more: list[str]
) -> None:
    config: Path = request.getfixturevalue(f"tiny_{kind}_config")
    run = config.parent / "run"
    of_teacher = (Path(wider_lm) / "model.safetensors").read_bytes()
    arguments = [
        "--config",
        config,
        f"--model.teacher={{class_path: lantern_pl.teachers.hf, init_args: {{model: {wider_lm}, max_new_tokens: 4}}}}",
        "--model.hidden_states={layers: [[1, 2], [-1, -1]], weight: 0.5, distance: cosine}",
        "--model.mixture=[]",
        "--model.optimization={learning_rate: 0.02, schedule: constant}",
        *more,
    ]
    ran = lantern("fit", *arguments, "--trainer.max_steps=12")
    assert ran.code == 0, ran.err
    manifest = json.loads((run / "student" / "manifest.json").read_text())
    assert manifest["student"]["loss"]["hidden_states"]["layers"] == [[1, 2], [-1, -1]]
    untrained, trained = (manifest["metrics"][when]["hidden_states"] for when in ("untrained", "trained"))
    assert trained < 0.8 * untrained
    with (run / "csv" / "version_0" / "metrics.csv").open() as file:
        logged = [float(row["train/hidden_states"]) for row in csv.DictReader(file) if row["train/hidden_states"]]
    assert len(logged) == 12
    assert logged[-1] < logged[0]

    names = {f"hidden_states.projections.{i}" for i in range(2)}
    checkpoint = run / "checkpoints" / "last.ckpt"
    kept = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert names <= kept.keys()
    exported = {name for file in (run / "student").rglob("*.safetensors") for name in load_file(file)}
    assert exported
    assert not any("projection" in name or "hidden_states" in name for name in exported)
    assert (Path(wider_lm) / "model.safetensors").read_bytes() == of_teacher

    ran = lantern("fit", *arguments, "--ckpt_path=last", "--trainer.max_steps=13")
    assert ran.code == 0, ran.err
    resumed = torch.load(checkpoint, weights_only=True)["state_dict"]
    for name in names:
        assert 0 < (resumed[name] - kept[name]).abs().max() < 0.1, "it went on from where it was"


def test_with_adapters_the_projections_learn_too(make: Callable[..., Any], pairs: list[Pair]) -> None:
    student = make("decoder", lora=Lora(rank=2))
    student.summed_loss(batch_of(student, pairs[:1]))[0].loss.backward()
    learning = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert {name for name in learning if "lora_" not in name} == {f"hidden_states.projections.{i}" for i in range(3)}
    assert learning == gradients(student).keys()


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_the_teacher_is_left_as_it_is(make: Callable[..., Any], wider: HFTeacher, pairs: list[Pair], kind: str) -> None:
    before = {name: parameter.clone() for name, parameter in wider.lm.named_parameters()}
    student = make(kind)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    student.summed_loss(batch_of(student, pairs[:2]))[0].loss.backward()
    optimizer.step()
    for name, parameter in wider.lm.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])
    assert not any("teacher" in name for name in student.state_dict())


# Teachers


class ShowsNothingElse(HFTeacher):
    """A teacher of hidden states alone."""

    capabilities = frozenset({"pair_hidden_states", "token_hidden_states"})

    def score_tokens(self, batch: Any) -> Any:
        raise self._cannot("score_tokens")

    def level_probs(self, pairs: Any, task: Any) -> Any:
        raise self._cannot("level_probs")

    def annotate(self, pairs: Any, task: Any) -> Any:
        raise self._cannot("annotate")


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_a_teacher_may_have_nothing_else_to_say(
    make: Callable[..., Any], wider_lm: str, pairs: list[Pair], kind: str
) -> None:
    student = make(kind, teacher=ShowsNothingElse(wider_lm), cross_entropy=0.5)
    batch = batch_of(student, pairs[:2])
    terms = student.summed_loss(batch)[0].terms
    student.update_metrics(batch)
    figures = student.means.finish()
    assert figures["hidden_states"] == pytest.approx(float(terms["hidden_states"].mean()))
    assert "kl" not in figures


def test_an_encoder_asks_once_for_each_pair(make: Callable[..., Any], pairs: list[Pair], wider_lm: str, monkeypatch) -> None:
    teacher = HFTeacher(wider_lm)
    asked: list[Pair] = []
    real = teacher.pair_hidden_states
    monkeypatch.setattr(teacher, "pair_hidden_states", lambda new, *rest: asked.extend(new) or real(new, *rest))
    student = make("encoder", teacher=teacher)
    first = student.summed_loss(batch_of(student, pairs[:3]))[0].terms["hidden_states"]
    again = student.summed_loss(batch_of(student, pairs[3:0:-1]))[0].terms["hidden_states"]
    assert [pair.pair_id for pair in asked] == [pair.pair_id for pair in pairs[:4]]
    assert torch.allclose(first[1:], again[1:].flip(0), rtol=1e-4)


def test_two_pairs_of_one_id_have_hidden_states_of_their_own(
    make: Callable[..., Any], pairs: list[Pair], wider_lm: str
) -> None:
    term = make("encoder", teacher=HFTeacher(wider_lm)).hidden_states
    one, other = pairs[0], replace(pairs[1], pair_id=pairs[0].pair_id)
    first, second = (term.of_pairs([pair], Task(), torch.device("cpu"))[0] for pair in (one, other))
    assert not torch.equal(first, second)


def test_an_encoder_learns_from_an_encoder(make: Callable[..., Any], saved_encoder: str, pairs: list[Pair]) -> None:
    """Its teacher pools as it was trained to, the student as it is told."""
    teacher = EncoderTeacher(saved_encoder, max_length=320)
    student = make("encoder", pooling="cls", teacher=teacher, hidden_states=HiddenStates([(1, 3)], project=False))
    batch = batch_of(student, pairs[:2])
    with torch.no_grad():
        term = student.summed_loss(batch)[0].terms["hidden_states"]
        own = student.classifier.backbone(**batch.inputs, output_hidden_states=True).hidden_states[1][:, 0]
        mask = batch.inputs["attention_mask"][..., None]
        theirs = (teacher.classifier.backbone(**batch.inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
    assert torch.allclose(term, (own - theirs).square().mean(-1), atol=1e-6)


class TestHFTeacher(TeacherContract):
    @pytest.fixture(autouse=True)
    def _model(self, wider: HFTeacher) -> None:
        self.teacher = wider

    def make(self) -> HFTeacher:
        return self.teacher


class TestEncoderTeacher(TeacherContract):
    @pytest.fixture(autouse=True)
    def _model(self, saved_encoder: str) -> None:
        self.folder = saved_encoder

    def make(self) -> EncoderTeacher:
        return EncoderTeacher(self.folder)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda states: states[:-1], r"of shapes \[\[2, 24\], \[2, 24\]\], expected \[\[2, 24\], \[2, 24\], \[2, 24\]\]"),
        (lambda states: [layer[:, 1:] for layer in states], r"\[2, 23\].*expected"),
        (lambda states: [layer * torch.nan for layer in states], "gives NaN or infinity among its pair_hidden_states"),
        (lambda states: torch.stack(states), "gives a Tensor as pair_hidden_states, expected a list of tensors"),
    ],
)
def test_what_a_teacher_shows_is_checked(
    make: Callable[..., Any], wider_lm: str, pairs: list[Pair], monkeypatch, answer: Any, words: str
) -> None:
    teacher = HFTeacher(wider_lm)
    real = teacher.pair_hidden_states
    monkeypatch.setattr(teacher, "pair_hidden_states", lambda *arguments: answer(real(*arguments)))
    student = make("encoder", teacher=teacher).eval()  # in training, NaN is for what watches the loss
    with pytest.raises(UserError, match=words):
        student.summed_loss(batch_of(student, pairs[:2]))


# Mistakes


def of_another_tokenizer(folder: str) -> HFTeacher:
    teacher = HFTeacher(folder)
    teacher.tokenizer_fingerprint = "another"
    return teacher


def without_its_size(folder: str) -> HFTeacher:
    teacher = HFTeacher(folder)
    teacher.hidden_layers = None
    return teacher


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: {"teacher": None}, "model.hidden_states needs a teacher"),
        (lambda folder: {"teacher": RubricTeacher()}, r"RubricTeacher gives no \w+ \(it can: annotate, level_probs\)"),
        (lambda folder: {"teacher": without_its_size(folder)}, "has hidden_layers None, expected a number above 0"),
        (
            lambda folder: {"hidden_states": HiddenStates([(3, -1)])},
            r"layer 3 of the student, which has 2 layers: give 0 .* to 2, or -1 .* to -3",
        ),
        (lambda folder: {"hidden_states": HiddenStates([(-4, -1)])}, "layer -4 of the student, which has 2 layers"),
        (lambda folder: {"hidden_states": HiddenStates([(-1, 5)])}, "layer 5 of the teacher, which has 4 layers"),
        (lambda folder: {"hidden_states": HiddenStates(project=False)}, "are 16 wide and the teacher's 24"),
        (lambda folder: {"hidden_states": HiddenStates(weight=0)}, "nothing to learn"),
        (
            lambda folder: {"mixture": [WeightedDivergence(KL(), label="hidden_states")]},
            "has a term called 'hidden_states', a name that other figures have",
        ),
    ],
)
def test_a_mistake_is_found_before_weights_are_loaded(
    make: Callable[..., Any], wider_lm: str, monkeypatch, kind: str, change: Any, words: str
) -> None:
    monkeypatch.setattr("lantern_pl.students.decoder.load_causal_lm", lambda *_: pytest.fail("weights were loaded"))
    monkeypatch.setattr("lantern_pl.students.encoder.new_classifier", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(UserError, match=words):
        make(kind, **change(wider_lm))


def test_a_decoder_needs_its_own_tokens(make: Callable[..., Any], wider_lm: str) -> None:
    with pytest.raises(UserError, match=r"different tokenizers.*'hidden_states' compares them token by token"):
        make("decoder", teacher=of_another_tokenizer(wider_lm))
    make("encoder", teacher=of_another_tokenizer(wider_lm))


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_weight_is_finite_and_not_below_0(weight: float) -> None:
    with pytest.raises(UserError, match=r"model\.hidden_states\.weight is .*: give a finite weight of 0 or more"):
        HiddenStates(weight=weight)


def test_no_layers_are_a_mistake() -> None:
    with pytest.raises(UserError, match=r"model\.hidden_states\.layers is empty"):
        HiddenStates([])
