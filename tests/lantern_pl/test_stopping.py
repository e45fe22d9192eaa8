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
import yaml
from support import Ran

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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_is_saved_and_goes_on_as_if_nothing_had_been(
    lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    options = (*OFTEN, *RANDOM["encoder"], "--model.optimization={schedule: constant, warmup: 0.0}")
    run = start(tiny_encoder_config, tmp_path / "stopped", *options, "--trainer.max_epochs=2000")
    wait_for_step(1, tmp_path / "stopped", run)
    run.send_signal(number)
    said = run.communicate(timeout=240)[0]
    assert run.returncode == code, said
    assert "Traceback" not in said
    command = re.search(r"To go on: lantern (.+)", said)
    assert command is not None
    last_step = f"--trainer.max_steps={newest_step(tmp_path / 'stopped') + 4}"
    ran = lantern(*command[1].split(), last_step)
    assert ran.code == 0, ran.err
    ran = lantern("fit", "--config", tiny_encoder_config, "--run_dir", tmp_path / "whole", *RUN, *options, last_step)
    assert ran.code == 0, ran.err
    assert_same(final(tmp_path / "stopped"), final(tmp_path / "whole"))


def test_a_second_ctrl_c_stops_at_once(tiny_encoder_config: Path, tmp_path: Path) -> None:
    run = start(tiny_encoder_config, tmp_path / "stopped", *OFTEN, "--trainer.max_epochs=2000", "--data.batch_size=32")
    wait_for_step(1, tmp_path / "stopped", run)
    while run.poll() is None:
        run.send_signal(signal.SIGINT)
    assert run.returncode == 130


@pytest.fixture
def signals(lantern: Lantern, tiny_lm: Path, pairs_file: Path, tmp_path: Path) -> Path:
    """What the decoder config's teacher says about its pairs, on disk."""
    options = ("--pairs", pairs_file, "--signals", tmp_path / "signals", "--max_length=320", "--k=8", "--batch_size=8")
    ran = lantern("cache", "--teacher", "lantern_pl.teachers.hf", f"--teacher.model={tiny_lm}", *options)
    assert ran.code == 0, ran.err
    return tmp_path / "signals"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "cached", "workers"),
    [
        ("encoder", False, 0),
        ("encoder", False, 2),
        ("decoder", False, 0),
        ("decoder", False, 2),
        ("decoder", True, 0),
        ("decoder", True, 2),
    ],
)
def test_a_run_killed_at_random_moments_ends_with_the_same_weights(
    tiny_encoder_config: Path,
    tiny_decoder_config: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    kind: str,
    cached: bool,
    workers: int,
) -> None:
    config = {"encoder": tiny_encoder_config, "decoder": tiny_decoder_config}[kind]
    options = (*OFTEN, *RANDOM[kind], f"--data.num_workers={workers}", "--trainer.max_epochs=3")
    if cached:
        init_args = {"signals": str(request.getfixturevalue("signals"))}
        teacher = {"class_path": "lantern_pl.teachers.cached", "init_args": init_args}
        written = yaml.safe_load(config.read_text())
        written["model"]["init_args"]["teacher"] = teacher
        config.write_text(yaml.safe_dump(written))
    assert start(config, tmp_path / "whole", *options).wait(240) == 0
    rng = random.Random(workers)
    killed, resume = tmp_path / "killed", ()
    for _ in range(4):
        run = start(config, killed, *options, *resume)
        wait_for_step(newest_step(killed) + rng.randint(1, 4), killed, run)
        time.sleep(rng.random() * 0.05)
        os.kill(run.pid, signal.SIGKILL)
        run.wait(60)
        resume = ("--ckpt_path", "last")
    assert start(config, killed, *options, *resume).wait(240) == 0
    assert_same(final(killed), final(tmp_path / "whole"))


def wait_for_step(step: int, run_dir: Path, run: subprocess.Popen[str]) -> None:
    wait_until(lambda: newest_step(run_dir) >= step, run)


def newest_step(run_dir: Path) -> int:
    names = [path.name for path in (run_dir / "checkpoints").glob("*.ckpt")]
    return max((int(step) for name in names for step in re.findall(r"step=(\d+)", name)), default=0)
