"""The `cached` teacher in a fit: the same losses as with the teacher itself, and no answers about anything else."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from harm import manifest_of
from rich.console import Console
from support import Ran
from transformers import AutoModelForCausalLM

from lantern_pl.data.featurize import DecoderBatch
from lantern_pl.data.pair import Pair
from lantern_pl.data.records import read_pairs
from lantern_pl.depth_pruning import DepthPruning
from lantern_pl.divergences.contract import WeightedDivergence
from lantern_pl.divergences.first_party import JS, KL, TVD, ReverseKL
from lantern_pl.errors import UserError
from lantern_pl.evaluation.token_divergence import entropies
from lantern_pl.signal_sets import command
from lantern_pl.signal_sets.config import CacheConfig
from lantern_pl.signal_sets.formats import TopKFormat, top_k_of
from lantern_pl.signals import Hidden, TokenBatch, TopK
from lantern_pl.students import DecoderStudent
from lantern_pl.tasks import Task
from lantern_pl.teachers.from_disk import CachedTeacher
from lantern_pl.teachers.local_model import HFTeacher
from lantern_pl.text import load_tokenizer

Lantern = Callable[..., Ran]


class OnlineTopK(HFTeacher):
    """The teacher itself, of which the student sees the k best tokens only."""

    lantern_api = 1
    top_k = 8

    def score_tokens(self, batch: TokenBatch) -> TopK:  # type: ignore[override]
        return top_k_of(super().score_tokens(batch), 8, self.temperature)


def _batch(student: DecoderStudent, pairs: list[Pair]) -> DecoderBatch:
    features = student.featurizer(Task(), 320)
    return features.collate([features.encode(pair) for pair in pairs])


def _loss_and_gradient(student: DecoderStudent, batch: DecoderBatch) -> tuple[float, list[torch.Tensor]]:
    output, _ = student.summed_loss(batch)
    output.loss.backward()
    return float(output.loss), [p.grad for p in student.parameters() if p.grad is not None]


class RoundedTopK(OnlineTopK):
    """The same, rounded to a byte each, as a set of `log_probs: u8` has it."""

    lantern_api = 1

    def score_tokens(self, batch: TokenBatch) -> TopK:  # type: ignore[override]
        form = TopKFormat(8, self.vocab_size or 0, "u8", False, self.temperature)
        return form.decode(form.encode(super().score_tokens(batch), seed=0))


@pytest.mark.parametrize("divergence", [KL(), ReverseKL(), JS(0.3), TVD()], ids=lambda d: d.name)
def test_a_byte_for_each_log_probability_moves_the_loss_by_less_than_a_thousandth(
    small_lm: str, pairs_file: Path, divergence: object
) -> None:
    """On a model with real weights: what rounding does depends on how sure it is."""
    pairs, losses = read_pairs(pairs_file, Task())[10:14], []
    for teacher in (OnlineTopK(small_lm), RoundedTopK(small_lm)):
        mixture = [WeightedDivergence(divergence)]  # type: ignore[arg-type]
        layers = DepthPruning(keep=2)
        student = DecoderStudent(small_lm, layers, teacher=teacher, mixture=mixture, cross_entropy=0.0)
        with torch.no_grad():
            losses.append(float(student.summed_loss(_batch(student, pairs))[0].loss))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[1] != losses[0]


@pytest.mark.parametrize("divergence", [KL(), ReverseKL(), JS(0.3), TVD()], ids=lambda d: d.name)
def test_the_loss_is_that_of_the_same_top_k_online(
    whole_set: Path, tiny_lm: Path, pairs_file: Path, divergence: object
) -> None:
    pairs = read_pairs(pairs_file, Task())[10:14]
    results = []
    for teacher in (CachedTeacher(str(whole_set)), OnlineTopK(str(tiny_lm))):
        torch.manual_seed(0)
        mixture = [WeightedDivergence(divergence)]  # type: ignore[arg-type]
        student = DecoderStudent(str(tiny_lm), teacher=teacher, mixture=mixture, cross_entropy=0.3)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        results.append(_loss_and_gradient(student, _batch(student, pairs)))
    (cached, cached_gradients), (online, online_gradients) = results
    assert cached == pytest.approx(online, rel=1e-5)
    for mine, theirs in zip(cached_gradients, online_gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()) + 1e-8)


def test_hidden_states_on_disk_are_the_teacher(
    lantern: Lantern, cache_config: Path, tiny_lm: Path, pairs_file: Path, tmp_path: Path
) -> None:
    made = lantern("cache", "--config", cache_config, "--signals", tmp_path / "h", "--mode", "hidden", "--limit", 6)
    assert made.code == 0, made.err
    pairs, losses = read_pairs(pairs_file, Task())[:4], []
    for teacher in (CachedTeacher(str(tmp_path / "h")), HFTeacher(str(tiny_lm))):
        # Whole distributions serve every temperature.
        mixture = [WeightedDivergence(JS())]
        student = DecoderStudent(str(tiny_lm), teacher=teacher, mixture=mixture, cross_entropy=0.0, temperature=2.0)
        with torch.no_grad():
            student.lm.get_output_embeddings().weight.mul_(0.5)
        losses.append(_loss_and_gradient(student, _batch(student, pairs))[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    signal = CachedTeacher(str(tmp_path / "h")).score_tokens(_batch(student, pairs).tokens)
    assert isinstance(signal, Hidden)


def test_a_teacher_whose_embedding_is_padded_further_than_the_students(
    lantern: Lantern, cache_config: Path, tiny_lm: Path, pairs_file: Path, tmp_path: Path
) -> None:
    """Online it computes, so it does from disk; here the rows beyond the tokenizer's vocabulary are the likeliest ones."""
    padded = tmp_path / "padded"
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_lm), load_tokenizer(str(tiny_lm))
    lm.resize_token_embeddings(len(tokenizer) + 64, mean_resizing=False)
    with torch.no_grad():
        lm.get_output_embeddings().weight[len(tokenizer) :] *= 20
    lm.save_pretrained(padded)
    tokenizer.save_pretrained(padded)
    online = HFTeacher(str(padded))
    assert online.vocab_size == len(tokenizer) + 64
    made = lantern(
        *("cache", "--config", cache_config, "--signals", tmp_path / "p", "--log_probs", "f32", "--limit", 6),
        f"--teacher.model={padded}",
    )
    assert made.code == 0, made.err
    values = []
    for teacher in (CachedTeacher(str(tmp_path / "p")), online):
        student = DecoderStudent(str(tiny_lm), teacher=teacher, mixture=[WeightedDivergence(JS())], cross_entropy=0.0)
        batch = _batch(student, read_pairs(pairs_file, Task())[:4])
        assert top_k_of(online.score_tokens(batch.tokens), 8, 1.0).ids.max() >= len(tokenizer)
        values.append(student.summed_loss(batch)[0].terms["js"])
    assert (values[0] <= values[1] + 1e-6).all()


