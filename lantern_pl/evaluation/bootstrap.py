"""Bootstrap over jobs, vectorised: every figure gets an interval, and models are compared on the same resamples.

What is drawn again is the job with all of its pairs, since these have much in common: pairs drawn one by one would give
intervals too narrow for what other jobs show. Of a few jobs, say ten, they are somewhat too narrow all the same, as the
bootstrap's are of any ten.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEVEL = 0.95
"""How probable it is that an interval holds what it estimates, as far as the pairs are a fair sample."""
_BLOCK = 2_000_000
"""Weights made at once: 16 MB."""


@dataclass(frozen=True)
class Statistic:
    """A figure as a function of the pairs' weights.

    of: maps weights [R, P] (how often each of P pairs is in each of R samples) to R values, NaN where a sample has none.
    n: how many of the pairs it rests on.
    recentre: whether its interval is moved so that the resamples' mean is the figure: for what a resample, with its
        repetitions, changes by itself.
    upward: whether it is a distance, 0 or more, which chance makes larger in the sample as it does again in a resample. Its
        interval is the basic one, twice the figure minus the percentiles (Davison and Hinkley 1997, section 5.2.1), of its
        square, to which chance adds its variance each time; it's from 0, and holds the figure itself.
    """

    of: Callable[[Floats], Floats]
    n: int
    recentre: bool = False
    upward: bool = False


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval; None where it isn't defined. draws [R]: its values on the resamples."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    draws: Floats = field(repr=False, compare=False)

    def as_json(self) -> dict[str, Any]:
        """Six digits of each."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {**{name: None if x is None else float(f"{x:.6g}") for name, x in numbers.items()}, "n": self.n}


@dataclass(frozen=True)
class Bootstrap:
    """`count` resamples, the same ones for the same jobs."""

    count: int = 1000
    seed: int = 0

    def weights(self, jobs: Sequence[Hashable]) -> Iterator[Floats]:
        """The resamples in blocks [R, P]: how often each of the P pairs, of which `jobs` names the job, is in each of
        them."""
        numbers: dict[Hashable, int] = {}
        job = np.array([numbers.setdefault(name, len(numbers)) for name in jobs], dtype=np.int64)
        count = len(numbers)
        generator = np.random.default_rng([self.seed, count])
        rows = max(1, _BLOCK // max(len(jobs), 1))
        for start in range(0, self.count, rows):
            block = min(rows, self.count - start)
            drawn = generator.integers(count, size=(block, count)) + count * np.arange(block)[:, None]
            times = np.bincount(drawn.ravel(), minlength=block * count).reshape(block, count)
            yield times[:, job].astype(np.float64)

    def estimates(
        self, statistics: Mapping[str, Statistic], jobs: Sequence[Hashable], values: Mapping[str, float] | None = None
    ) -> dict[str, Estimate]:
        """Each statistic on all pairs and on the resamples, by name. `jobs` [P] names each pair's job; `values` has figures
        worked out elsewhere. What all pairs of one job alone say has no interval."""
        pairs, several = len(jobs), len(set(jobs)) > 1
        once = np.ones((1, pairs))
        draws: dict[str, list[Floats]] = {name: [] for name in statistics}
        if several:
            for block in self.weights(jobs):
                for name, statistic in statistics.items():
                    draws[name].append(statistic.of(block))
        found = {}
        for name, statistic in statistics.items():
            value = values[name] if values and name in values else float(statistic.of(once)[0]) if pairs else np.nan
            drawn = np.concatenate(draws[name]) if several else np.full(self.count, np.nan)
            if statistic.recentre and np.isfinite(drawn).any():
                drawn = drawn + value - np.nanmean(drawn)
            found[name] = estimate(value, drawn, statistic.n, statistic.upward)
        return found


def estimate(value: float, draws: Floats, n: int, upward: bool = False) -> Estimate:
    """A figure and the percentiles of its draws, or what `Statistic.upward` makes of them. One pair alone has no interval;
    what isn't finite is None."""
    if not np.isfinite(value):
        return Estimate(None, None, None, n, draws)
    known = draws[np.isfinite(draws)]
    if n < 2 or not len(known):
        return Estimate(float(value), None, None, n, draws)
    low, high = np.percentile(known, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    if upward:
        low, high = (max(0.0, 2 * value**2 - end**2) ** 0.5 for end in (high, low))
        high = max(high, value)
    return Estimate(float(value), float(low), float(high), n, draws)


def mean(values: Floats, sizes: Floats | None = None) -> Statistic:
    """The mean of the pairs' values [P], NaN where a pair has none; with `sizes` [P], such as tokens, weighted by them."""
    known = np.isfinite(values)
    sizes = known.astype(np.float64) if sizes is None else np.where(known, sizes, 0.0)
    totals = np.where(known, values, 0.0) * sizes

    def of(weights: Floats) -> Floats:
        return ratio(weights @ totals, weights @ sizes)

    return Statistic(of, int(known.sum()))


def ratio(above: Floats, below: Floats) -> Floats:
    """above / below, NaN where below is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below == 0, np.nan, above / below)
