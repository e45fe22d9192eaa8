"""A loss or gradient that isn't finite changes no weight, and its origin is named."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lantern_kernels import MixtureOutput
from recording import Record
from support import Ran

from lantern_pl.checkpoints import newest_good, read_checkpoint
from lantern_pl.errors import UserError
from lantern_pl.plugin_checks import checked_signal
from lantern_pl.signals import Hidden, LevelProbs, Logits, OutputHead, TokenBatch
from lantern_pl.teachers.local_model import HFTeacher
from lantern_pl.teachers.rule_based import RubricTeacher

Lantern = Callable[..., Ran]
RUN = ("--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0", "--trainer.max_steps=4")


@pytest.fixture
def bad_from(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Have the teacher give NaN from one question on, up to another."""

    def spoil(first: int, last: int) -> None:
        asked = 0
        real = HFTeacher.score_tokens

        def score(self: HFTeacher, batch: Any) -> Hidden:
            nonlocal asked
            asked += 1
            signal = real(self, batch)
            return replace(signal, hidden=signal.hidden * float("nan")) if first <= asked <= last else signal

        monkeypatch.setattr(HFTeacher, "score_tokens", score)

    return spoil


def steps(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(next(run.glob("csv/*/metrics.csv")).open()))


def saved(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = read_checkpoint(newest_good(run / "checkpoints")[0])["state_dict"]
    return state


def test_a_teacher_that_goes_bad_is_named_and_the_weights_are_those_before(
    lantern: Lantern, tiny_decoder_config: Path, tmp_path: Path, bad_from: Callable[[int, int], None], record: Record
) -> None:
    bad_from(3, 10_000)
    ran = lantern("fit", "--config", tiny_decoder_config, *RUN)
    assert ran.code == 2
    assert "Step 2: The teacher" in ran.err
    assert "NaN" in ran.err
    assert all(values.isfinite().all() for values in saved(tmp_path / "run").values())
    record(
        "A teacher that gives NaN from the third step on",
        found="the run stops with exit 2, naming step, teacher and pairs; the saved weights are finite",
        goal="stopped, and the teacher named",
    )


def test_pairs_and_terms_are_named_where_the_teacher_is_right(
    lantern: Lantern, tiny_decoder_config: Path, tmp_path: Path, bad_from: Callable[[int, int], None]
) -> None:
    bad_from(3, 3)  # when it's asked again, all is well
    ran = lantern("fit", "--config", tiny_decoder_config, *RUN)
    assert ran.code == 2
    assert "Step 2:" in ran.err
    assert "js and cross_entropy isn't finite" not in ran.err
    assert "js isn't finite for the pairs 'job-" in ran.err
    assert "not_finite: skip" in ran.err


def test_steps_are_skipped_and_counted_where_the_user_wants_that(
    lantern: Lantern, tiny_decoder_config: Path, tmp_path: Path, bad_from: Callable[[int, int], None]
) -> None:
    bad_from(2, 2)
    ran = lantern("fit", "--config", tiny_decoder_config, *RUN, "--model.optimization.not_finite=skip")
    assert ran.code == 0, ran.err
    counts = [row["train/skipped_steps"] for row in steps(tmp_path / "run") if row.get("train/skipped_steps")]
    assert [float(count) for count in counts] == [0, 1, 1, 1]
    assert all(values.isfinite().all() for values in saved(tmp_path / "run").values())


def test_a_skipped_step_changes_no_weight_at_all(
    lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by momentum or weight decay, either."""
    from lantern_pl.students import EncoderStudent

    real = EncoderStudent.summed_loss
    seen: list[torch.Tensor] = []

    def spoilt(self: EncoderStudent, batch: Any) -> Any:
        output, rows = real(self, batch)
        seen.append(torch.cat([parameter.detach().flatten() for parameter in self.parameters()]))
        return MixtureOutput(output.loss * float("inf") if len(seen) == 3 else output.loss, output.terms), rows

    monkeypatch.setattr(EncoderStudent, "summed_loss", spoilt)
    skip = "--model.optimization={not_finite: skip, weight_decay: 0.1}"
    ran = lantern("fit", "--config", tiny_encoder_config, *RUN, skip)
    assert ran.code == 0, ran.err
    assert not torch.equal(seen[1], seen[2])
    assert torch.equal(seen[2], seen[3])


def test_a_gradient_alone_that_is_not_finite_stops_too(
    lantern: Lantern, tiny_encoder_config: Path, monkeypatch: pytest.MonkeyPatch, record: Record
) -> None:
    from lantern_pl.students import EncoderStudent

    real = EncoderStudent.summed_loss

    def spoilt(self: EncoderStudent, batch: Any) -> Any:
        output, rows = real(self, batch)
        parameter = next(self.parameters())
        bad = parameter * 0
        bad.register_hook(lambda gradient: gradient * float("nan"))
        return MixtureOutput(output.loss + bad.sum(), output.terms), rows

    monkeypatch.setattr(EncoderStudent, "summed_loss", spoilt)
    ran = lantern("fit", "--config", tiny_encoder_config, *RUN)
    assert ran.code == 2
    assert "Step 0: the gradient of classifier." in ran.err
    assert "that of kl, cross_entropy on the pairs 'job-" in ran.err
    assert "another process" not in ran.err
    record(
        "A gradient that is NaN though the loss is finite",
        found="the step isn't made; step, parameter, terms and pairs are named",
        goal="stopped with step, term and row ids",
    )


def test_a_sum_that_overflows_names_its_pairs(
    lantern: Lantern, tiny_encoder_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lantern_pl.students import EncoderStudent

    real = EncoderStudent.summed_loss

    def spoilt(self: EncoderStudent, batch: Any) -> Any:
        output, rows = real(self, batch)
        return MixtureOutput(output.loss + 3e38 + 3e38, output.terms), rows

    monkeypatch.setattr(EncoderStudent, "summed_loss", spoilt)
    ran = lantern("fit", "--config", tiny_encoder_config, *RUN)
    assert ran.code == 2
    assert "Step 0: the loss summed over the pairs 'job-" in ran.err
    assert "(kl, cross_entropy)" in ran.err


def harmed(values: torch.Tensor, harm: float, rows: slice | int) -> torch.Tensor:
    values = values.clone()
    values[rows] = harm
    return values


@pytest.mark.parametrize(
    ("harm", "of"),
    [
        (float("inf"), "a logit"),
        (float("-inf"), "a row"),
        (float("nan"), "a logit"),
        (float("inf"), "hidden"),
        (float("-inf"), "hidden"),
    ],
)
def test_a_teacher_of_infinite_logits_is_named(harm: float, of: str) -> None:
    class Infinite(HFTeacher):
        capabilities = frozenset({"score_tokens"})
        vocab_size, top_k = 5, None

        def __init__(self) -> None:
            pass

        def score_tokens(self, batch: TokenBatch) -> Hidden | Logits:
            if of == "hidden":
                hidden = torch.zeros(3, 2)
                hidden[1, 1] = harm
                return Hidden(hidden, OutputHead(torch.ones(5, 2)))
            logits = torch.zeros(3, 5)
            logits[1, slice(None) if of == "a row" else 2] = harm
            return Logits(logits)

    nothing = torch.zeros(1, 3, dtype=torch.long)
    batch = TokenBatch(nothing, nothing, nothing == 0)
    with pytest.raises(UserError, match=r"infinity|NaN"):
        checked_signal(Infinite(), batch, 3, look_at_values=True)
    checked_signal(Infinite(), batch, 3, look_at_values=False)


@pytest.fixture
def taught_encoder(tiny_encoder_config: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], Path]:
    """A config of an encoder with a teacher that gives no distributions from one question on, up to another."""

    def spoil(first: int, last: int) -> Path:
        asked = 0
        real = RubricTeacher.level_probs

        def level_probs(self: RubricTeacher, pairs: Any, task: Any) -> LevelProbs:
            nonlocal asked
            asked += 1
            probs = real(self, pairs, task).probs
            return LevelProbs(harmed(probs, float("nan"), 1) if first <= asked <= last else probs)

        monkeypatch.setattr(RubricTeacher, "level_probs", level_probs)
        config = yaml.safe_load(tiny_encoder_config.read_text())
        config["model"]["init_args"]["teacher"] = {"class_path": "lantern_pl.teachers.rubric"}
        tiny_encoder_config.write_text(yaml.safe_dump(config))
        return tiny_encoder_config

    return spoil


def test_an_encoders_teacher_that_goes_bad_is_named_with_step_and_pair(
    lantern: Lantern, taught_encoder: Callable[[int, int], Path], tmp_path: Path
) -> None:
    ran = lantern("fit", "--config", taught_encoder(3, 10_000), *RUN)
    assert ran.code == 2
    assert "Step 2: The teacher 'rubric' from lantern-pl" in ran.err
    assert "It was asked about the pairs 'job-" in ran.err
    assert all(values.isfinite().all() for values in saved(tmp_path / "run").values())


def test_an_encoders_steps_are_skipped_and_the_teacher_is_asked_again(
    lantern: Lantern, taught_encoder: Callable[[int, int], Path], tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="Step 1: .*isn't finite for the pairs 'job-.*The step was left out"):
        ran = lantern("fit", "--config", taught_encoder(2, 2), *RUN, "--model.optimization.not_finite=skip")
    assert ran.code == 0, ran.err
    counts = [row["train/skipped_steps"] for row in steps(tmp_path / "run") if row.get("train/skipped_steps")]
    assert [float(count) for count in counts] == [0, 1, 1, 1]


def test_a_decoders_teacher_of_bad_hidden_states_is_named(
    lantern: Lantern, tiny_decoder_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    real = HFTeacher.token_hidden_states

    def states(self: HFTeacher, batch: Any, layers: Any) -> Any:
        nonlocal asked
        asked += 1
        return [harmed(layer, float("inf"), 0) if asked > 2 else layer for layer in real(self, batch, layers)]

    monkeypatch.setattr(HFTeacher, "token_hidden_states", states)
    ran = lantern("fit", "--config", tiny_decoder_config, *RUN, "--model.hidden_states={weight: 1.0}")
    assert ran.code == 2
    assert "Step 2: The teacher" in ran.err
    assert "token_hidden_states" in ran.err
