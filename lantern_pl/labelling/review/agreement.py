"""How far two reviewers agree beyond chance: Cohen's kappa of what each said without knowing the other's."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lantern_pl.labelling.review.decisions import REJECTED, by_pair, moment, outcome, persons
from lantern_pl.labelling.store import Decision


@dataclass(frozen=True)
class Kappa:
    """Cohen's kappa, at most 1, 0 for chance; `value` is None where it isn't defined, and `reason` says why."""

    value: float | None
    pairs: int
    reason: str | None = None


@dataclass(frozen=True)
class Agreement:
    """Two reviewers on the pairs that both have decided.

    same: on how many of `pairs` they said the same.
    kappa: over the levels and "rejected".
    quadratic: of the pairs that neither rejected, a disagreement weighing by the square of its distance.
    """

    reviewers: tuple[str, str]
    pairs: int
    same: int
    kappa: Kappa
    quadratic: Kappa


def agreements(decisions: Iterable[Decision], label_levels: Mapping[str, str], levels: Sequence[str]) -> list[Agreement]:
    """Of each two persons, by name. `label_levels` are the labels' levels by pair; other pairs don't count.

    Of each the opinion counts that wasn't taken in sight of the other's: who came second, the first one; who came
    first, the last before the other's. Looking again after a disagreement makes a better label, and no better kappa.
    """
    decided = {pair: persons(own) for pair, own in by_pair(decisions).items() if pair in label_levels}
    names = sorted({name for found in decided.values() for name in found})
    result = []
    for one, two in itertools.combinations(names, 2):
        said = [
            (_blind(found[one], found[two], label_levels[pair]), _blind(found[two], found[one], label_levels[pair]))
            for pair, found in decided.items()
            if one in found and two in found
        ]
        # Levels can leave a task between two runs of it.
        said = [both for both in said if {*both} <= {*levels, REJECTED}]
        kept = [both for both in said if REJECTED not in both]
        result.append(
            Agreement(
                (one, two),
                pairs=len(said),
                same=sum(first == second for first, second in said),
                kappa=_kappa(said, [*levels, REJECTED], "none"),
                quadratic=_kappa(kept, levels, "quadratic"),
            )
        )
    return result


def _blind(own: Sequence[Decision], other: Sequence[Decision], label_level: str) -> str:
    before = [decision for decision in own if moment(decision) < moment(other[0])]
    return outcome((before or own[:1])[-1], label_level) or REJECTED


def _kappa(said: Sequence[tuple[str, str]], categories: Sequence[str], weights: Literal["none", "quadratic"]) -> Kappa:
    if not said:
        return Kappa(None, 0, "no pair was decided by both")
    used = {name for both in said for name in both}
    if len(used) == 1:
        return Kappa(None, len(said), f"both said {used.pop()!r} of every pair: chance can't be told from agreement")
    import torch
    from torchmetrics.functional.classification import multiclass_cohen_kappa

    one, two = (torch.tensor([categories.index(both[side]) for both in said]) for side in (0, 1))
    value = float(multiclass_cohen_kappa(one, two, num_classes=len(categories), weights=weights))
    return Kappa(value, len(said)) if math.isfinite(value) else Kappa(None, len(said), "chance agreement is complete")
