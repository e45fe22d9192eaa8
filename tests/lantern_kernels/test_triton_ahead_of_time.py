"""What the kernels compile to for GPUs that aren't here: no spills, wide loads, and no load more than the maths needs."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from ahead_of_time import MIXTURES

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
KERNELS = Path(__file__).parent.parent.parent / "kernels"

# A thread has 16 of a block's 4096 bf16 logits, in two loads of 128 bits per model.
WIDE_LOADS_OF_A_SWEEP = 2 * 2

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="Triton's wheels carry the tools for x86-64 alone")


@pytest.fixture(scope="module")
def usage():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).parent / "ahead_of_time.py"
    ran = subprocess.run(
        [sys.executable, script, *TARGETS],
        env={**environment, "PYTHONPATH": str(KERNELS)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout)


@pytest.mark.parametrize("mixture", [*MIXTURES, "top-k + ce"])
@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_spilled(usage, target, mixture):
    for kernel in ("sums", "gradient"):
        counts = usage[f"{target}: {kernel} of {mixture}"]
        assert counts["spills"] == 0
        assert counts["stack"] == 0


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_logits_are_read_once_a_sweep_and_by_128_bits(usage, target, mixture):
    sums, gradient = (usage[f"{target}: {kernel} of {mixture}"] for kernel in ("sums", "gradient"))
    terms, with_targets = len(MIXTURES[mixture][0]), MIXTURES[mixture][1]
    # The code holds both sweeps; where one is enough, the second is there for rows with excluded tokens.
    assert sums["wide_loads"] == 2 * WIDE_LOADS_OF_A_SWEEP
    assert gradient["wide_loads"] == WIDE_LOADS_OF_A_SWEEP
    # What else is read are scalars: the row's weight, factors, target and its logit, in the gradient the four sums.
    assert sums["loads"] - sums["wide_loads"] <= 1 + 2 * terms + 2 * with_targets
    assert gradient["loads"] - gradient["wide_loads"] <= 2 + 4 + terms + 2 * with_targets
    # Two for the gradient, two for the zeros of a row that doesn't count.
    assert gradient["wide_stores"] == gradient["stores"] == 4
    assert sums["wide_stores"] == 0


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_against_a_top_k_teacher_the_student_alone_is_read(usage, target):
    sums, gradient = (usage[f"{target}: {kernel} of top-k + ce"] for kernel in ("sums", "gradient"))
    assert sums["wide_loads"] == gradient["wide_loads"] == WIDE_LOADS_OF_A_SWEEP // 2
    # The weight, and a byte of bits for each of a thread's two groups of eight.
    assert sums["loads"] - sums["wide_loads"] <= 1 + 2
    assert gradient["wide_stores"] == gradient["stores"] == 4


@pytest.mark.parametrize("mixture", ["kl", "kl + reverse_kl + ce", "top-k + ce"])
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_no_gradient_hides_a_nan(usage, target, mixture):
    """The interpreter can't tell: there a maximum of NaN and a number is NaN, on a GPU it's the number."""
    assert usage[f"{target}: gradient of {mixture}"]["nan_dropping"] == 0


def test_an_edited_entry_is_compiled_anew(usage):
    """Triton's cache on disk knows functions that are arguments by their names alone."""
    before, after = usage["keys of an edited entry"]
    assert before != after