def test_a_set_of_a_larger_vocabulary_than_the_students_is_refused_naming_both(
    lantern: Lantern, signals: Path, tiny_decoder_config: Path
) -> None:
    manifest = manifest_of(signals)
    manifest["tokens"]["vocab_size"] = 50_000
    (signals / "manifest.json").write_text(json.dumps(manifest))
    ran = lantern("fit", "--config", _with_teacher(tiny_decoder_config, signals))
    assert ran.code == 2
    assert "a vocabulary of 50000" in ran.err
    assert "has logits for 49152" in ran.err


def test_a_batch_without_supervised_positions_has_no_rows(whole_set: Path, tiny_lm: Path, pairs_file: Path) -> None:
    teacher = CachedTeacher(str(whole_set))
    student = DecoderStudent(str(tiny_lm), teacher=teacher, mixture=[WeightedDivergence(KL())])
    tokens = _batch(student, read_pairs(pairs_file, Task())[:2]).tokens
    signal = teacher.score_tokens(replace(tokens, positions=torch.zeros_like(tokens.positions)))
    assert isinstance(signal, TopK)
    assert (signal.ids.shape, signal.log_probs.shape, signal.tail_log_mass.shape) == ((0, 8), (0, 8), (0,))


def _with_teacher(config: Path, signals: Path, **changes: object) -> Path:
    """The config with the cached teacher in place of its own; nothing else differs."""
    content = yaml.safe_load(config.read_text())
    arguments = content["model"]["init_args"]
    arguments["teacher"] = {"class_path": "lantern_pl.teachers.cached", "init_args": {"signals": str(signals)}}
    arguments |= changes
    path = config.with_name(f"cached-{config.name}")
    path.write_text(yaml.safe_dump(content))
    return path


