"""Splits pairs into train, validation and test so that no job and no candidate is in two of them.

A student that met a candidate in training has an easier time with that candidate's other pairs; numbers on a split by
rows look better than they are. Two ids are one job (or candidate) where their normalised texts are the same.

Pairs are the edges of a graph of jobs and candidates. Its connected components go into a split whole, which loses
nothing. Only where the components are too big for that are they cut: jobs and candidates of a cut component are
assigned one by one, and pairs whose two ends fall apart are dropped.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from random import Random

from lantern_pl.data.pair import Pair
from lantern_pl.data.records import normalised
from lantern_pl.errors import UserError

Entity = tuple[str, int]
"""("job", n) or ("candidate", n)."""

# What missing the fractions weighs against losing pairs. At 8, 40 jobs x 12 candidates, all paired, come out at
# 83/8.5/8.5 for 80/10/10, and 44 % of the pairs are kept; exact fractions keep 42 %.
_BALANCE = 8.0
# Outweighs everything: a split that is asked for must hold a pair wherever there is a way.
_EMPTY = 100.0
_STARTS = 4
_MAX_PASSES = 20
_SMALL_GAIN = 5e-4
_MAX_CUTS = 8


@dataclass(frozen=True)
class Splits:
    """Pairs by their use, each list in the order of `pair_id`. `dropped` would have leaked, so they are in no split."""

    train: list[Pair]
    val: list[Pair]
    test: list[Pair]
    dropped: list[Pair]


def split_pairs(pairs: Sequence[Pair], val_fraction: float, test_fraction: float, seed: int) -> Splits:
    """Split by job and by candidate together; the same for the same pairs in any order and the same seed.

    Fractions are of the pairs that are kept, and are met as nearly as the jobs and candidates allow. A fraction of 0
    leaves its split empty. Raises UserError where a split that is asked for would be empty.
    """
    fractions = (1.0 - val_fraction - test_fraction, val_fraction, test_fraction)
    if not all(math.isfinite(fraction) and 0 <= fraction < 1 for fraction in fractions[1:]) or fractions[0] <= 1e-9:
        raise UserError(
            f"val_fraction is {val_fraction} and test_fraction {test_fraction}: give numbers from 0 up, whose sum is below 1"
        )
    pairs = sorted(pairs, key=lambda pair: (pair.pair_id, str(astuple(pair))))
    ends = _entities(pairs)
    assigned = _assign(ends, fractions, seed)
    parts: tuple[list[Pair], ...] = ([], [], [])
    dropped: list[Pair] = []
    for pair, (job, candidate) in zip(pairs, ends, strict=True):
        (parts[assigned[job]] if assigned[job] == assigned[candidate] else dropped).append(pair)
    for name, part, fraction in zip(("train", "val", "test"), parts, fractions, strict=True):
        if fraction > 0 and not part:
            jobs, candidates = (len(set(side)) for side in zip(*ends, strict=True)) if ends else (0, 0)
            raise UserError(
                f"the {name} split ({fraction:.0%}) would be empty: {len(pairs)} pairs of {jobs} jobs and {candidates} "
                "candidates can't be parted so that no job and no candidate is in two splits. Give more data, other "
                "fractions (0 for a split that you don't need), or a file of its own for each split"
            )
    train, val, test = parts
    return Splits(train, val, test, dropped)


def _entities(pairs: Sequence[Pair]) -> list[tuple[Entity, Entity]]:
    """The job and the candidate of each pair, the same one for the same id or the same text."""
    jobs = _Groups((("id", pair.job_id), ("text", normalised(pair.job_text))) for pair in pairs)
    candidates = _Groups((("id", pair.candidate_id), ("text", normalised(pair.candidate_text))) for pair in pairs)
    return [
        (("job", jobs.of(("id", pair.job_id))), ("candidate", candidates.of(("id", pair.candidate_id)))) for pair in pairs
    ]


class _Groups:
    """Numbers things so that linked ones have the same number (union-find), in the order of their first appearance."""

    def __init__(self, links: Iterable[tuple[Hashable, Hashable]]) -> None:
        self._parent: dict[Hashable, Hashable] = {}
        for one, other in links:
            self._parent[self._root(one)] = self._root(other)
        numbers: dict[Hashable, int] = {}
        self._number = {key: numbers.setdefault(self._root(key), len(numbers)) for key in list(self._parent)}

    def of(self, key: Hashable) -> int:
        return self._number[key]

    def _root(self, key: Hashable) -> Hashable:
        self._parent.setdefault(key, key)
        while self._parent[key] != key:
            self._parent[key] = key = self._parent[self._parent[key]]
        return key


def _assign(ends: Sequence[tuple[Entity, Entity]], fractions: Sequence[float], seed: int) -> dict[Entity, int]:
    """A split (an index into `fractions`) for each job and candidate.

    Components are cut, the largest first, until every split has between half and twice its fraction.
    """
    groups = _Groups(ends)
    sizes = Counter(groups.of(job) for job, _ in ends)
    largest = sorted(sizes, key=lambda group: (-sizes[group], group))
    best: _Plan | None = None
    for cuts in range(min(len(largest), _MAX_CUTS) + 1):
        cut = set(largest[:cuts])
        # A component that stays whole is one thing to place; of a cut one, each job and candidate is.
        units = {
            entity: entity if groups.of(entity) in cut else ("whole", groups.of(entity)) for end in ends for entity in end
        }
        graph = _Graph([(units[job], units[candidate]) for job, candidate in ends])
        plan = min((_place(graph, fractions, Random(f"{seed}/{start}")) for start in range(_STARTS)), key=lambda p: p.cost)
        shares = [count / max(1, sum(plan.kept)) for count in plan.kept]
        plan = _Plan(plan.cost, plan.kept, {entity: plan.placed[unit] for entity, unit in units.items()})
        if all(fraction / 2 <= share <= fraction * 2 for share, fraction in zip(shares, fractions, strict=True)):
            return plan.placed
        if best is None or plan.cost < best.cost:
            best = plan
    return best.placed if best else {}


@dataclass(frozen=True)
class _Plan:
    cost: float
    kept: list[int]
    placed: dict[Entity, int]


class _Graph:
    """Units to place and the pairs that join them: `inner` within a unit, `links` between two."""

    def __init__(self, edges: Iterable[tuple[Entity, Entity]]) -> None:
        self.inner: Counter[Entity] = Counter()
        self.links: dict[Entity, Counter[Entity]] = defaultdict(Counter)
        for one, other in edges:
            if one == other:
                self.inner[one] += 1
            else:
                self.links[one][other] += 1
                self.links[other][one] += 1
        self.count = sum(self.inner.values()) + sum(sum(links.values()) for links in self.links.values()) // 2


def _cost(kept: Sequence[int], count: int, fractions: Sequence[float]) -> float:
    """Minus the log of the share of pairs kept, plus the divergence KL(fractions, shares of kept), weighted."""
    asked = [(pairs, fraction) for pairs, fraction in zip(kept, fractions, strict=True) if fraction > 0]
    empty = sum(pairs == 0 for pairs, _ in asked)
    total = max(1, sum(kept))
    divergence = sum(fraction * math.log(fraction * total / max(1, pairs)) for pairs, fraction in asked)
    return _EMPTY * empty - math.log(total / max(1, count)) + _BALANCE * divergence


def _place(graph: _Graph, fractions: Sequence[float], rng: Random) -> _Plan:
    """Place every unit: a start by quotas, then moves of single units while they lower the cost."""
    placed = _start(graph, fractions, rng)
    kept = [0] * len(fractions)
    for unit, split in placed.items():
        kept[split] += graph.inner[unit]
        kept[split] += sum(n for other, n in graph.links.get(unit, {}).items() if other > unit and placed[other] == split)
    cost = _cost(kept, graph.count, fractions)
    units = sorted(placed)
    for _ in range(_MAX_PASSES):
        before = cost
        rng.shuffle(units)
        for unit in units:
            joined = [graph.inner[unit]] * len(fractions)
            for other, n in graph.links.get(unit, {}).items():
                joined[placed[other]] += n
            for split, fraction in enumerate(fractions):
                if fraction <= 0 or split == placed[unit]:
                    continue
                moved = list(kept)
                moved[placed[unit]] -= joined[placed[unit]]
                moved[split] += joined[split]
                if (new := _cost(moved, graph.count, fractions)) < cost - 1e-12:
                    placed[unit], kept, cost = split, moved, new
        if before - cost < _SMALL_GAIN:
            break
    return _Plan(cost, kept, placed)


def _start(graph: _Graph, fractions: Sequence[float], rng: Random) -> dict[Entity, int]:
    """Whole components to the split furthest below its quota; cut ones by quota, neighbours near each other."""
    placed: dict[Entity, int] = {}
    wholes = sorted(graph.inner)
    rng.shuffle(wholes)
    room = [fraction * graph.count if fraction > 0 else -math.inf for fraction in fractions]
    for unit in sorted(wholes, key=lambda unit: -graph.inner[unit]):
        split = room.index(max(room))
        placed[unit] = split
        room[split] -= graph.inner[unit]
    # Of a dense graph a split keeps about the product of its shares of the two sides: hence the square root.
    roots = [math.sqrt(fraction) for fraction in fractions]
    walked = _walk(graph.links, rng)
    for side in ("job", "candidate"):
        units = [unit for unit in walked if unit[0] == side]
        placed |= dict.fromkeys(units, 0)
        for split in range(1, len(roots)):
            count = max(1, round(len(units) * roots[split] / sum(roots))) if roots[split] else 0
            placed |= dict.fromkeys(units[:count], split)
            units = units[count:]
    return placed


def _walk(links: Mapping[Entity, Mapping[Entity, int]], rng: Random) -> list[Entity]:
    """All linked units, breadth first from random ones."""
    starts = sorted(links)
    rng.shuffle(starts)
    seen: dict[Entity, None] = {}
    for start in starts:
        queue = [start] if start not in seen else []
        seen.setdefault(start)
        for unit in queue:
            new = [other for other in sorted(links[unit]) if other not in seen]
            rng.shuffle(new)
            seen.update(dict.fromkeys(new))
            queue.extend(new)
    return list(seen)
