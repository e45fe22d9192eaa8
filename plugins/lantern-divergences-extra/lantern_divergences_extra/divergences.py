"""Five f-divergences of the teacher's distribution p and the student's q, in nats.

Each v is ≥ 0 for every vocabulary entry: terms that sum to zero over the vocabulary are added to the textbook's. Near
convergence v is of second order in x = log(p/q), and so small that the rounding of p and q would drown it; differences of
probabilities are taken from x there.
"""

import math
from typing import Any

import torch
from torch import Tensor

from lantern_pl.divergences import PointwiseDivergence

NEAREST = 1e-4
"""How near α may come to 0 and 1. In float32 there is little left to tell it from its limit beyond."""

# Beyond it the smaller of p and q is lost in the rounding of the larger, even in float64, and an exponential of the
# difference of two log-probabilities, which may be 10⁴, hasn't overflowed yet.
_FARTHEST = 40.0


class SkewKL(PointwiseDivergence):
    """Skew KL, KL(teacher‖m) with m = α·teacher + (1−α)·student: forward KL, but at most −log α.

    The teacher's share of m keeps it away from 0, so that a token that the student rules out costs a limited amount, and the
    gradient's ratio p/m is at most 1/α. For α → 0 it's `kl`. Source: DistiLLM, arXiv 2402.03898, whose code has α = 0.1.

    Args:
        alpha: the teacher's share of m, from 0.0001 to 0.9999.
    """

    lantern_api = 1
    name = "skew_kl"

    def __init__(self, alpha: float = 0.1) -> None:
        self.alpha = _checked(alpha, "the teacher's share of the mixture; for less use kl, towards 1 it vanishes")
        self.upper_bound = -math.log(self.alpha)

    def value_and_slope(self, log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        value, _, rest = _kl_to_mixture(p, q, log_q - log_p, self.alpha)
        return value, (1 - self.alpha) * q * rest

    def triton_entry(self) -> tuple[Any, tuple[float, ...]]:
        from lantern_divergences_extra.triton_entries import skew_kl_entry

        return skew_kl_entry, (self.alpha,)


class SkewReverseKL(PointwiseDivergence):
    """Skew reverse KL, KL(student‖m) with m = α·student + (1−α)·teacher: reverse KL, but at most −log α.

    `skew_kl` with the two distributions swapped. A token that the teacher rules out costs a limited amount. For α → 0 it's
    `reverse_kl`. Source: DistiLLM, arXiv 2402.03898, whose code has α = 0.1.

    Args:
        alpha: the student's share of m, from 0.0001 to 0.9999.
    """

    lantern_api = 1
    name = "skew_reverse_kl"

    def __init__(self, alpha: float = 0.1) -> None:
        self.alpha = _checked(alpha, "the student's share of the mixture; for less use reverse_kl, towards 1 it vanishes")
        self.upper_bound = -math.log(self.alpha)

    def value_and_slope(self, log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        value, lam, rest = _kl_to_mixture(q, p, log_p - log_q, self.alpha)
        return value, q * (self.alpha * rest - lam)

    def triton_entry(self) -> tuple[Any, tuple[float, ...]]:
        from lantern_divergences_extra.triton_entries import skew_reverse_kl_entry

        return skew_reverse_kl_entry, (self.alpha,)


class Jeffreys(PointwiseDivergence):
    """Jeffreys, KL(teacher‖student) + KL(student‖teacher) = Σ (p − q)·log(p/q), their sum and not their mean: symmetric.

    Source: H. Jeffreys, An invariant form for the prior probability in estimation problems, Proceedings of the Royal
    Society A 186 (1946).
    """

    lantern_api = 1
    name = "jeffreys"

    def value_and_slope(self, log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        x = log_p - log_q
        gap = _gap(q, p, x)
        return -x * gap, gap - q * x

    def triton_entry(self) -> tuple[Any, tuple[float, ...]]:
        from lantern_divergences_extra.triton_entries import jeffreys_entry

        return jeffreys_entry, ()


class Alpha(PointwiseDivergence):
    """Amari's α-divergence, (1 − Σ p^α·q^(1−α)) / (α·(1−α)), p the teacher's: between `reverse_kl` (α → 0) and `kl` (α → 1).

    Source: A. Cichocki and S. Amari, Families of Alpha- Beta- and Gamma-Divergences, Entropy 12 (2010), in whose form the
    terms −αp + (α−1)q make it ≥ 0 entry by entry. Amari's older parameter, from −1 to 1, is 1 − 2α.
    At α = ½ it's symmetric, and four times `squared_hellinger`. It's at most 1/(α·(1−α)).

    Args:
        alpha: from 0.0001 to 0.9999; the larger, the more the student is to cover all that the teacher says. Outside of 0
            to 1 the divergence exists, but grows like a power of p/q, beyond what float32 holds.
    """

    lantern_api = 1
    name = "alpha"

    def __init__(self, alpha: float = 0.5) -> None:
        self.alpha = _checked(alpha, "the exponent of the teacher's p; for less use reverse_kl, for more kl")
        self.upper_bound = 1 / (self.alpha * (1 - self.alpha))

    def value_and_slope(self, log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        # With the geometric mean g = p^α·q^(1−α), v = (q − g)/α + (p − g)/(1−α).
        x, alpha, beta = log_p - log_q, self.alpha, 1 - self.alpha
        g = (alpha * log_p + beta * log_q).exp()
        slope = _gap(q, g, alpha * x) / alpha
        return slope + _gap(p, g, -beta * x) / beta, slope

    def triton_entry(self) -> tuple[Any, tuple[float, ...]]:
        from lantern_divergences_extra.triton_entries import alpha_entry

        return alpha_entry, (self.alpha,)


class SquaredHellinger(PointwiseDivergence):
    """Squared Hellinger distance, ½·Σ (√p − √q)² = 1 − Σ √(p·q): symmetric, at most 1.

    The gradient fades where the two have little in common: start it from a student that resembles the teacher. Source:
    E. Hellinger, Neue Begründung der Theorie quadratischer Formen von unendlichvielen Veränderlichen, Journal für die reine
    und angewandte Mathematik 136 (1909), with the factor ½ that makes the root a distance between 0 and 1.
    """

    lantern_api = 1
    name = "squared_hellinger"
    upper_bound = 1.0

    def value_and_slope(self, log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        # Of log-probabilities, since p itself underflows long before √p does.
        root_p, root_q = (log_p / 2).exp(), (log_q / 2).exp()
        gap = _gap(root_q, root_p, (log_p - log_q) / 2)
        return 0.5 * gap * gap, 0.5 * root_q * gap

    def triton_entry(self) -> tuple[Any, tuple[float, ...]]:
        from lantern_divergences_extra.triton_entries import squared_hellinger_entry

        return squared_hellinger_entry, ()


def _checked(alpha: float, meaning: str) -> float:
    if not NEAREST <= alpha <= 1 - NEAREST:
        raise ValueError(f"alpha is {alpha!r}; expected a number from {NEAREST:g} to {1 - NEAREST:g}, {meaning}")
    return float(alpha)


def _gap(a: Tensor, b: Tensor, log_ratio: Tensor) -> Tensor:
    """a − b, given log(b/a): accurate where the two nearly cancel."""
    return torch.where(log_ratio.abs() < 1, -a * log_ratio.clamp(-1, 1).expm1(), a - b)


def _kl_to_mixture(a: Tensor, b: Tensor, log_ratio: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """v of KL(a‖m) with m = α·a + (1−α)·b, λ = log(m/a), and 1 − a/m, given log(b/a).

    v = m − a − a·λ. m itself is never formed: it underflows where both distributions do.
    """
    u = (1 - alpha) * log_ratio.clamp(max=_FARTHEST).expm1()  # m/a − 1
    lam = u.log1p()
    rise = torch.where(log_ratio.abs() < 1, a * u, (1 - alpha) * (b - a))
    return rise - a * lam, lam, u / (1 + u)
