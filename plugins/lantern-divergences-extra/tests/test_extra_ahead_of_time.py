"""The Triton functions compile for GPUs; the interpreter, which the other tests use, takes more than the compiler does."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

NAMES = ["skew_kl", "skew_reverse_kl", "jeffreys", "alpha", "squared_hellinger"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="Triton's wheels carry the tools for x86-64 alone")
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_every_entry_compiles(target):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).parent / "extra_ahead_of_time.py"
    ran = subprocess.run([sys.executable, script, target], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.split("\n")[:-1] == [f"{target} {name}" for name in NAMES]
