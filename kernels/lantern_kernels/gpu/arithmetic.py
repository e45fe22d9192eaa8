"""What the kernels are written in: reading logits, exponentials and logarithms by one instruction, maxima that keep NaN.

ASSEMBLY says whether NVIDIA's approximations may be written out as PTX. Triton's own `exp2` handles subnormal numbers, at
four instructions more, and its `log2` is software; neither matters to probabilities. Triton's interpreter and AMD's
compiler don't know PTX, and take Triton's own.
"""

import triton
import triton.language as tl

FLOOR = tl.constexpr(-1e4)
LOWEST = tl.constexpr(-1e30)
"""Starts a running maximum: finite even in units of a low temperature, so that a difference with −∞ is no NaN."""
GROUP = tl.constexpr(8)
"""Entries that share a running maximum: a thread's own, 128 bits of bf16."""
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def exp2(x, ASSEMBLY: tl.constexpr):
    """2ˣ to 2 units in the last place; 0 below 2⁻¹²⁶."""
    if ASSEMBLY:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        return tl.exp2(x)


@triton.jit
def log2(x, ASSEMBLY: tl.constexpr):
    """log₂ x for x > 2⁻¹²⁶, with an absolute error of 2⁻²² where x is about 1."""
    if ASSEMBLY:
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        return tl.log2(x)


@triton.jit
def exp(x, ASSEMBLY: tl.constexpr):
    """eˣ for x ≤ 0, or not much above."""
    return exp2(x * LOG2_E, ASSEMBLY)


@triton.jit
def at_least(x, lowest):
    """As tl.maximum, but NaN stays NaN: on a GPU a maximum of NaN and a number is the number."""
    return tl.maximum(x, lowest, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def read(
    row, columns, positions, scale, softcap,
    SCALED: tl.constexpr, CAPPED: tl.constexpr, MASKED: tl.constexpr, ASSEMBLY: tl.constexpr,
):  # fmt: skip
    """Logits at `positions` in float32, ``softcap·tanh(scale·x/softcap)``.

    MASKED where some of the positions may be beyond the row's columns: they're −∞.
    """
    if MASKED:
        logits = tl.load(row + positions, mask=positions < columns, other=-float("inf")).to(tl.float32)
    else:
        logits = tl.load(row + positions).to(tl.float32)
    if SCALED:
        logits *= scale
    if CAPPED:
        # tanh by the exponential of −2|y|, which can't overflow. An excluded token stays excluded.
        y = logits * (1.0 / softcap)
        e = exp(-2.0 * tl.abs(y), ASSEMBLY)
        size = softcap * (1.0 - e) / (1.0 + e)
        logits = tl.where(logits == -float("inf"), logits, tl.where(y < 0, -size, size))
    return logits


@triton.jit
def positions_from(start, BLOCK: tl.constexpr):
    """``[BLOCK / GROUP, GROUP]`` neighbouring positions."""
    return start + tl.arange(0, BLOCK // GROUP)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
