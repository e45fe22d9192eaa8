"""How the weights are updated after a resume is what the config says then, not what the checkpoint was written with."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import Ran

Lantern = Callable[..., Ran]
QUICK = ("--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0")
CONSTANT = ("--model.optimization.schedule=constant", "--model.optimization.warmup=0")


def rates(run: Path) -> list[float]:
    """The learning rate of each step in the last of the run's CSV logs."""
    log = max((run / "csv").glob("version_*"), key=lambda folder: int(folder.name.removeprefix("version_")))
    with (log / "metrics.csv").open() as file:
        return [float(row["train/learning_rate"]) for row in csv.DictReader(file) if row["train/learning_rate"]]


def groups(run: Path) -> list[dict[str, object]]:
    (optimizer,) = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"]
    found: list[dict[str, object]] = optimizer["param_groups"]
    return found


def test_rate_decay_and_betas_are_those_of_the_resumed_runs_config(
    lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path
) -> None:
    fit = ("fit", "--config", tiny_encoder_config, *QUICK, *CONSTANT)
    assert lantern(*fit, "--model.optimization.learning_rate=1e-3").code == 0
    assert rates(tmp_path / "run") == pytest.approx([1e-3, 1e-3])  # a log holds float32
    changed = ("--model.optimization.learning_rate=1e-5", "--model.optimization.weight_decay=0.3")
    ran = lantern(*fit, *changed, "--model.optimization.betas=[0.8, 0.9]", "--ckpt_path=last", "--trainer.max_steps=4")
    assert ran.code == 0, ran.err
    assert "learning_rate: the checkpoint has 0.001, this run uses 1e-05" in ran.err + ran.out
    assert rates(tmp_path / "run") == pytest.approx([1e-5, 1e-5])
    matrices, others = groups(tmp_path / "run")
    assert (matrices["lr"], matrices["initial_lr"], matrices["weight_decay"]) == (1e-5, 1e-5, 0.3)
    assert (others["lr"], others["initial_lr"], others["weight_decay"]) == (1e-5, 1e-5, 0.0)  # biases and norms
    assert tuple(matrices["betas"]) == tuple(others["betas"]) == (0.8, 0.9)


def test_a_longer_run_takes_its_own_schedule_from_the_first_step_on(
    lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path
) -> None:
    """The checkpoint of a finished cosine says 0."""
    fit = ("fit", "--config", tiny_encoder_config, *QUICK, "--model.optimization.warmup=0")
    assert lantern(*fit, "--trainer.max_steps=4", "--run_dir", tmp_path / "whole").code == 0
    assert lantern(*fit).code == 0
    assert lantern(*fit, "--ckpt_path=last", "--trainer.max_steps=4").code == 0
    assert rates(tmp_path / "run") == pytest.approx(rates(tmp_path / "whole")[2:])
    assert rates(tmp_path / "run")[0] > 0


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_without_a_change_the_rates_go_on_to_the_last_bit(
    lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path, schedule: str
) -> None:
    # The end is the same for the interrupted run: a checkpoint in mid-epoch, as a kill leaves it.
    options = (f"--model.optimization.schedule={schedule}", "--trainer.max_steps=6", *QUICK)
    keep = ("--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",)
    keep += ("--trainer.callbacks.every_n_train_steps=3", "--trainer.callbacks.save_top_k=-1")
    keep += (f"--trainer.callbacks.dirpath={tmp_path}/kept", "--trainer.callbacks.filename={step}")
    assert lantern("fit", "--config", tiny_encoder_config, *options, *keep, "--run_dir", tmp_path / "whole").code == 0
    checkpoint = tmp_path / "kept" / "step=3.ckpt"
    ran = lantern("fit", "--config", tiny_encoder_config, *options, "--ckpt_path", checkpoint)
    assert ran.code == 0, ran.err
    assert rates(tmp_path / "run") == rates(tmp_path / "whole")[3:]
