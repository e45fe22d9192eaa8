"""The first-party divergences' two numbers of one vocabulary entry, as Triton functions.

    entry(log_p, log_q, p, q, parameters) -> (v, ∂v/∂log q)

in float32, with `parameters` a tuple of compile-time numbers. The kernels take any tuple of such functions and fuse them.
Each v here is a sum of terms that are ≥ 0 by themselves and computed without cancellation, so that it keeps its relative
accuracy as the student converges; the plain forms lose it (KL = 5·10⁻⁷: wrong by half and more).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl


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
def js_entry(log_p, log_q, p, q, parameters: tl.constexpr):
    """β·KL(p‖m) + (1−β)·KL(q‖m), v = β·p·(e^(λ−x) − 1 − λ + x) + (1−β)·q·(e^λ − 1 − λ) with λ = log(m/q)."""
    beta: tl.constexpr = parameters[0]
    # Beyond it q is lost in the rounding of p, and log(p/m) = x − λ has reached −log β: x may stop.
    x = tl.minimum(log_p - log_q, 40.0)
    lam = log1p(beta * expm1(x, tl.exp(x)))
    plain = beta * p * (x - lam) - (1 - beta) * q * lam
    near = beta * p * excess(lam - x, tl.exp(lam - x)) + (1 - beta) * q * excess(lam, tl.exp(lam))
    return tl.where(tl.abs(x) < 1.0, near, plain), (beta - 1) * q * lam


@triton.jit
def tvd_entry(log_p, log_q, p, q, parameters: tl.constexpr):
    """½·|p − q|."""
    difference = q - p
    sign = tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, 0.0))
    return 0.5 * tl.abs(difference), 0.5 * q * sign
