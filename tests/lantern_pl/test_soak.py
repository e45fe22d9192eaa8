"""A long run's memory and open files stay as they are after its first epochs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from recording import Record
from training_teachers import online, teach

# An hour of a student that makes two steps a second; what it may hold more by then.
HOUR, MOST_MORE_MB = 7200, 100


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        pytest.param("encoder", 600, id="encoder, short"),
        pytest.param("encoder", 7200, id="encoder, long", marks=[pytest.mark.slow, pytest.mark.timeout(3000)]),
        pytest.param("decoder", 2000, id="decoder, long", marks=[pytest.mark.slow, pytest.mark.timeout(3000)]),
    ],
)
def test_memory_and_handles_stay_flat(
    tiny_encoder_config: Path,
    tiny_decoder_config: Path,
    tiny_lm: Path,
    tmp_path: Path,
    kind: str,
    steps: int,
    record: Record,
) -> None:
    config = {"encoder": tiny_encoder_config, "decoder": tiny_decoder_config}[kind]
    teach(config, online(tiny_lm))
    notes = tmp_path / "notes.jsonl"
    callback = {"class_path": "soak_callback.Notes", "init_args": {"path": str(notes), "every": max(10, steps // 100)}}
    # Each epoch validates and saves. Texts short and all of a length, or the longest batch would come late.
    options = (
        f"--trainer.max_steps={steps}",
        f"--trainer.callbacks={json.dumps([callback])}",
        "--trainer.check_val_every_n_epoch=5",
        f"--data.max_length={96 if kind == 'encoder' else 224}",  # a decoder's holds question and answer too
    )
    command = [sys.executable, "-m", "lantern_pl", "fit", "--config", str(config), *options]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LANTERN_ALLOW_IMPORTS": "soak_callback", "PYTHONPATH": path}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr[-3000:]
    noted = [json.loads(line) for line in notes.read_text().splitlines()]
    warm = [each for each in noted if each["step"] >= steps // 3]
    at, megabytes = (np.array([each[name] for each in warm]) for name in ("step", "megabytes"))
    slope = float(np.polyfit(at, megabytes, 1)[0])
    handles = [each["handles"] for each in warm]
    assert len(warm) > 20
    # Noise of the allocator, which is all of it in a short run.
    noise = 6 / (at[-1] - at[0])
    assert slope < MOST_MORE_MB / HOUR + noise, noted
    assert max(handles) - min(handles) <= 2, noted
    record(
        f"Memory and open files of a fit of an {kind}"
        if kind == "encoder"
        else "Memory and open files of a fit of a decoder",
        found=f"{steps:,} steps: {1000 * slope:+.2f} MiB per 1,000 steps, {min(handles)} to {max(handles)} open files",
        goal=f"less than {MOST_MORE_MB} MiB an hour at 2 steps a second, files flat",
    )
