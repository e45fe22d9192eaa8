"""The kernels on a GPU, where there is one; everywhere else they're interpreted and compiled ahead of time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
KERNELS = HERE.parent.parent / "kernels"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_kernels_agree_with_the_naive_formula_and_nothing_waits():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run(
        [sys.executable, HERE / "on_gpu.py"],
        env={**environment, "PYTHONPATH": os.pathsep.join([str(KERNELS), str(HERE)])},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]
