"""What the README promises of `make quickstart`, held against the real thing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import PEAK_OF_LANTERN, REPOSITORY


@pytest.mark.slow
@pytest.mark.alone
def test_quickstart_keeps_its_promises(tmp_path: Path) -> None:
    """Under five minutes and 6 GB on two cores, and a quarter of the untrained student's divergence or less."""
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    makefile = (REPOSITORY / "Makefile").read_text()
    recipe = makefile.split("\nquickstart:")[1].split("\n\n")[0]
    commands = [line.replace("$(BIN)/lantern", "").split() for line in recipe.splitlines() if "$(BIN)/lantern" in line]
    assert [command[0] for command in commands] == ["data", "fit"]
    start = time.monotonic()
    peaks_gb = []
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-c", PEAK_OF_LANTERN, *command],
            cwd=tmp_path,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        peaks_gb.append(int(done.stdout.split()[-1]) / 2**20)
    seconds, peak_gb = time.monotonic() - start, max(peaks_gb)
    manifest = json.loads((tmp_path / "runs/quickstart/student/manifest.json").read_text())
    untrained, trained = manifest["metrics"]["untrained"], manifest["metrics"]["trained"]
    print(f"{seconds:.0f} s, {peak_gb:.1f} GB, KL {untrained['kl']:.2f} -> {trained['kl']:.2f}")
    assert trained["kl"] <= untrained["kl"] / 4
    assert peak_gb < 6
    # On two idle cores; a machine that others use too may say by how much it is slower.
    assert seconds < 300 * float(os.environ.get("LANTERN_TEST_SLOWDOWN", "1"))
