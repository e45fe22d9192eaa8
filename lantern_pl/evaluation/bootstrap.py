"""Bootstrap over jobs, vectorised: every figure gets an interval, and models are compared on the same resamples.

What is drawn again is the job with all of its pairs, since these have much in common: pairs drawn one by one would give
intervals too narrow for what other jobs show.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lantern_pl.data.pair import Pair

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
LEVEL = 0.95
"""How probable it is that an interval holds what it estimates, as far as the pairs are a fair sample."""
FEWEST = 6
"""Jobs that an interval needs: resamples of fewer show too little of what others would be like."""
_BLOCK = 2_000_000
"""Weights made at once: 16 MB."""


@dataclass(frozen=True)
class Statistic:
    """A figure as a function of the pairs' weights.

    of: maps weights [R, P] (how often each of P pairs is in each of R samples) to R values, NaN where a sample has none.
    known [P]: which of the pairs it rests on.
    recentre: whether its interval is moved so that the resamples' mean is the figure: for what a resample, with its
        repetitions, changes by itself.
    upward: whether it is a distance, 0 or more, which chance makes larger in the sample as it does again in a resample. Its
        interval is the basic one, twice the figure minus the percentiles (Davison and Hinkley 1997, section 5.2.1), of its
        square, to which chance adds its variance each time; it's from 0, and holds the figure itself.
    """

    of: Callable[[Floats], Floats]
    known: Bools
    recentre: bool = False
    upward: bool = False


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval; None where it isn't defined. n: how many pairs it rests on; units: how many jobs, or what
    else was drawn; draws [R]: its values on the resamples."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    units: int
    draws: Floats = field(repr=False, compare=False)

    def as_json(self) -> dict[str, Any]:
        """Six digits of each."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {**{name: None if x is None else float(f"{x:.6g}") for name, x in numbers.items()}, "n": self.n}


@dataclass(frozen=True)
class Bootstrap:
    """`count` resamples, the same ones for the same units: jobs or candidates, or whatever is drawn with its pairs."""

    count: int = 1000
    seed: int = 0

    def weights(self, units: Sequence[object]) -> Iterator[Floats]:
        """The resamples in blocks [R, P]: how often each of the P pairs, of which `units` names each one's, is in each of
        them."""
        unit = _numbered(units)
        count = int(unit.max(initial=-1)) + 1
        generator = np.random.default_rng([self.seed, count])
        rows = max(1, _BLOCK // max(len(units), 1))
        for start in range(0, self.count, rows):
            block = min(rows, self.count - start)
            drawn = generator.integers(count, size=(block, count)) + count * np.arange(block)[:, None]
            times = np.bincount(drawn.ravel(), minlength=block * count).reshape(block, count)
            yield times[:, unit].astype(np.float64)

    def estimates(
        self, statistics: Mapping[str, Statistic], units: Sequence[object], values: Mapping[str, float] | None = None
    ) -> dict[str, Estimate]:
        """Each statistic on all pairs and on the resamples, by name. `units` [P] names what each pair is drawn with;
        `values` has figures worked out elsewhere."""
        pairs = len(units)
        unit, once = _numbered(units), np.ones((1, pairs))
        draws: dict[str, list[Floats]] = {name: [] for name in statistics}
        if pairs:
            for block in self.weights(units):
                for name, statistic in statistics.items():
                    draws[name].append(statistic.of(block))
        found = {}
        for name, statistic in statistics.items():
            value = values[name] if values and name in values else float(statistic.of(once)[0]) if pairs else np.nan
            drawn = np.concatenate(draws[name]) if pairs else np.full(self.count, np.nan)
            if statistic.recentre and np.isfinite(drawn).any():
                drawn = drawn + value - np.nanmean(drawn)
            n, of_units = int(statistic.known.sum()), len(set(unit[statistic.known].tolist()))
            found[name] = estimate(value, drawn, n, of_units, statistic.upward)
        return found


def drawn_of(pairs: Sequence[Pair]) -> Literal["jobs", "candidates"]:
    """What is drawn with its pairs: candidates where there are too few jobs; what is found is then of these jobs alone."""
    return "jobs" if len({pair.job_id for pair in pairs}) >= FEWEST else "candidates"


def units_of(pairs: Sequence[Pair], drawn: Literal["jobs", "candidates"]) -> list[str]:
    """What each pair is drawn with."""
    return [pair.job_id if drawn == "jobs" else pair.candidate_id for pair in pairs]


def _numbered(names: Sequence[object]) -> NDArray[np.int64]:
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def estimate(value: float, draws: Floats, n: int, units: int, upward: bool = False) -> Estimate:
    """A figure and the percentiles of its draws, or what `Statistic.upward` makes of them. Fewer than FEWEST units give no
    interval; what isn't finite is None."""
    if not np.isfinite(value):
        return Estimate(None, None, None, n, units, draws)
    known = draws[np.isfinite(draws)]
    if units < FEWEST or not len(known):
        return Estimate(float(value), None, None, n, units, draws)
    outside = 100 * share_outside(units)
    low, high = np.percentile(known, [outside, 100 - outside])
    if upward:
        low, high = (max(0.0, 2 * value**2 - end**2) ** 0.5 for end in (high, low))
        high = max(high, value)
    return Estimate(float(value), float(low), float(high), n, units, draws)


def share_outside(units: int) -> float:
    """Share of the draws on either side of an interval: half of 1 - LEVEL for many units, and less for few, since resamples
    of few spread less than samples do. The expanded percentile interval (Hesterberg 2015, The American Statistician 69)."""
    normal = NormalDist()
    z, freedom = normal.inv_cdf((1 + LEVEL) / 2), units - 1
    # Student's t by its expansion in 1 / freedom (Abramowitz and Stegun 26.7.5), which is good from 4 on.
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    return normal.cdf(-t * math.sqrt(units / freedom))


def mean(values: Floats, sizes: Floats | None = None) -> Statistic:
    """The mean of the pairs' values [P], NaN where a pair has none; with `sizes` [P], such as tokens, weighted by them."""
    known = np.isfinite(values)
    sizes = known.astype(np.float64) if sizes is None else np.where(known, sizes, 0.0)
    totals = np.where(known, values, 0.0) * sizes

    def of(weights: Floats) -> Floats:
        return ratio(weights @ totals, weights @ sizes)

    return Statistic(of, known)


def ratio(above: Floats, below: Floats) -> Floats:
    """above / below, NaN where below is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below == 0, np.nan, above / below)
