"""The folder of a run: where it goes on, what is kept beside it, and a resume that is the same run to the last weight."""

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lantern_kernels import chunk, engine
from support import Ran

Lantern = Callable[..., Ran]
QUICK = ("--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0")


def weights(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The pair ids of each micro-batch that an encoder student is trained on."""
    from lantern_pl.students import EncoderStudent

    batches: list[tuple[str, ...]] = []
    real = EncoderStudent.training_step

    def record(self: Any, batch: Any, batch_idx: int) -> Any:
        loss = real(self, batch, batch_idx)
        batches.append(tuple(pair.pair_id for pair in batch.pairs))
        return loss

    monkeypatch.setattr(EncoderStudent, "training_step", record)
    return batches


# A resume is the same run

STEPS = 14
"""Of 6 an epoch: 32 pairs, 6 in a batch."""


@pytest.fixture
def uninterrupted(
    lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path, seen: list[tuple[str, ...]]
) -> Iterator[Callable[..., tuple[list[tuple[str, ...]], dict[str, torch.Tensor]]]]:
    """Train to the end at once, with some options; returns the batches and the weights at the end."""

    def run(*options: str) -> tuple[list[tuple[str, ...]], dict[str, torch.Tensor]]:
        ran = lantern("fit", "--config", tiny_encoder_config, *QUICK, *options, "--run_dir", tmp_path / "whole")
        assert ran.code == 0, ran.err
        batches = list(seen)
        seen.clear()
        return batches, weights(tmp_path / "whole")

    return run


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    apart = {name: float((one[name] - other[name]).abs().max()) for name in one if not torch.equal(one[name], other[name])}
    assert not apart


CONSTANT = "--model.optimization={schedule: constant, warmup: 0.0}"  # the schedule depends on the last step
AGAIN = ("--ckpt_path", "last")
LOGITS_OF_TWO_STEPS = 180 * 49_152
"""Of some 85 rows each, with SmolLM2's vocabulary."""
DROPOUT = "--model.dropout=0.3"  # a resume that forgot the random numbers' state would be another run


@pytest.mark.parametrize(
    ("stops", "workers"),
    [
        pytest.param((4,), 0, id="mid-epoch"),
        pytest.param((6, 9), 1, id="epoch-end-then-mid-epoch-with-a-worker"),
        pytest.param((12,), 0, id="second-epoch-end"),
    ],
)
def test_a_resume_goes_on_with_the_next_batch_of_the_epoch(
    lantern: Lantern,
    tiny_encoder_config: Path,
    tmp_path: Path,
    seen: list[tuple[str, ...]],
    uninterrupted: Any,
    stops: tuple[int, ...],
    workers: int,
) -> None:
    options = (*QUICK, CONSTANT, DROPOUT, f"--data.num_workers={workers}")
    batches, final = uninterrupted(*options, f"--trainer.max_steps={STEPS}")
    epochs = [batches[:6], batches[6:12]]
    assert all(len({pair for batch in epoch for pair in batch}) == 32 for epoch in epochs)
    assert epochs[0] != epochs[1]
    resume: tuple[str, ...] = ()
    for stop in (*stops, STEPS):
        ran = lantern("fit", "--config", tiny_encoder_config, *options, f"--trainer.max_steps={stop}", *resume)
        assert ran.code == 0, ran.err
        resume = ("--ckpt_path", "last")
    assert seen == batches
    assert_same_weights(weights(tmp_path / "run"), final)
    assert not (tmp_path / "run.1").exists()


def test_a_run_is_lengthened_by_epochs(
    lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path, seen: list[tuple[str, ...]], uninterrupted: Any
) -> None:
    options = (*QUICK, CONSTANT, DROPOUT, "--trainer.max_steps=-1")
    batches, final = uninterrupted(*options, "--trainer.max_epochs=3")
    assert len(batches) == 18
    resume: tuple[str, ...] = ()
    for epochs in (1, 2, 3):
        ran = lantern("fit", "--config", tiny_encoder_config, *options, f"--trainer.max_epochs={epochs}", *resume)
        assert ran.code == 0, ran.err
        resume = ("--ckpt_path", "last")
    assert seen == batches
    assert_same_weights(weights(tmp_path / "run"), final)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_an_interruption_has_cost_is_done_again(
    lantern: Lantern,
    tiny_encoder_config: Path,
    tmp_path: Path,
    seen: list[tuple[str, ...]],
    uninterrupted: Any,
    monkeypatch: pytest.MonkeyPatch,
    accumulate: int,
) -> None:
    """The batch that was in work, and with accumulation those since the last step, whose gradients are gone."""
    from lantern_pl.students import EncoderStudent

    options = (*QUICK, CONSTANT, DROPOUT, f"--trainer.accumulate_grad_batches={accumulate}", "--trainer.max_epochs=2")
    options = (*options, "--trainer.max_steps=-1")
    batches, final = uninterrupted(*options)
    recording = EncoderStudent.training_step
    done = 9

    def interrupted(self: Any, batch: Any, batch_idx: int) -> Any:
        if len(seen) == done:
            raise MemoryError
        return recording(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(EncoderStudent, "training_step", interrupted)
        with pytest.raises(MemoryError):
            lantern("fit", "--config", tiny_encoder_config, *options)
    ran = lantern("fit", "--config", tmp_path / "run" / "config.yaml", "--ckpt_path", "last")
    assert ran.code == 0, ran.err
    since_the_last_step = done % accumulate
    assert seen[:done] == batches[:done]
    assert seen[done:] == batches[done - since_the_last_step :]
    assert_same_weights(weights(tmp_path / "run"), final)


def test_adapters_resume_to_the_last_weight(lantern: Lantern, tiny_decoder_config: Path, tmp_path: Path) -> None:
    options = (*QUICK, CONSTANT, "--model.lora={rank: 2, dropout: 0.3}", "--model.teacher=null", "--model.mixture=[]")
    for steps, folder, resume in ((4, "whole", ()), (2, "run", ()), (4, "run", ("--ckpt_path", "last"))):
        ran = lantern(
            *("fit", "--config", tiny_decoder_config, *options, *resume),
            *("--run_dir", tmp_path / folder, f"--trainer.max_steps={steps}"),
        )
        assert ran.code == 0, ran.err
    assert all("lora_" in name for name in weights(tmp_path / "run"))
    assert_same_weights(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_a_resume_compiles_the_loss_at_the_step_at_which_the_whole_run_does(
    lantern: Lantern, tiny_decoder_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiled loss differs from that of eager mode in its last bits."""
    calls: list[tuple[int | None, bool]] = []
    on_chunk = engine.on_chunk

    def record(*arguments: Any, logits_before: int | None, **keywords: Any) -> chunk.OnChunk:
        work = on_chunk(*arguments, logits_before=logits_before, **keywords)
        if logits_before is not None:  # training; what is only measured goes by what the process has counted
            calls.append((logits_before, work.__name__ != "eager"))
        return work

    monkeypatch.setattr(engine, "on_chunk", record)
    monkeypatch.setattr(chunk, "_LOGITS_BEFORE_COMPILING", LOGITS_OF_TWO_STEPS)
    seen = []
    for steps, folder, resume in ((6, "whole", ()), (2, "run", ()), (4, "run", AGAIN), (6, "run", AGAIN)):
        ran = lantern(
            *("fit", "--config", tiny_decoder_config, *QUICK, CONSTANT, *resume),
            *("--run_dir", tmp_path / folder, f"--trainer.max_steps={steps}"),
        )
        assert ran.code == 0, ran.err
        seen.append(calls.copy())
        calls.clear()
    whole, *parts = seen
    assert [compiled for _, compiled in whole] == [False] * 2 + [True] * 4
    assert [call for part in parts for call in part] == whole
    assert_same_weights(weights(tmp_path / "run"), weights(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("validation", "stops", "expected"),
    [
        (["--trainer.val_check_interval=2", "--trainer.check_val_every_n_epoch=null"], (4, 8), [[1, 3], [5, 7]]),
        # At the end of each epoch: before a checkpoint is saved, or while it is.
        ([], (6, 12), [[5], [11]]),
        (["--trainer.val_check_interval=6"], (6, 12), [[5], [11]]),
    ],
)
def test_loggers_count_on_after_a_resume(
    lantern: Lantern,
    tiny_encoder_config: Path,
    tmp_path: Path,
    validation: list[str],
    stops: tuple[int, int],
    expected: list[list[int]],
) -> None:
    for steps, resume in zip(stops, ((), ("--ckpt_path", "last")), strict=True):
        ran = lantern("fit", "--config", tiny_encoder_config, *validation, f"--trainer.max_steps={steps}", *resume)
        assert ran.code == 0, ran.err
    logs = [list(csv.DictReader(path.open())) for path in sorted(tmp_path.glob("run/csv/*/metrics.csv"))]
    assert len(logs) == 2
    trained = [[int(row["step"]) for row in rows if row["train/loss"]] for rows in logs]
    assert trained == [[*range(stops[0])], [*range(*stops)]]
    validated = [[int(row["step"]) for row in rows if row["val/accuracy"]] for rows in logs]
    assert validated == expected


def test_the_teacher_is_neither_trained_nor_saved(
    lantern: Lantern, tiny_decoder_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lantern_pl.teachers.local_model import HFTeacher

    teachers: list[Any] = []
    monkeypatch.setattr(
        HFTeacher,
        "score_tokens",
        lambda self, batch, real=HFTeacher.score_tokens: teachers.append(self) or real(self, batch),
    )
    before: dict[str, torch.Tensor] = {}
    real_to = HFTeacher.to

    def to(self: Any, device: torch.device) -> Any:
        real_to(self, device)
        before.update({name: tensor.clone() for name, tensor in self.lm.state_dict().items()})
        return self

    monkeypatch.setattr(HFTeacher, "to", to)
    ran = lantern("fit", "--config", tiny_decoder_config, "--model.optimization.learning_rate=0.1")
    assert ran.code == 0, ran.err
    teacher = teachers[0]
    assert before
    assert_same_weights(before, teacher.lm.state_dict())
    assert not teacher.lm.training
    assert not any(parameter.requires_grad for parameter in teacher.lm.parameters())
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    layers = {int(name.split("layers.")[1].split(".")[0]) for name in checkpoint["state_dict"] if "layers." in name}
    assert layers == {0, 1}  # the teacher has three
    optimized = sum(len(group["params"]) for group in checkpoint["optimizer_states"][0]["param_groups"])
    tied = {tensor.data_ptr() for tensor in checkpoint["state_dict"].values()}
    assert optimized == len(tied)


def test_the_manifest_names_the_teacher_that_taught(
    lantern: Lantern, tiny_decoder_config: Path, tiny_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run may have written over its folder by the end."""
    from lantern_pl.model_files import weights_identity
    from lantern_pl.students import DecoderStudent

    teacher = tmp_path / "teacher"
    shutil.copytree(tiny_lm, teacher)
    real = DecoderStudent.write

    def write(self: Any, folder: Path, weights: Any) -> None:
        (teacher / "more.safetensors").write_bytes(b"new")
        real(self, folder, weights)

    monkeypatch.setattr(DecoderStudent, "write", write)
    before = weights_identity(str(teacher))
    assert lantern("fit", "--config", tiny_decoder_config, *QUICK, "--model.teacher.model", teacher).code == 0
    assert json.loads((tmp_path / "run/student/manifest.json").read_text())["teacher"]["weights"] == before
    assert weights_identity(str(teacher)) != before


def test_every_checkpoint_is_loaded_as_weights_only(
    lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lantern("fit", "--config", tiny_encoder_config).code == 0
    loads = []
    real = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: loads.append(kwargs["weights_only"]) or real(*args, **kwargs))
    for command in ("fit", "validate", "test", "predict"):
        loads.clear()
        ran = lantern(command, "--config", tiny_encoder_config, "--ckpt_path", "last")
        assert ran.code == 0, ran.err
        assert len(loads) >= 2  # for its config, and for its weights
        assert all(loads)


# Layers of config


def test_the_checkpoints_own_config_is_the_lowest_layer(lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path) -> None:
    first = lantern(
        *("fit", "--config", tiny_encoder_config, *QUICK, "--seed_everything=7"),
        *("--model.temperature=2.5", "--data.batch_size=5", "--trainer.gradient_clip_val=0.5"),
    )
    assert first.code == 0, first.err
    # Without a config: all of it, and the run goes on in its folder.
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    ran = lantern("fit", "--ckpt_path", path, "--trainer.max_steps", "4", "--model.cross_entropy=0.25")
    assert ran.code == 0, ran.err
    resolved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert resolved["run_dir"] == str(tmp_path / "run")
    assert resolved["seed_everything"] == 7
    assert resolved["model"]["init_args"]["temperature"] == 2.5
    assert resolved["model"]["init_args"]["cross_entropy"] == 0.25
    assert resolved["data"]["init_args"]["batch_size"] == 5
    assert resolved["trainer"]["gradient_clip_val"] == 0.5
    said = {line.removeprefix("INFO: ") for line in ran.err.splitlines() if "the checkpoint has" in line}
    assert said == {
        "model.init_args.cross_entropy: the checkpoint has 1.0, this run uses 0.25.",
        "trainer.max_steps: the checkpoint has 2, this run uses 4.",
    }
    assert yaml.safe_load((tmp_path / "run" / "config.1.yaml").read_text())["trainer"]["max_steps"] == 2
    # A config file wins over it where it says something, and only there.
    over = tmp_path / "over.yaml"
    over.write_text(f"ckpt_path: {path}\nmodel: {{init_args: {{temperature: 1.5}}}}\ntrainer: {{max_steps: 5}}\n")
    ran = lantern("fit", "--config", over)
    assert ran.code == 0, ran.err
    resolved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    student = resolved["model"]["init_args"]
    assert (student["temperature"], student["cross_entropy"], resolved["trainer"]["max_steps"]) == (1.5, 0.25, 5)
    assert "ckpt_path" not in resolved
    assert not (tmp_path / "run.1").exists()


def test_last_is_that_of_the_given_run_folder(lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path) -> None:
    assert lantern("fit", "--config", tiny_encoder_config, *QUICK).code == 0
    ran = lantern("fit", "--ckpt_path=last", f"--run_dir={tmp_path}/run", "--trainer.max_steps=3")
    assert ran.code == 0, ran.err
    manifest = json.loads((tmp_path / "run" / "student" / "manifest.json").read_text())
    assert manifest["steps"] == 3


def test_a_run_that_was_moved_goes_on_where_it_is(lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path) -> None:
    assert lantern("fit", "--config", tiny_encoder_config, *QUICK).code == 0
    (tmp_path / "run").rename(tmp_path / "moved")
    ran = lantern("fit", "--ckpt_path", tmp_path / "moved" / "checkpoints" / "last.ckpt", "--trainer.max_steps=3")
    assert ran.code == 0, ran.err
    assert not (tmp_path / "run").exists()
    assert json.loads((tmp_path / "moved" / "student" / "manifest.json").read_text())["steps"] == 3


# Nothing is lost


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_from_another_runs_checkpoint_is_a_new_one(
    lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path
) -> None:
    for folder in ("run", "other"):
        assert lantern("fit", "--config", tiny_encoder_config, *QUICK, "--run_dir", tmp_path / folder).code == 0
    before = tree(tmp_path / "run"), tree(tmp_path / "other")
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    ran = lantern("fit", "--ckpt_path", checkpoint, "--run_dir", tmp_path / "other", "--trainer.max_steps=3", *QUICK)
    assert ran.code == 0, ran.err
    assert (tree(tmp_path / "run"), tree(tmp_path / "other.1")) == before
    assert json.loads((tmp_path / "other" / "student" / "manifest.json").read_text())["steps"] == 3


def test_runs_are_moved_aside_to_free_names(lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path) -> None:
    (tmp_path / "run.2").mkdir()
    (tmp_path / "run.2" / "notes.txt").write_text("mine")
    contents = []
    for seed in range(3):
        ran = lantern("fit", "--config", tiny_encoder_config, *QUICK, f"--seed_everything={seed}")
        assert ran.code == 0, ran.err
        contents.append(tree(tmp_path / "run"))
    assert tree(tmp_path / "run.1") == contents[0]
    assert tree(tmp_path / "run.2") == {"notes.txt": b"mine"}
    assert tree(tmp_path / "run.3") == contents[1]
    assert f"moved to {tmp_path}/run.3" in ran.err


def test_figures_are_kept_when_they_are_made_again(lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert lantern("test", "--config", tiny_encoder_config).code == 0
    first = (run / "test.json").read_bytes()
    assert lantern("test", "--config", tiny_encoder_config, "--seed_everything=1").code == 0
    assert (run / "test.1.json").read_bytes() == first
    assert (run / "test.json").read_bytes() != first


def test_a_trial_of_few_batches_leaves_an_earlier_run_alone(
    lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path
) -> None:
    assert lantern("fit", "--config", tiny_encoder_config, *QUICK).code == 0
    before = {str(path): path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert lantern("fit", "--config", tiny_encoder_config, "--trainer.fast_dev_run=true").code == 0
    assert {str(path): path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    assert not (tmp_path / "run.1").exists()
