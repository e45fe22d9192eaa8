"""The figures and texts of a run are of the student that they are said to be of, also after a resume."""

import json
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support import Ran

from lantern_pl.data.pair import Pair
from lantern_pl.data.records import read_pairs
from lantern_pl.errors import UserError
from lantern_pl.signals import Annotation
from lantern_pl.students import DecoderStudent, EncoderStudent
from lantern_pl.students.student import Means
from lantern_pl.tasks import Task
from lantern_pl.teachers.local_model import HFTeacher

Lantern = Callable[..., Ran]
QUICK = ("--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0")
ONE_EPOCH = ("--trainer.max_steps=-1", "--trainer.max_epochs=1")
NO_CHECKPOINT = "without a checkpoint"


def manifest(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "student" / "manifest.json").read_text())
    return found


def checkpoint(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return found


# After a resume


@pytest.mark.parametrize("until", [("--trainer.max_steps=2",), ONE_EPOCH])
def test_a_resume_without_a_step_left_keeps_the_figures(
    lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path, until: tuple[str, ...]
) -> None:
    fit = ("fit", "--config", tiny_encoder_config, *until)
    assert lantern(*fit).code == 0
    before = manifest(tmp_path / "run")
    ran = lantern(*fit, "--ckpt_path=last")
    assert ran.code == 0, ran.err
    assert f"Validation after {before['steps']} steps" in ran.out
    after = manifest(tmp_path / "run")
    assert after["metrics"]["trained"]
    assert after["metrics"] == {name: pytest.approx(figures) for name, figures in before["metrics"].items()}
    assert (after["steps"], after["weights"]) == (before["steps"], before["weights"])


def test_a_run_that_was_stopped_in_its_last_validation_gets_its_figures(
    lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = ("fit", "--config", tiny_encoder_config)
    real = EncoderStudent.validation_step

    def stopped(self: Any, batch: Any, batch_idx: int) -> None:
        if not self.trainer.sanity_checking:
            raise MemoryError
        real(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(EncoderStudent, "validation_step", stopped)
        with pytest.raises(MemoryError):
            lantern(*fit)
    ran = lantern(*fit, "--ckpt_path=last")
    assert ran.code == 0, ran.err
    assert manifest(tmp_path / "run")["metrics"]["trained"]


def test_the_untrained_students_text_stays(
    lantern: Lantern, tiny_decoder_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of an epoch the sanity check is made again, on trained weights."""
    texts: list[str] = []

    def explain(self: Any, pairs: list[Pair]) -> list[str]:
        texts.append(f"text {len(texts)}")
        return [texts[-1]] * len(pairs)

    monkeypatch.setattr(DecoderStudent, "explain", explain)
    fit = ("fit", "--config", tiny_decoder_config, "--trainer.limit_train_batches=2", "--trainer.max_steps=-1")
    for epochs, resume in ((1, ()), (2, ("--ckpt_path=last",))):
        ran = lantern(*fit, f"--trainer.max_epochs={epochs}", *resume)
        assert ran.code == 0, ran.err
    assert "sample" not in checkpoint(tmp_path / "run")
    path = tmp_path / "run" / "sample.json"
    assert path.stat().st_mode & 0o777 == 0o600
    sample = json.loads(path.read_text())
    assert (sample["untrained"], sample["trained"]) == ("text 0", texts[-1])
    # In another folder nothing is known of the untrained student's.
    last, elsewhere = tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "elsewhere"
    ran = lantern(*fit, "--trainer.max_epochs=3", f"--ckpt_path={last}", "--run_dir", elsewhere)
    assert ran.code == 0, ran.err
    sample = json.loads((elsewhere / "sample.json").read_text())
    assert (sample.get("untrained"), sample["trained"]) == (None, texts[-1])
    # Nor where the file was damaged, which stops nobody.
    path.write_text("{")
    with pytest.warns(UserWarning, match="what the untrained student said won't be shown"):
        ran = lantern(*fit, "--trainer.max_epochs=4", "--ckpt_path=last")
    assert ran.code == 0, ran.err
    sample = json.loads(path.read_text())
    assert (sample.get("untrained"), sample["trained"]) == (None, texts[-1])
    # And a run that is to show none has none to show of an earlier part either.
    quiet = lantern(*fit, "--trainer.max_epochs=5", "--ckpt_path=last", "--model.generate_pairs=0")
    assert quiet.code == 0, quiet.err
    assert "One held-out pair" in ran.out
    assert "One held-out pair" not in quiet.out
    assert json.loads(path.read_text()) == sample


def test_nobody_is_asked_for_what_is_not_shown(
    lantern: Lantern, tiny_decoder_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The held-out answers side by side are for who runs a fit."""
    asked: list[int] = []
    annotate = HFTeacher.annotate

    def counted(self: Any, pairs: Sequence[Pair], task: Task) -> list[Annotation]:
        asked.append(len(pairs))
        return annotate(self, pairs, task)

    monkeypatch.setattr(HFTeacher, "annotate", counted)
    assert lantern("fit", "--config", tiny_decoder_config).code == 0
    assert asked == [1]
    assert lantern("validate", "--config", tiny_decoder_config, "--ckpt_path=last").code == 0
    assert asked == [1]


def test_the_patience_is_the_resumed_runs_own(lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path) -> None:
    stopping = tmp_path / "stopping.yaml"
    fit = ("fit", "--config", tiny_encoder_config, "--config", stopping, "--trainer.limit_train_batches=1")
    for epochs, patience, resume in ((1, 3, ()), (2, 7, ("--ckpt_path=last",))):
        arguments = {"monitor": "val/accuracy", "patience": patience}
        callback = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": arguments}
        trainer = {"callbacks": [callback], "max_steps": -1, "max_epochs": epochs}
        stopping.write_text(json.dumps({"trainer": trainer}))  # JSON is YAML
        ran = lantern(*fit, *resume)
        assert ran.code == 0, ran.err
        states = checkpoint(tmp_path / "run")["callbacks"]
        (state,) = (state for name, state in states.items() if name.startswith("EarlyStopping"))
        assert state["patience"] == patience


# Without a checkpoint


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_what_was_trained_is_not_passed_over(
    lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path, command: str
) -> None:
    run = tmp_path / "run"
    assert lantern("fit", "--config", tiny_encoder_config, *QUICK).code == 0
    before = {str(path) for path in run.rglob("*")}
    ran = lantern(command, "--config", tiny_encoder_config)
    assert ran.code == 2
    assert "give --ckpt_path last" in " ".join(ran.err.split())
    assert {str(path) for path in run.rglob("*")} == before
    with pytest.warns(UserWarning, match="is untrained"):
        ran = lantern(command, "--config", tiny_encoder_config, "--run_dir", tmp_path / "untrained")
    assert ran.code == 0, ran.err
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Without --ckpt_path")
        saved = (f"--model.model={run}/student", "--model.layers=null")
        ran = lantern(command, "--config", tiny_encoder_config, *saved)
    assert ran.code == 0, ran.err


def test_a_table_says_of_which_student_it_is(
    lantern: Lantern, tiny_encoder_config: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    for command in ("validate", "test"):
        ran = lantern(command, "--config", tiny_encoder_config)
        assert ran.code == 0, ran.err
        title = "".join(ran.out.partition("┏")[0].split())  # wherever it's wrapped
        assert title.endswith(f"of {tiny_encoder}, {NO_CHECKPOINT}".replace(" ", ""))
        assert "trained" not in ran.out.partition("┏")[2].partition("ece")[0]
    assert NO_CHECKPOINT in json.loads((tmp_path / "run/test.json").read_text())["models"]["student"]["about"]
    assert lantern("fit", "--config", tiny_encoder_config).code == 0
    ran = lantern("validate", "--config", tiny_encoder_config, "--ckpt_path=last")
    assert "Validation after 2 steps" in ran.out
    assert "untrained" in ran.out
    assert lantern("test", "--config", tiny_encoder_config, "--ckpt_path=last").code == 0
    assert NO_CHECKPOINT not in json.loads((tmp_path / "run/test.json").read_text())["models"]["student"]["about"]


# What isn't a number


def test_a_mean_with_a_row_that_is_no_number_is_none() -> None:
    means = Means(["kl", "js"])
    means.update("kl", torch.tensor([1.0, math.nan, 3.0]))
    means.update("js", torch.tensor([1.0, 3.0]))
    found = means.finish()
    assert math.isnan(found["kl"])
    assert found["js"] == 2.0


def test_a_manifest_is_json_for_everyone(
    lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = EncoderStudent.finish_metrics
    monkeypatch.setattr(EncoderStudent, "finish_metrics", lambda self: real(self) | {"quadratic_kappa": math.nan})
    assert lantern("fit", "--config", tiny_encoder_config).code == 0
    assert "NaN" not in (tmp_path / "run/student/manifest.json").read_text()
    metrics = manifest(tmp_path / "run")["metrics"]
    assert metrics["trained"]["quadratic_kappa"] is metrics["untrained"]["quadratic_kappa"] is None


# What ends in a message


def test_a_fit_without_an_end_is_refused(lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path) -> None:
    ran = lantern("fit", "--config", tiny_encoder_config, "--trainer.max_steps=-1", "--trainer.max_time=00:00:01:00")
    assert ran.code == 2
    assert "trainer.max_steps and trainer.max_epochs are both -1" in " ".join(ran.err.split())
    assert not (tmp_path / "run").exists()


class Silent(HFTeacher):
    def annotate(self, pairs: Sequence[Pair], task: Task) -> list[Annotation]:
        raise ConnectionError(f"no answer about {pairs[0].job_text}")


class Empty(HFTeacher):
    def annotate(self, pairs: Sequence[Pair], task: Task) -> list[Annotation]:
        return []


@pytest.mark.parametrize("kind", [Silent, Empty])
def test_a_teacher_that_fails_to_annotate_is_named(tiny_lm: Path, pairs_file: Path, kind: type[HFTeacher]) -> None:
    student = DecoderStudent(str(tiny_lm), teacher=kind(str(tiny_lm)))
    student.task = Task()
    pair = read_pairs(str(pairs_file), student.task)[0]
    with pytest.raises(UserError, match=r"The teacher .* fails: (ConnectionError|IndexError) at") as raised:
        student._remember_sample(pair, "text")
    assert pair.job_text not in str(raised.value)
