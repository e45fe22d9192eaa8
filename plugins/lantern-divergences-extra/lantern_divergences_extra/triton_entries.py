"""The two numbers of `divergences` as Triton functions: entry(log_p, log_q, p, q, parameters) -> (v, ∂v/∂log q), in float32.

The first functions have likenesses in lantern_kernels, which aren't part of what it promises: a few lines of our own
keep this distribution from breaking when they change.
"""
# mypy: ignore-errors
# Triton's language: what looks like Python is compiled by another compiler.

import triton
import triton.language as tl


@triton.jit
def expm1_near(y):
    """eʸ − 1 for |y| ≤ ½, where the difference would cancel."""
    return y * (1.0 + y * (0.5 + y * (1 / 6 + y * (1 / 24 + y * (1 / 120 + y * (1 / 720 + y / 5040))))))


@triton.jit
def excess_near(y):
    """eʸ − 1 − y ≥ 0 for |y| ≤ ½, likewise."""
    return y * y * (0.5 + y * (1 / 6 + y * (1 / 24 + y * (1 / 120 + y * (1 / 720 + y / 5040)))))


@triton.jit
def log1p(y):
    """log(1 + y) for y > −1. Source: Higham, Accuracy and Stability of Numerical Algorithms, section 1.14.1."""
    u = 1.0 + y
    return tl.where(u == 1.0, y, tl.log(u) * (y / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def gap(a, b, log_ratio):
    """a − b, given log(b/a): accurate where the two nearly cancel."""
    return tl.where(tl.abs(log_ratio) < 0.5, -a * expm1_near(log_ratio), a - b)


@triton.jit
def kl_to_mixture(a, b, log_ratio, alpha: tl.constexpr):
    """v of KL(a‖m) with m = α·a + (1−α)·b, log(m/a), and 1 − a/m, given log(b/a)."""
    near = tl.abs(log_ratio) < 0.5
    # Beyond 40, a is lost in the rounding of b.
    growth = tl.where(near, expm1_near(log_ratio), tl.exp(tl.minimum(log_ratio, 40.0)) - 1.0)
    u = growth * (1 - alpha)  # m/a − 1
    lam = log1p(u)
    return tl.where(near, a * excess_near(lam), (b - a) * (1 - alpha) - a * lam), lam, u / (1.0 + u)


@triton.jit
def skew_kl_entry(log_p, log_q, p, q, parameters: tl.constexpr):
    """KL(p‖m), m = αp + (1−α)q."""
    alpha: tl.constexpr = parameters[0]
    value, _, rest = kl_to_mixture(p, q, log_q - log_p, alpha)
    return value, q * rest * (1 - alpha)


@triton.jit
def skew_reverse_kl_entry(log_p, log_q, p, q, parameters: tl.constexpr):
    """KL(q‖m), m = αq + (1−α)p."""
    alpha: tl.constexpr = parameters[0]
    value, lam, rest = kl_to_mixture(q, p, log_p - log_q, alpha)
    return value, q * (rest * alpha - lam)


@triton.jit
def jeffreys_entry(log_p, log_q, p, q, parameters: tl.constexpr):
    """(p − q)·log(p/q)."""
    x = log_p - log_q
    difference = gap(q, p, x)
    return -x * difference, difference - q * x


@triton.jit
def alpha_entry(log_p, log_q, p, q, parameters: tl.constexpr):
    """(q − g)/α + (p − g)/(1−α) with g = p^α·q^(1−α).

    Near convergence g·[(e^y − 1 − y)/(1−α) + (e^z − 1 − z)/α] with y = (1−α)·x and z = −α·x, x = log(p/q).
    """
    alpha: tl.constexpr = parameters[0]
    x = log_p - log_q
    g = tl.exp(log_p * alpha + log_q * (1 - alpha))
    slope = gap(q, g, x * alpha) / alpha
    near = g * (excess_near(x * (1 - alpha)) / (1 - alpha) + excess_near(x * -alpha) / alpha)
    return tl.where(tl.abs(x) < 0.5, near, slope + gap(p, g, x * (alpha - 1)) / (1 - alpha)), slope


@triton.jit
def squared_hellinger_entry(log_p, log_q, p, q, parameters: tl.constexpr):
    """½·(√p − √q)²."""
    root_p = tl.exp(0.5 * log_p)
    root_q = tl.exp(0.5 * log_q)
    difference = gap(root_q, root_p, 0.5 * (log_p - log_q))
    return 0.5 * difference * difference, 0.5 * root_q * difference
