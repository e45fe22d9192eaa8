"""Checkpoints survive kills, full disks and damage; a resume takes the newest whole one, and says what it passed over."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from recording import Record
from support import Ran

from lantern_pl.checkpoints import DurableCheckpoints, fault_of, newest_good, read_checkpoint
from lantern_pl.errors import UserError

Lantern = Callable[..., Ran]
QUICK = ("--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0", "--trainer.max_steps=2")


def save(path: Path, step: int) -> None:
    DurableCheckpoints().save_checkpoint({"global_step": step, "weights": torch.full((1000,), float(step))}, path)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "kills", [pytest.param(10, id="few"), pytest.param(100, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def test_whenever_it_is_killed_the_last_whole_checkpoint_is_found(tmp_path: Path, kills: int, record: Record) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    # On another file system, from which a rename would be a copy.
    elsewhere = {"TMPDIR": "/dev/shm"} if Path("/dev/shm").is_dir() else {}
    script = Path(__file__).parent / "save_and_kill.py"
    command = [sys.executable, str(script), str(folder), str(kills)]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **elsewhere})
    assert ran.returncode == 0, ran.stderr
    rounds = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(rounds) == kills
    for found in rounds:
        assert found["whole"], found
        # What was said to be saved is there; one more may be, whose saving ended before it could be said.
        assert found["saved"] <= found["found"] <= found["saved"] + 1, found
        assert not found["skipped"], found
        assert found["unfinished"] <= 2, found  # a checkpoint and its hash, until the next is saved
    assert any(found["unfinished"] for found in rounds), "no kill came during a saving"
    save(folder / "step=0.ckpt", 0)
    assert not list(folder.glob(".*"))
    record(
        "SIGKILL at random moments of saving a checkpoint, TMPDIR on another file system",
        found=f"{kills} kills, 0 unreadable resumes",
        goal="0 unreadable",
    )


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "one.ckpt"
    save(path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(UserError, match=r"can't write .*one\.ckpt: File too large"):
            save(path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_checkpoint(newest_good(tmp_path)[0])["global_step"] == 1
    assert not list(tmp_path.glob(".*"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def of_another(path: Path) -> None:
    shutil.copy(path.with_name("step=1.ckpt"), path)


@pytest.mark.parametrize("harm", [flip_a_byte, cut, empty, of_another])
def test_damage_is_seen_and_an_older_checkpoint_taken(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    for step in (1, 2):
        save(tmp_path / f"step={step}.ckpt", step)
    assert newest_good(tmp_path) == (tmp_path / "step=2.ckpt", [])
    harm(tmp_path / "step=2.ckpt")
    path, skipped = newest_good(tmp_path)
    assert path == tmp_path / "step=1.ckpt"
    assert skipped == ["step=2.ckpt is damaged: its content isn't what step=2.ckpt.sha256 says"]
    with pytest.raises(UserError, match=r"step=2\.ckpt' is damaged"):
        DurableCheckpoints().load_checkpoint(tmp_path / "step=2.ckpt")
    flip_a_byte(tmp_path / "step=1.ckpt")
    with pytest.raises(UserError, match=r"No checkpoint in .* is whole: step=.*; step=.*Start the run anew"):
        newest_good(tmp_path)


def test_one_without_its_hash_is_tried(tmp_path: Path) -> None:
    save(tmp_path / "step=1.ckpt", 1)
    (tmp_path / "step=1.ckpt.sha256").unlink()
    assert fault_of(tmp_path / "step=1.ckpt") is None
    cut(tmp_path / "step=1.ckpt")
    assert "can't be read" in str(fault_of(tmp_path / "step=1.ckpt"))


def test_the_last_is_the_one_of_most_steps_whatever_its_files_time(tmp_path: Path) -> None:
    for name, step in (("b", 2), ("c", 3), ("a", 1)):
        save(tmp_path / f"{name}.ckpt", step)
    assert newest_good(tmp_path) == (tmp_path / "c.ckpt", [])
    os.utime(tmp_path / "c.ckpt", (1, 1))
    assert newest_good(tmp_path) == (tmp_path / "c.ckpt", [])
    save(tmp_path / "d.ckpt", 3)
    assert newest_good(tmp_path)[0] == tmp_path / "d.ckpt"
    os.utime(tmp_path / "d.ckpt", (0, 0))
    assert newest_good(tmp_path)[0] == tmp_path / "c.ckpt"
    cut(tmp_path / "c.ckpt")  # of which only the name may tell how far it was
    path, skipped = newest_good(tmp_path)
    assert path == tmp_path / "d.ckpt"
    assert [said.partition(" ")[0] for said in skipped] == ["c.ckpt"]


def test_one_without_its_hash_is_used_and_said_to_be(lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path) -> None:
    assert lantern("fit", "--config", tiny_encoder_config, *QUICK).code == 0
    good, _ = newest_good(tmp_path / "run" / "checkpoints")
    good.with_name(f"{good.name}.sha256").unlink()
    with pytest.warns(UserWarning, match=r"has no \.sha256 beside it"):
        ran = lantern("fit", "--config", tiny_encoder_config, *QUICK[:-1], "--trainer.max_steps=3", "--ckpt_path=last")
    assert ran.code == 0, ran.err


def test_a_full_disk_within_a_fit_is_said_and_the_run_goes_on_later(
    tiny_encoder_config: Path, tmp_path: Path, record: Record
) -> None:
    """In a process of its own, whose files may not grow beyond what one checkpoint takes."""
    command = [sys.executable, "-m", "lantern_pl", "fit", "--config", str(tiny_encoder_config), *QUICK[:-1]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.run([*command, "--trainer.max_steps=1"], capture_output=True, text=True, env=environment)
    assert first.returncode == 0, first.stderr
    good, _ = newest_good(tmp_path / "run" / "checkpoints")
    limit = good.stat().st_size // 2
    again = [*command, "--trainer.max_steps=3", "--ckpt_path=last"]
    full = subprocess.run(
        again,
        capture_output=True,
        text=True,
        env=environment,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert full.returncode == 2, full.stderr
    assert "can't write" in full.stderr
    assert "File too large" in full.stderr
    assert "Traceback" not in full.stderr
    assert newest_good(tmp_path / "run" / "checkpoints") == (good, [])
    last = subprocess.run(again, capture_output=True, text=True, env=environment)
    assert last.returncode == 0, last.stderr
    record(
        "A disk that is full when a fit saves",
        found="exit 2, the last good checkpoint stays, and the run goes on from it",
        goal="the last good one is kept",
    )


def test_a_removed_checkpoint_takes_its_hash_along(tmp_path: Path) -> None:
    save(tmp_path / "step=1.ckpt", 1)
    DurableCheckpoints().remove_checkpoint(tmp_path / "step=1.ckpt")
    assert not list(tmp_path.iterdir())


def test_last_passes_over_a_damaged_checkpoint_and_says_so(
    lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path
) -> None:
    assert lantern("fit", "--config", tiny_encoder_config, *QUICK).code == 0
    checkpoints = tmp_path / "run" / "checkpoints"
    good, _ = newest_good(checkpoints)
    newer = checkpoints / "epoch=9-step=99.ckpt"
    for suffix in ("", ".sha256"):
        shutil.copy(f"{good}{suffix}", f"{newer}{suffix}")
    flip_a_byte(newer)
    said = f"{newer.name} is damaged: its content isn't what {newer.name}.sha256 says: going on from {good.name}"
    with pytest.warns(UserWarning, match=re.escape(said)):
        ran = lantern("fit", "--config", tiny_encoder_config, *QUICK[:-1], "--trainer.max_steps=3", "--ckpt_path=last")
    assert ran.code == 0, ran.err
    newer_still, _ = newest_good(checkpoints)
    assert read_checkpoint(newer_still)["global_step"] == 3
    given = lantern("fit", "--config", tiny_encoder_config, *QUICK, f"--ckpt_path={newer}")
    assert given.code == 2
    assert "is damaged" in given.err