def _logged(run: Path, name: str) -> list[float]:
    import csv

    with (run / "csv" / "version_0" / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


@pytest.mark.parametrize("workers", [0, 2])
def test_one_set_trains_both_students_and_only_the_teacher_changes(
    lantern: Lantern, whole_set: Path, tiny_decoder_config: Path, tmp_path: Path, pairs_file: Path, workers: int
) -> None:
    more = (f"--data.num_workers={workers}", "--trainer.log_every_n_steps=1", "--trainer.max_steps=3")
    ran = lantern("fit", "--config", _with_teacher(tiny_decoder_config, whole_set), *more)
    assert ran.code == 0, ran.err
    assert len(_logged(tmp_path / "run", "train/js")) == 3
    manifest = json.loads((tmp_path / "run" / "student" / "manifest.json").read_text())
    assert manifest["teacher"]["class"] == "CachedTeacher"
    assert manifest["teacher"]["teacher"]["model"]


def test_the_encoder_learns_the_recorded_levels(
    lantern: Lantern, whole_set: Path, tiny_encoder_config: Path, tiny_lm: Path, tmp_path: Path
) -> None:
    online = yaml.safe_load(tiny_encoder_config.read_text())
    online["model"]["init_args"]["teacher"] = {
        "class_path": "lantern_pl.teachers.hf",
        "init_args": {"model": str(tiny_lm)},
    }
    config = tmp_path / "online.yaml"
    config.write_text(yaml.safe_dump(online))
    values = []
    for path in (config, _with_teacher(config, whole_set)):
        ran = lantern("fit", "--config", path, "--trainer.log_every_n_steps=1")
        assert ran.code == 0, ran.err
        values.append(_logged(tmp_path / "run", "train/kl"))
        shutil.rmtree(tmp_path / "run")
    assert values[0] == pytest.approx(values[1], rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model.temperature=2"], ["at temperature 1.0", "model.temperature is 2.0"]),
        (["--model.temperature={start: 2, end: 1}"], ["at temperature 1.0", "start=2"]),
        (["--data.max_length=200"], ["aren't in the signal set", "max_length there is 320, here 200"]),
        (["--data.task.prompt={job_text} or {candidate_text}?"], ["aren't in the signal set", "task there is"]),
        (["--model.on_policy.fraction=0.5"], ["knows recorded examples alone"]),
        (["--model.teacher.signals=nowhere"], ["holds no signal set"]),
    ],
    ids=["temperature", "temperature-schedule", "max_length", "prompt", "on-policy", "nowhere"],
)
def test_what_wasnt_recorded_is_refused_before_the_first_step(
    lantern: Lantern, whole_set: Path, tiny_decoder_config: Path, tmp_path: Path, arguments: list[str], said: list[str]
) -> None:
    ran = lantern("fit", "--config", _with_teacher(tiny_decoder_config, whole_set), *arguments)
    assert ran.code == 2
    for words in said:
        assert words in ran.err
    assert not (tmp_path / "run").exists()


