"""What the kernels compile to for GPUs that aren't here: no spills, wide loads, and no load more than the maths needs."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from ahead_of_time import MIXTURES, TARGETS, cases

NVIDIA = TARGETS[:3]
KERNELS = Path(__file__).parent.parent.parent / "kernels"

# A thread has 16 of a block's 4096 logits; a load has 128 bits.
WIDE_LOADS = {"bf16": 2, "fp16": 2, "fp32": 4}

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


# Instructions of the first sweep, of the second and of the gradient, for 512 pairs (16 a thread). At 4.3 TB/s, 132
# multiprocessors and 1.75 GHz, 440 take as long as reading 4 bytes a pair, and 660 as reading 4 and writing 2.
MOST_INSTRUCTIONS = {
    "kl": (320, None, 400),
    "kl + reverse_kl + ce": (380, None, 610),
    "js": (250, 500, 500),
    "js 0.1": (250, 530, 530),
    "tvd": (250, 440, 500),
    "all + ce": (310, 800, 900),
    "ce": (190, None, 280),
}


@pytest.mark.parametrize(("target", "mixture"), [case for case in cases(NVIDIA) if case[1] in MOST_INSTRUCTIONS])
def test_instructions_leave_the_memory_busy(usage, target, mixture):
    first, second, gradient = MOST_INSTRUCTIONS[mixture]
    loops = usage[f"{target}: sums of {mixture}"]["loops"]
    assert loops[0] <= first, "blocks that both rows have in full come first, then the masked ones"
    assert second is None or loops[-1] <= second
    assert usage[f"{target}: gradient of {mixture}"]["instructions"] <= gradient


@pytest.mark.parametrize(("target", "mixture"), [*cases(), *((target, "top-k + ce") for target in TARGETS)])
def test_nothing_is_spilled(usage, target, mixture):
    for kernel in ("sums", "gradient"):
        counts = usage[f"{target}: {kernel} of {mixture}"]
        assert counts["spills"] == 0
        assert counts["stack"] == 0


@pytest.mark.parametrize(("target", "mixture"), cases(NVIDIA))
def test_logits_are_read_once_a_sweep_and_by_128_bits(usage, target, mixture):
    sums, gradient = (usage[f"{target}: {kernel} of {mixture}"] for kernel in ("sums", "gradient"))
    case = MIXTURES[mixture]
    terms, with_targets = len(case.divergences), case.with_targets
    wide = WIDE_LOADS[case.dtypes[0]] + (WIDE_LOADS[case.dtypes[1]] if terms else 0)
    # The code holds both sweeps, each with and without masks; where one is enough, the second is there for rows with
    # excluded tokens.
    assert sums["wide_loads"] == (2 if terms else 1) * 2 * wide
    assert gradient["wide_loads"] == wide
    # What else is read are scalars: the row's weight, factors, target and its logit, in the gradient the four sums.
    assert sums["loads"] - sums["wide_loads"] <= 1 + 2 * terms + 2 * with_targets
    assert gradient["loads"] - gradient["wide_loads"] <= 2 + 4 + terms + 2 * with_targets
    # Two for the gradient, two for the zeros of a row that doesn't count.
    assert gradient["wide_stores"] == gradient["stores"] == 4
    assert sums["wide_stores"] == 0


@pytest.mark.parametrize("target", NVIDIA)
def test_against_a_top_k_teacher_the_student_alone_is_read(usage, target):
    sums, gradient = (usage[f"{target}: {kernel} of top-k + ce"] for kernel in ("sums", "gradient"))
    assert sums["wide_loads"] == gradient["wide_loads"] == WIDE_LOADS["bf16"]
    # The weight, and a byte of bits for each of a thread's two groups of eight.
    assert sums["loads"] - sums["wide_loads"] <= 1 + 2
    assert gradient["wide_stores"] == gradient["stores"] == 4


@pytest.mark.parametrize("mixture", MIXTURES)
def test_amd_reads_and_writes_by_128_bits_too(usage, mixture):
    sums, gradient = (usage[f"gfx942: {kernel} of {mixture}"] for kernel in ("sums", "gradient"))
    case = MIXTURES[mixture]
    # A wavefront is 64 threads wide, so that a thread has half as many logits.
    wide = (WIDE_LOADS[case.dtypes[0]] + (WIDE_LOADS[case.dtypes[1]] if case.divergences else 0)) // 2
    # The four factors of a mixture may come in one load of 128 bits.
    assert (2 if case.divergences else 1) * 2 * wide <= sums["wide_loads"] <= (2 if case.divergences else 1) * 2 * wide + 1
    assert sums["loads"] - sums["wide_loads"] <= 1 + 1 + 2 * case.with_targets
    assert gradient["wide_loads"] == gradient["loads"] == wide
    assert gradient["wide_stores"] == gradient["stores"] == 1


@pytest.mark.parametrize("mixture", ["kl", "kl + reverse_kl + ce", "js", "all + ce", "top-k + ce"])
@pytest.mark.parametrize("target", NVIDIA)
def test_no_gradient_hides_a_nan(usage, target, mixture):
    """The interpreter can't tell: there a maximum of NaN and a number is NaN, on a GPU it's the number."""
    assert usage[f"{target}: gradient of {mixture}"]["nan_dropping"] == 0


def test_an_edited_entry_is_compiled_anew(usage):
    """Triton's cache on disk knows functions that are arguments by their names alone."""
    before, after = usage["keys of an edited entry"]
    assert before != after
