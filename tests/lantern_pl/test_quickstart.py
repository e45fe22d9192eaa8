"""What the README promises of `make quickstart`, held against the real thing."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import REPOSITORY


@pytest.mark.slow
def test_quickstart_keeps_its_promises(tmp_path: Path) -> None:
    """Under five minutes and 6 GB on two cores, and a quarter of the untrained student's divergence or less."""
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    makefile = (REPOSITORY / "Makefile").read_text()
    recipe = makefile.split("\nquickstart:")[1].split("\n\n")[0]
    commands = [line.replace("$(BIN)/lantern", "").split() for line in recipe.splitlines() if "$(BIN)/lantern" in line]
    assert [command[0] for command in commands] == ["data", "fit"]
    start = time.monotonic()
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "lantern_pl", *command],
            cwd=tmp_path,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    seconds = time.monotonic() - start
    peak_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    manifest = json.loads((tmp_path / "runs/quickstart/student/manifest.json").read_text())
    untrained, trained = manifest["metrics"]["untrained"], manifest["metrics"]["trained"]
    print(f"{seconds:.0f} s, {peak_gb:.1f} GB, KL {untrained['kl']:.2f} -> {trained['kl']:.2f}")
    assert trained["kl"] <= untrained["kl"] / 4
    assert peak_gb < 6
    # The promise is 300 s on two idle cores; shared machines vary.
    assert seconds < 300 * float(os.environ.get("LANTERN_TEST_SLOWDOWN", "2"))
