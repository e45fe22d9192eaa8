"""The first-party divergences' two numbers of one vocabulary entry, as Triton functions.

    entry(log_p, log_q, p, q, parameters) -> (v, ∂v/∂log q)

in float32, with `parameters` a tuple of compile-time numbers. The kernels take any tuple of such functions and fuse them.

Each v of the ``_entry`` functions is a sum of terms that are ≥ 0 by themselves and computed without cancellation, so that
it keeps its relative accuracy as the student converges. It takes three times the instructions of a ``_plain`` one, and the
kernels wait for instructions, not for memory, then. A plain v is wrong by some 10⁻⁷ as an absolute number; its slope is as
accurate, since log p − log q has an error of 10⁻⁶ already as the difference of two float32 numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl

from lantern_kernels.gpu.arithmetic import LN_2, LOG2_E, at_least, exp2, log2


def sources(entries: Sequence[Any]) -> int:
    """A number that changes with the code of any of the entry functions.

    Triton's cache on disk tells functions that are arguments apart by module and name alone: without this, an edited or
    updated entry would go on running as it was compiled before. The interpreter has no cache, and gets 0.
    """
    keys = [getattr(entry, "cache_key", "") for entry in entries]
    return int(hashlib.sha256("-".join(keys).encode()).hexdigest()[:12], 16) if any(keys) else 0


@triton.jit
def excess(x, e):
    """eˣ − 1 − x ≥ 0, given e = eˣ: by its series where the difference would cancel."""
    series = x * x * (0.5 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x * (1 / 720 + x / 5040)))))
    return tl.where(tl.abs(x) < 0.5, series, e - 1.0 - x)


@triton.jit
def expm1(x, e):
    """eˣ − 1, given e = eˣ."""
    series = x * (1.0 + x * (0.5 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x * (1 / 720 + x / 5040))))))
    return tl.where(tl.abs(x) < 0.5, series, e - 1.0)


@triton.jit
def log1p(y):
    """log(1 + y) for y > −1. Source: Higham, Accuracy and Stability of Numerical Algorithms, section 1.14.1."""
    u = 1.0 + y
    return tl.where(u == 1.0, y, tl.log(u) * (y / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def kl_entry(log_p, log_q, p, q, parameters: tl.constexpr):
    """KL(p‖q), v = p·(x − 1 + e⁻ˣ) with x = log(p/q)."""
    x = log_p - log_q
    near = p * excess(-x, tl.exp(-x))
    # Where p is much smaller than q, e⁻ˣ overflows; p·e⁻ˣ is q.
    return tl.where(tl.abs(x) < 1.0, near, p * x + (q - p)), q - p


@triton.jit
def reverse_kl_entry(log_p, log_q, p, q, parameters: tl.constexpr):
    """KL(q‖p), v = q·(eˣ − 1 − x) with x = log(p/q)."""
    x = log_p - log_q
    near = q * excess(x, tl.exp(x))
    return tl.where(tl.abs(x) < 1.0, near, (p - q) - q * x), -q * x


@triton.jit
def log_of_mixture(x, beta: tl.constexpr, ASSEMBLY: tl.constexpr):
    """λ = log(m/q) = log(β·eˣ + 1 − β), and x − λ = log(p/m), which would cancel where x is large.

    Both over the larger of eˣ and 1: nothing overflows, nor is 0 for any β.
    """
    smaller = exp2(tl.abs(x) * -LOG2_E, ASSEMBLY)
    share = tl.where(x > 0, smaller * (1 - beta) + beta, smaller * beta + (1 - beta))
    log_share = log2(share, ASSEMBLY) * LN_2
    return at_least(x, 0.0) + log_share, tl.minimum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) - log_share


@triton.jit
def js_entry(log_p, log_q, p, q, parameters: tl.constexpr):
    """β·KL(p‖m) + (1−β)·KL(q‖m), v = β·p·(e^(λ−x) − 1 − λ + x) + (1−β)·q·(e^λ − 1 − λ) with λ = log(m/q)."""
    beta: tl.constexpr = parameters[0]
    x = log_p - log_q
    is_near = tl.abs(x) < 1.0
    # Beyond it q is lost in the rounding of p, and log(p/m) = x − λ has reached −log β: x may stop.
    x = tl.minimum(x, 40.0, propagate_nan=tl.PropagateNan.ALL)
    if beta < 0.5:
        lam = log1p(beta * expm1(x, tl.exp(x)))
    else:
        # For β near 1 and x far below 0, β·(eˣ − 1) rounds to −1, which has no log1p.
        x_near = tl.where(is_near, x, 0.0)
        far, _ = log_of_mixture(x, beta, False)
        lam = tl.where(is_near, log1p(beta * expm1(x_near, tl.exp(x_near))), far)
    plain = beta * p * (x - lam) - (1 - beta) * q * lam
    near = beta * p * excess(lam - x, tl.exp(lam - x)) + (1 - beta) * q * excess(lam, tl.exp(lam))
    return tl.where(is_near, near, plain), (beta - 1) * q * lam


@triton.jit
def tvd_entry(log_p, log_q, p, q, parameters: tl.constexpr):
    """½·|p − q|."""
    difference = q - p
    sign = tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, 0.0))
    return 0.5 * tl.abs(difference), 0.5 * q * sign


@triton.jit
def kl_plain(log_p, log_q, p, q, parameters: tl.constexpr):
    """v = p·x + (q − p)."""
    slope = q - p
    return p * (log_p - log_q) + slope, slope


@triton.jit
def reverse_kl_plain(log_p, log_q, p, q, parameters: tl.constexpr):
    """v = −q·x − (q − p)."""
    slope = q * (log_q - log_p)
    return slope - (q - p), slope


@triton.jit
def js_plain(log_p, log_q, p, q, parameters: tl.constexpr):
    """v = β·p·(x − λ) − (1−β)·q·λ."""
    return js_of(log_p, log_q, p, q, parameters[0], False)


@triton.jit
def js_assembly(log_p, log_q, p, q, parameters: tl.constexpr):
    """As `js_plain`, in NVIDIA's approximations."""
    return js_of(log_p, log_q, p, q, parameters[0], True)


@triton.jit
def js_of(log_p, log_q, p, q, beta: tl.constexpr, ASSEMBLY: tl.constexpr):
    # λ is about β·x near convergence, and its error 10⁻⁷: a small β would lose the gradient in it.
    if beta < 0.1:
        value, slope = js_entry(log_p, log_q, p, q, (beta,))
        return value, slope
    lam, rest = log_of_mixture(log_p - log_q, beta, ASSEMBLY)
    # The numbers come second: the interpreter takes a product for a number if its first factor is.
    slope = q * (beta - 1) * lam
    return p * beta * rest + slope, slope


PLAIN = {kl_entry: kl_plain, reverse_kl_entry: reverse_kl_plain, js_entry: js_plain}
ASSEMBLY = PLAIN | {js_entry: js_assembly}


def plain(entry: Any, assembly: bool) -> Any:
    """The plain form of an entry function, in PTX where `assembly`; others' functions have one form."""
    return (ASSEMBLY if assembly else PLAIN).get(entry, entry)