def test_changed_texts_are_refused_naming_both_sides(
    lantern: Lantern, whole_set: Path, tiny_decoder_config: Path, pairs_file: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    rows[0]["candidate_text"] += " Also Fortran."
    rows[0]["candidate_id"] += "-b"  # one id is one text
    changed = tmp_path / "changed.jsonl"
    changed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = lantern("fit", "--config", _with_teacher(tiny_decoder_config, whole_set), "--data.path", changed)
    assert ran.code == 2
    for words in ("1 of ", str(pairs_file), str(changed), rows[0]["pair_id"], str(whole_set)):
        assert words in ran.err


@pytest.mark.parametrize(("key", "said"), [("tokenizer", "different tokenizers"), ("chat_template", "chat template")])
def test_signals_of_another_tokenizer_or_template_are_refused(
    lantern: Lantern, signals: Path, tiny_decoder_config: Path, key: str, said: str
) -> None:
    manifest = manifest_of(signals)
    own = manifest["tokens"][key]
    manifest["tokens"][key] = "0123456789abcdef"
    (signals / "manifest.json").write_text(json.dumps(manifest))
    ran = lantern("fit", "--config", _with_teacher(tiny_decoder_config, signals))
    assert ran.code == 2
    for words in (said, "0123456789abcdef", own):
        assert words in ran.err


def test_samples_serve_the_forward_kl_alone(
    lantern: Lantern, cache_config: Path, tiny_decoder_config: Path, tmp_path: Path
) -> None:
    assert lantern("cache", "--config", cache_config, "--signals", tmp_path / "s", "--mode", "sampled").code == 0
    ran = lantern("fit", "--config", _with_teacher(tiny_decoder_config, tmp_path / "s"))
    assert ran.code == 2
    assert "the forward KL alone" in ran.err
    mixture = [{"divergence": {"class_path": "lantern_pl.divergences.kl"}, "weight": 1.0}]
    more = ("--trainer.log_every_n_steps=1",)
    ran = lantern("fit", "--config", _with_teacher(tiny_decoder_config, tmp_path / "s", mixture=mixture), *more)
    assert ran.code == 0, ran.err
    header = (tmp_path / "run" / "csv" / "version_0" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/cross_entropy_to_samples", "val/cross_entropy_to_samples"} <= set(header)
    assert not {"train/kl", "val/kl"} & set(header)


def test_figures_on_samples_are_cross_entropies_and_not_called_kl(tiny_lm: Path, pairs_file: Path, tmp_path: Path) -> None:
    """Where student and teacher are the same, it's the teacher's entropy; the KL to the frequencies would be some nats."""
    config = CacheConfig(
        HFTeacher(str(tiny_lm)), str(pairs_file), str(tmp_path / "s"), mode="sampled", kinds=["tokens"], limit=6
    )
    command._cache(config, Console())
    teacher = CachedTeacher(str(tmp_path / "s"))
    student = DecoderStudent(str(tiny_lm), teacher=teacher, mixture=[WeightedDivergence(KL())], cross_entropy=0.0)
    features = student.featurizer(Task(), 512)
    batch = features.collate([features.encode(pair) for pair in read_pairs(pairs_file, Task())[:6]])
    student.update_metrics(batch)
    figures = student.means.finish()
    expected = float(entropies(HFTeacher(str(tiny_lm)).score_tokens(batch.tokens)).mean())
    assert "kl" not in figures
    assert figures["cross_entropy_to_samples"] == pytest.approx(expected, rel=0.01)
    trained = student.summed_loss(batch)[0].terms
    assert set(trained) == {"cross_entropy_to_samples", "cross_entropy"}


def test_an_example_that_isnt_there_ends_a_batch_too(whole_set: Path, tiny_lm: Path, pairs_file: Path) -> None:
    teacher = CachedTeacher(str(whole_set))
    student = DecoderStudent(str(tiny_lm), teacher=teacher, mixture=[WeightedDivergence(KL())])
    pair = read_pairs(pairs_file, Task())[0]
    other = Pair(**{**{name: getattr(pair, name) for name in Pair.__slots__}, "candidate_text": "Someone else."})
    with pytest.raises(UserError, match="isn't in the signal set"):
        teacher.score_tokens(_batch(student, [other]).tokens)
    with pytest.raises(UserError, match="isn't in the signal set"):
        teacher.level_probs([other], Task())


def test_a_teacher_that_names_the_best_tokens_only_is_recorded(tiny_lm: Path, pairs_file: Path, tmp_path: Path) -> None:
    def record(folder: str, **changes: object) -> None:
        settings: dict[str, Any] = {
            "k": 5,
            "log_probs": "f32",
            "kinds": ["tokens"],
            "max_length": 320,
            "limit": 6,
            **changes,
        }
        config = CacheConfig(OnlineTopK(str(tiny_lm)), str(pairs_file), str(tmp_path / folder), **settings)
        command._cache(config, Console())

    record("s")
    teacher = CachedTeacher(str(tmp_path / "s"))
    student = DecoderStudent(str(tiny_lm), teacher=teacher, mixture=[WeightedDivergence(KL())])
    tokens = _batch(student, read_pairs(pairs_file, Task())[:3]).tokens
    found, expected = teacher.score_tokens(tokens), top_k_of(HFTeacher(str(tiny_lm)).score_tokens(tokens), 5, 1.0)
    assert isinstance(found, TopK)
    torch.testing.assert_close(found.tail_log_mass, expected.tail_log_mass, atol=1e-4, rtol=1e-4)
    for changes, said in (
        ({"k": 9}, "k is 9"),
        ({"mode": "sampled"}, "use mode top_k"),
        ({"temperature": 2.0}, "temperature"),
    ):
        with pytest.raises(UserError, match=said):
            record("no", **changes)


def test_levels_of_another_question_are_refused(
    lantern: Lantern, whole_set: Path, tiny_encoder_config: Path, tmp_path: Path
) -> None:
    prompt = "--data.task.prompt={job_text} or {candidate_text}?"
    ran = lantern("fit", "--config", _with_teacher(tiny_encoder_config, whole_set), prompt)
    assert ran.code == 2
    assert "answers to another task: prompt there is" in ran.err
