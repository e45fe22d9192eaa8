"""In which order pairs are reviewed: where a person's time helps most, first."""

import math
from collections.abc import Iterable, Mapping, Sequence

from lantern_pl.labelling.review.decisions import accepted_by_rule, by_pair, disagree, is_open, persons
from lantern_pl.labelling.review.labelled import LabelledPair
from lantern_pl.labelling.store import Decision


def review_order(pairs: Iterable[LabelledPair], decisions: Iterable[Decision], reviewer: str) -> list[str]:
    """All pairs' ids, decided ones too, so that a reviewer can go back to them.

    First those that came back to this reviewer because another one disagrees; then those whose samples disagree, the
    most divided first; then by confidence, the least first and the unknown last; then as they come. What a rule has
    accepted stands behind all others: it needs nobody, but may be looked at.
    """
    decided = by_pair(decisions)

    def place(pair: LabelledPair) -> tuple[bool, bool, float, float]:
        own = decided.get(pair.pair_id, [])
        confidence = math.inf if pair.confidence is None else pair.confidence
        # Rounded, or votes that say the same in another order would differ in the last digit.
        return (not came_back(own, reviewer, pair.level), spared(own), -round(pair.entropy, 9), confidence)

    return [pair.pair_id for pair in sorted(pairs, key=place)]


def came_back(decisions: Sequence[Decision], reviewer: str, label_level: str) -> bool:
    """Whether this reviewer has decided a pair, another one differs, and it waits to be looked at again."""
    return reviewer in persons(decisions) and disagree(decisions, label_level) and is_open(decisions, reviewer, label_level)


def spared(decisions: Sequence[Decision]) -> bool:
    """Whether a rule has accepted the pair and no person has looked at it."""
    return accepted_by_rule(decisions) is not None and not persons(decisions)


def next_open(
    order: Sequence[str],
    after: str | None,
    pairs: Mapping[str, LabelledPair],
    decided: Mapping[str, Sequence[Decision]],
    reviewer: str,
) -> str | None:
    """The pair to show after `after`: the next in order that waits for this reviewer, from the start again at the end.

    What a rule has accepted comes when nothing else is left. `after` itself comes last; None where nothing waits.
    """
    start = order.index(after) + 1 if after in order else 0
    waiting = [
        pair_id
        for pair_id in (*order[start:], *order[:start])
        if is_open(decided.get(pair_id, ()), reviewer, pairs[pair_id].level)
    ]
    return next((pair_id for pair_id in waiting if not spared(decided.get(pair_id, ()))), next(iter(waiting), None))
