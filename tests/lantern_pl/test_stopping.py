"""Runs that are stopped or killed go on as if nothing had been, and say that they were stopped."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from recording import Record
from support import Ran
from training_teachers import online, record_signals, teach

Lantern = Callable[..., Ran]
RUN = ("--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0", "--trainer.max_steps=-1")
# A checkpoint after each step, beside those of the epochs.
OFTEN = ("--checkpoint_minutes=0",)
RANDOM = {
    "encoder": ("--model.dropout=0.3",),
    "decoder": ("--model.lora={rank: 2, dropout: 0.3}",),
}


def start(config: Path, run_dir: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lantern_pl", "fit", "--config", str(config), "--run_dir", str(run_dir), *RUN, *options]
    # Sessions without a terminal ignore SIGINT, and so would the command.
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )


def wait_until(condition: Callable[[], bool], run: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def final(run_dir: Path) -> dict[str, torch.Tensor]:
    from lantern_pl.checkpoints import newest_good, read_checkpoint

    state: dict[str, torch.Tensor] = read_checkpoint(newest_good(run_dir / "checkpoints")[0])["state_dict"]
    return state


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


SLURM = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_ID": "7"} | {
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS_PER_NODE": "1",
}


@pytest.mark.parametrize(
    ("number", "code", "cluster"),
    [
        pytest.param(signal.SIGINT, 130, {}, id="SIGINT"),
        pytest.param(signal.SIGTERM, 143, {}, id="SIGTERM"),
        pytest.param(signal.SIGTERM, 143, SLURM, id="SIGTERM from SLURM"),
    ],
)
def test_a_stopped_run_is_saved_and_goes_on_as_if_nothing_had_been(
    lantern: Lantern,
    tiny_encoder_config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    code: int,
    cluster: dict[str, str],
    record: Record,
) -> None:
    for name, value in cluster.items():
        monkeypatch.setenv(name, value)
    options = (*OFTEN, *RANDOM["encoder"], "--model.optimization={schedule: constant, warmup: 0.0}")
    run = start(tiny_encoder_config, tmp_path / "stopped", *options, "--trainer.max_epochs=2000")
    wait_for_step(1, tmp_path / "stopped", run)
    run.send_signal(number)
    said = run.communicate(timeout=240)[0]
    assert run.returncode == code, said
    assert "Traceback" not in said
    assert not list(Path.cwd().glob("hpc_ckpt_*"))
    for name in cluster:
        monkeypatch.delenv(name)
    command = re.search(r"To go on: lantern (.+)", said)
    assert command is not None
    last_step = f"--trainer.max_steps={newest_step(tmp_path / 'stopped') + 4}"
    ran = lantern(*command[1].split(), last_step)
    assert ran.code == 0, ran.err
    ran = lantern("fit", "--config", tiny_encoder_config, "--run_dir", tmp_path / "whole", *RUN, *options, last_step)
    assert ran.code == 0, ran.err
    assert_same(final(tmp_path / "stopped"), final(tmp_path / "whole"))
    record(
        f"{number.name} in mid-run{' under SLURM' if cluster else ''}, then the command that it names",
        found=f"exit {code}, saved, bit-equal parameters",
        goal=f"exit {code}, saved, bit-equal",
    )


def test_a_second_ctrl_c_stops_at_once(tiny_encoder_config: Path, tmp_path: Path) -> None:
    run = start(tiny_encoder_config, tmp_path / "stopped", *OFTEN, "--trainer.max_epochs=2000", "--data.batch_size=32")
    wait_for_step(1, tmp_path / "stopped", run)
    while run.poll() is None:
        run.send_signal(signal.SIGINT)
    assert run.returncode == 130


SLOW = (pytest.mark.slow, pytest.mark.timeout(1200))
# Micro-batches of which several make a step, and a validation after each of some steps.
MORE = ("--trainer.accumulate_grad_batches=2", "--trainer.limit_val_batches=1", "--trainer.val_check_interval=2")


@pytest.mark.parametrize(
    ("kind", "taught", "workers", "kills", "more"),
    [
        pytest.param("encoder", "online", 0, 1, (), id="encoder, once"),
        pytest.param("decoder", "cached", 0, 1, (), id="decoder, once"),
        *(
            pytest.param(kind, taught, workers, 4, (), id=f"{kind}, {taught}, {workers} workers", marks=SLOW)
            for kind, taught in (
                ("encoder", "annotations"),
                ("encoder", "online"),
                ("encoder", "cached"),
                ("decoder", "online"),
                ("decoder", "cached"),
            )
            for workers in (0, 2)
        ),
        pytest.param("encoder", "online", 0, 4, MORE, id="encoder, accumulated and validated", marks=SLOW),
        pytest.param("decoder", "online", 0, 4, MORE, id="decoder, accumulated and validated", marks=SLOW),
    ],
)
def test_a_run_killed_at_random_moments_ends_with_the_same_weights(
    lantern: Lantern,
    tiny_encoder_config: Path,
    tiny_decoder_config: Path,
    tiny_lm: Path,
    pairs_file: Path,
    tmp_path: Path,
    kind: str,
    taught: str,
    workers: int,
    kills: int,
    more: tuple[str, ...],
    record: Record,
) -> None:
    config = {"encoder": tiny_encoder_config, "decoder": tiny_decoder_config}[kind]
    if taught != "annotations":
        cached = taught == "cached"
        teach(config, record_signals(lantern, tiny_lm, pairs_file, tmp_path / "signals") if cached else online(tiny_lm))
    options = (*OFTEN, *RANDOM[kind], f"--data.num_workers={workers}", "--trainer.max_epochs=3", *more)
    assert start(config, tmp_path / "whole", *options).wait(240) == 0
    rng = random.Random(workers)
    killed, resume = tmp_path / "killed", ()
    for _ in range(kills):
        run = start(config, killed, *options, *resume)
        wait_for_step(newest_step(killed) + rng.randint(1, 2 if more else 4), killed, run)
        time.sleep(rng.random() * 0.05)
        os.kill(run.pid, signal.SIGKILL)
        run.wait(60)
        resume = ("--ckpt_path", "last")
    assert start(config, killed, *options, *resume).wait(240) == 0
    assert_same(final(killed), final(tmp_path / "whole"))
    how = f"{'its annotations' if taught == 'annotations' else f'a teacher {taught}'}, {workers} workers"
    record(
        f"SIGKILL of a fit at random steps: {kind}, {how}{', accumulation and validation' if more else ''}",
        found=f"{kills} kills, bit-equal parameters at the end",
        goal="bit-equal to an uninterrupted run",
    )


def wait_for_step(step: int, run_dir: Path, run: subprocess.Popen[str]) -> None:
    wait_until(lambda: newest_step(run_dir) >= step, run)


def newest_step(run_dir: Path) -> int:
    names = [path.name for path in (run_dir / "checkpoints").glob("*.ckpt")]
    return max((int(step) for name in names for step in re.findall(r"step=(\d+)", name)), default=0)
