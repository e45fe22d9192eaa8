"""What reviewers' decisions come to: who said what last, who disagrees, and what stands.

Decisions are only ever added. A rule's decision (`--auto-accept`) counts where no person has decided, and its reject
only takes back what a rule had accepted: it leaves the pair to a person.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from lantern_pl.labelling.review.labelled import LabelledPair, Labels
from lantern_pl.labelling.store import Decision
from lantern_pl.labelling.store_rows import Verdict

REJECTED = "rejected"


def now() -> str:
    """The time as decisions hold it: ISO 8601, UTC, with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def decide(
    pair: LabelledPair,
    reviewer: str,
    verdict: Verdict,
    level: str | None = None,
    explanation: str | None = None,
    note: str | None = None,
    at: str | None = None,
    rule: str | None = None,
) -> Decision:
    """A decision that says what it accepts, so that labels made anew later aren't accepted unseen. A reject has neither
    level nor explanation. Without a time it is taken now."""
    keeps = verdict != "reject"
    return Decision(
        pair_id=pair.pair_id,
        reviewer=reviewer,
        verdict=verdict,
        level=(level or pair.level) if keeps else None,
        explanation=(explanation or pair.explanation) if keeps else None,
        note=note,
        at=at or now(),
        rule=rule,
    )


def moment(decision: Decision) -> datetime:
    """When it was taken; a time without a zone is UTC."""
    at = datetime.fromisoformat(decision.at)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def by_pair(decisions: Iterable[Decision]) -> dict[str, list[Decision]]:
    """Decisions of each pair, the oldest first."""
    pairs: dict[str, list[Decision]] = {}
    for decision in sorted(decisions, key=moment):  # the sort is stable: of equal times, the order of the store
        pairs.setdefault(decision.pair_id, []).append(decision)
    return pairs


def persons(decisions: Iterable[Decision]) -> dict[str, list[Decision]]:
    """Reviewer -> what this person has decided about one pair, the oldest first; rules are left out."""
    found: dict[str, list[Decision]] = {}
    for decision in decisions:
        if decision.rule is None:
            found.setdefault(decision.reviewer, []).append(decision)
    return found


def outcome(decision: Decision, label_level: str) -> str | None:
    """What a decision says of the level: a level, or None for a reject. Explanations don't make a disagreement."""
    return None if decision.verdict == "reject" else decision.level or label_level


def accepted_by_rule(decisions: Sequence[Decision]) -> Decision | None:
    """A rule's accept of the pair that no rule has taken back."""
    last = next((decision for decision in reversed(decisions) if decision.rule is not None), None)
    return None if last is None or last.verdict == "reject" else last


def is_of_label(level: str | None, explanation: str | None, pair: LabelledPair) -> bool:
    """Whether what was accepted is the label as it is now: labels may have been made anew since."""
    return (level or pair.level, explanation or pair.explanation) == (pair.level, pair.explanation)


def disagree(decisions: Sequence[Decision], label_level: str) -> bool:
    """Whether the persons' last decisions about a pair differ in the level, or in rejecting it."""
    return len({outcome(own[-1], label_level) for own in persons(decisions).values()}) > 1


def is_open(decisions: Sequence[Decision], reviewer: str, label_level: str) -> bool:
    """Whether a pair waits for this reviewer: not decided yet, or in disagreement and not looked at again since.

    Looking again means a decision, the same or another, after both have decided and after the others last changed
    their mind: who keeps to an opinion isn't asked twice.
    """
    found = persons(decisions)
    own = found.pop(reviewer, [])
    if not own:
        return True
    if not disagree(decisions, label_level):
        return False
    changes = [moment(own[0]), *(_settled_at(other, label_level) for other in found.values())]
    return moment(own[-1]) <= max(changes)


def _settled_at(decisions: Sequence[Decision], label_level: str) -> datetime:
    """When a reviewer came to the opinion that he has now."""
    last = outcome(decisions[-1], label_level)
    settled = decisions[-1]
    for decision in reversed(decisions):
        if outcome(decision, label_level) != last:
            break
        settled = decision
    return moment(settled)


@dataclass(frozen=True)
class Standing:
    """What the decisions about a pair come to.

    state: "accept" and "edit" give a label; "reject" and "disputed" none.
    decided: the decisions behind it, the newest last; of the disputed, all reviewers' last ones.
    """

    state: Literal["accept", "edit", "reject", "disputed"]
    level: str | None
    explanation: str | None
    decided: Sequence[Decision]


def standing(decisions: Sequence[Decision], pair: LabelledPair) -> Standing | None:
    """What stands for one pair: the opinion of more than half of the persons who decided, else of a rule.

    The explanation is that of the newest edit among the winners, else the label's as it was accepted. None where
    nobody has decided.
    """
    found = persons(decisions)
    if not found:
        if (ruled := accepted_by_rule(decisions)) is None:
            return None
        return Standing("accept", ruled.level or pair.level, ruled.explanation or pair.explanation, [ruled])
    last = sorted((own[-1] for own in found.values()), key=moment)
    winner, votes = Counter(outcome(decision, pair.level) for decision in last).most_common(1)[0]
    if votes * 2 <= len(last):
        return Standing("disputed", None, None, last)
    winners = [decision for decision in last if outcome(decision, pair.level) == winner]
    if winner is None:
        return Standing("reject", None, None, winners)
    edits = [decision for decision in winners if decision.verdict == "edit"]
    explained = next((decision.explanation for decision in reversed(edits or winners) if decision.explanation), None)
    return Standing("edit" if edits else "accept", winner, explained or pair.explanation, winners)


def standings(labels: Labels, decisions: Iterable[Decision]) -> dict[str, Standing]:
    """Pair -> what stands, of the pairs that were decided, in the labels' order."""
    decided = by_pair(decisions)
    found = {pair.pair_id: standing(decided.get(pair.pair_id, ()), pair) for pair in labels.pairs.values()}
    return {pair_id: stands for pair_id, stands in found.items() if stands is not None}
