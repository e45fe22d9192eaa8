"""Estimates with intervals and p values. The unit is the candidate: pairs of one candidate don't count as independent."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
POWER = 0.8
"""With which probability an effect of the detectable size is found."""


@dataclass(frozen=True)
class Mean:
    """A mean over pairs: its value, the variance of that, and how many candidates the pairs are of.

    at_edge: whether it is a rate of exactly 0 or 1, whose variance can't be seen in the sample.
    """

    value: float
    variance: float
    units: int
    pairs: int
    at_edge: bool = False


@dataclass(frozen=True)
class Estimate:
    """An estimated difference or ratio, its interval, the two-sided p value of no difference, and candidates behind it.

    error: the standard error, of the logarithm for a ratio.
    """

    value: float
    low: float
    high: float
    p: float
    units: int
    error: float


def cluster_mean(values: Floats, clusters: NDArray[np.int64]) -> Mean:
    """The mean of `values` [n] whose rows of one cluster hang together.

    The variance is that of a ratio of two sums over clusters, linearised (Cochran, Sampling Techniques, section 11.7).
    A rate of exactly 0 or 1 gets the variance of one with half a candidate added to either side (Agresti and Coull).
    """
    _, index = np.unique(clusters, return_inverse=True)
    sums, sizes = np.bincount(index, values), np.bincount(index)
    units, n = len(sizes), len(values)
    value = float(values.mean())
    if value in (0.0, 1.0) and set(np.unique(values)) <= {0.0, 1.0}:
        smoothed = (value * units + 0.5) / (units + 1)
        return Mean(value, smoothed * (1 - smoothed) / (units + 1), units, n, at_edge=True)
    residuals = sums - value * sizes
    variance = float(units / max(units - 1, 1) * (residuals**2).sum() / n**2)
    return Mean(value, variance, units, n)


def difference(first: Mean, second: Mean, confidence: float) -> Estimate:
    """first - second, of disjoint candidates (Welch's t)."""
    variance = first.variance + second.variance
    return t_estimate(
        first.value - second.value,
        variance,
        _welch(first.variance, first.units, second.variance, second.units),
        min(first.units, second.units),
        confidence,
        _least_p(first.units, second.units),
    )


def rate_ratio(first: Mean, second: Mean, confidence: float) -> Estimate:
    """first / second for rates of disjoint candidates, by the delta method on its logarithm (Katz and others 1978)."""
    logs, variances = [], []
    for rate in (first, second):
        shown = (rate.value * rate.units + 0.5) / (rate.units + 1) if rate.at_edge else rate.value
        logs.append(math.log(shown))
        variances.append(rate.variance / shown**2)
    of_log = t_estimate(
        logs[0] - logs[1],
        sum(variances),
        _welch(variances[0], first.units, variances[1], second.units),
        min(first.units, second.units),
        confidence,
        _least_p(first.units, second.units),
    )
    value = first.value / second.value if second.value else 1.0
    return Estimate(value, math.exp(of_log.low), math.exp(of_log.high), of_log.p, of_log.units, of_log.error)


def t_estimate(value: float, variance: float, freedom: float, units: int, confidence: float, least_p: float) -> Estimate:
    """An interval and a p value by Student's t; `freedom` its degrees. A sample of few units can't give less than
    `least_p`, whatever its variance."""
    error = math.sqrt(variance)
    if freedom <= 0:
        return Estimate(value, -math.inf, math.inf, 1.0, units, math.inf)
    # Rounding alone: the same shift, or none, for everyone.
    constant = error < 1e-12
    p = float(abs(value) < 1e-12) if constant else float(2 * stats.t.sf(abs(value) / error, freedom))
    reach = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    return Estimate(value, value - reach, value + reach, min(1.0, max(p, least_p)), units, error)


def sign_test_least(units: int) -> float:
    """The smallest p value that the signs of so many independent differences can give."""
    return float(2.0 ** (1 - units))


def holm(ps: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979): with those below α called findings, the probability of even one
    false finding is at most α, however the tests hang together."""
    adjusted = [1.0] * len(ps)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = highest
    return adjusted


def wilson(count: int, n: int, confidence: float) -> tuple[float, float]:
    """The interval of a rate (Wilson 1927); all of [0, 1] for n = 0."""
    if n == 0:
        return 0.0, 1.0
    z = float(stats.norm.ppf((1 + confidence) / 2))
    rate = count / n
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def rate_above(count: int, n: int, threshold: float, confidence: float) -> Estimate:
    """A rate of n independent units with Wilson's interval. p is of a rate that isn't above the threshold: the exact
    binomial one, since a small threshold leaves an approximation nothing to go by."""
    low, high = wilson(count, n, confidence)
    p = float(stats.binomtest(count, n, threshold, alternative="greater").pvalue)
    return Estimate(count / n, low, high, p, n, (high - low) / 2)


def paired_rates(first: NDArray[np.bool_], second: NDArray[np.bool_], confidence: float) -> Estimate:
    """How much more often the first holds than the second, on the same n independent units.

    The interval is Newcombe's tenth method (Statistics in Medicine 17, 1998, 2635-2650), the p value McNemar's exact one.
    """
    n = len(first)
    both, only_first = int((first & second).sum()), int((first & ~second).sum())
    only_second, neither = int((~first & second).sum()), int((~first & ~second).sum())
    value = (only_first - only_second) / n if n else 0.0
    (low_1, high_1), (low_2, high_2) = wilson(int(first.sum()), n, confidence), wilson(int(second.sum()), n, confidence)
    rate_1, rate_2 = (both + only_first) / max(n, 1), (both + only_second) / max(n, 1)
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    cross = float(both * neither - only_first * only_second)
    # With the continuity correction that the method has for positive association.
    cross = max(cross - n / 2, 0) if cross > 0 else cross
    phi = cross / math.sqrt(margins) if margins else 0.0
    down_1, up_1, down_2, up_2 = rate_1 - low_1, high_1 - rate_1, rate_2 - low_2, high_2 - rate_2
    below = math.sqrt(max(0.0, down_1**2 - 2 * phi * down_1 * up_2 + up_2**2))
    above = math.sqrt(max(0.0, up_1**2 - 2 * phi * up_1 * down_2 + down_2**2))
    discordant = only_first + only_second
    p = float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return Estimate(value, value - below, value + above, p, n, (below + above) / 2)


def detectable(error: float, alpha: float) -> float:
    """The effect that a two-sided test at level α finds with a probability of 80 %, given its standard error."""
    return float(stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(POWER)) * error


def enough_units(threshold: float, confidence: float) -> int:
    """How many candidates must have been seen to say that no effect of the threshold's size is there: an effect of full
    size on a share `threshold` of the candidates stays unseen in fewer with a probability above 1 - confidence."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-threshold))


def _welch(variance_1: float, units_1: int, variance_2: float, units_2: int) -> float:
    """Degrees of freedom of a difference of two independent means (Welch and Satterthwaite)."""
    if min(units_1, units_2) < 2:
        return 0.0
    spread = variance_1**2 / (units_1 - 1) + variance_2**2 / (units_2 - 1)
    return (variance_1 + variance_2) ** 2 / spread if spread else float(units_1 + units_2 - 2)


def _least_p(units_1: int, units_2: int) -> float:
    """The smallest p value that a permutation of so many candidates among two groups can give."""
    log_count = math.lgamma(units_1 + units_2 + 1) - math.lgamma(units_1 + 1) - math.lgamma(units_2 + 1)
    return min(1.0, 2 * math.exp(-log_count))
