"""One reviewer's way through the labels: what to show, what was decided, what comes next. Knows nothing of the page."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lantern_pl.errors import UserError
from lantern_pl.labelling.review.decisions import by_pair, decide, disagree, is_open, persons
from lantern_pl.labelling.review.labelled import LabelledPair, Labels
from lantern_pl.labelling.review.queue import next_open, review_order, spared
from lantern_pl.labelling.store import Decision


class Decisions(Protocol):
    """Where decisions are kept: a LabelStore."""

    def decide(self, *decisions: Decision) -> None: ...

    def decisions(self) -> list[Decision]: ...


@dataclass(frozen=True)
class Progress:
    """How far the reviewer is, in pairs: all = done + waiting + spared.

    waiting: for this reviewer, those that came back among them.
    spared: accepted by a rule, looked at by nobody.
    """

    all: int
    waiting: int
    spared: int

    @property
    def done(self) -> int:
        return self.all - self.waiting - self.spared


@dataclass(frozen=True)
class Shown:
    """What the page shows. `pair` is None when nothing waits any more.

    own: what this reviewer last decided about it.
    others: the other persons' last decisions, where both have decided and they disagree, else empty: who hasn't decided
        yet isn't told what others think.
    """

    pair: LabelledPair | None
    progress: Progress
    own: Decision | None = None
    others: Sequence[Decision] = ()

    @property
    def level(self) -> str | None:
        """What stands in the form."""
        return None if self.pair is None else (self.own and self.own.level) or self.pair.level

    @property
    def explanation(self) -> str:
        """What stands in the form."""
        return "" if self.pair is None else (self.own and self.own.explanation) or self.pair.explanation or ""

    @property
    def note(self) -> str:
        """What stands in the form."""
        return (self.own and self.own.note) or ""


class Session:
    """A reviewer's session. May be used from several threads.

    Args:
        labels: what is reviewed.
        store: where decisions are and go to.
        reviewer: whose.
    """

    def __init__(self, labels: Labels, store: Decisions, reviewer: str) -> None:
        self.labels = labels
        self.reviewer = reviewer
        self._store = store
        self._lock = threading.Lock()
        decisions = store.decisions()
        # The order stays as it is for the session, or going back would lead elsewhere.
        self._order = review_order(labels.pairs.values(), decisions, reviewer)
        self._decided = by_pair(decisions)

    def first(self) -> Shown:
        """The pair to begin with."""
        return self.next(None)

    def next(self, pair_id: str | None) -> Shown:
        """The next pair after this one that waits for a decision; from the beginning again after the last."""
        with self._lock:
            return self._show(next_open(self._order, pair_id, self.labels.pairs, self._decided, self.reviewer))

    def previous(self, pair_id: str | None) -> Shown:
        """The pair before this one, decided or not; before the first there is none; of no pair, the last one."""
        with self._lock:
            if pair_id is not None and pair_id not in self._order:
                raise _unknown(pair_id)
            place = self._order.index(pair_id) if pair_id is not None else len(self._order)
            return self._show(self._order[max(place - 1, 0)])

    def accept(self, pair_id: str, level: str | None, explanation: str, note: str) -> Shown:
        """The label is right as the form has it: accepted where nothing of it was changed, an edit where it was.

        Returns the next pair. Raises UserError where there is no level or explanation to keep.
        """
        pair = self._pair(pair_id)
        if level not in self.labels.levels:
            raise UserError("Choose a level first.")
        if not explanation.strip() and pair.explanation:
            raise UserError("The explanation is blank: write one, or reject the label.")
        changed = level != pair.level or explanation.split() != (pair.explanation or "").split()
        return self._decide(
            decide(
                pair,
                reviewer=self.reviewer,
                verdict="edit" if changed else "accept",
                level=level,
                explanation=explanation.strip() if changed else pair.explanation,
                note=note.strip() or None,
            )
        )

    def reject(self, pair_id: str, note: str) -> Shown:
        """The label is of no use. Returns the next pair."""
        pair = self._pair(pair_id)
        return self._decide(decide(pair, reviewer=self.reviewer, verdict="reject", note=note.strip() or None))

    def _pair(self, pair_id: str) -> LabelledPair:
        pair = self.labels.pairs.get(pair_id)
        if pair is None:
            raise _unknown(pair_id)
        return pair

    def _decide(self, decision: Decision) -> Shown:
        with self._lock:
            self._store.decide(decision)
            self._decided.setdefault(decision.pair_id, []).append(decision)
        return self.next(decision.pair_id)

    def _show(self, pair_id: str | None) -> Shown:
        progress = self._progress()
        if pair_id is None:
            return Shown(None, progress)
        pair = self.labels.pairs[pair_id]
        decided = self._decided.get(pair_id, [])
        found = persons(decided)
        own = found.pop(self.reviewer, [])
        apart = bool(own) and disagree(decided, pair.level)
        return Shown(
            pair, progress, own=own[-1] if own else None, others=[other[-1] for other in found.values()] if apart else ()
        )

    def _progress(self) -> Progress:
        pairs = self.labels.pairs.values()
        waiting = [pair for pair in pairs if is_open(self._decided.get(pair.pair_id, ()), self.reviewer, pair.level)]
        untouched = sum(spared(self._decided.get(pair.pair_id, ())) for pair in waiting)
        return Progress(all=len(pairs), waiting=len(waiting) - untouched, spared=untouched)


def _unknown(pair_id: str) -> UserError:
    return UserError(f"There is no pair {pair_id!r} among these labels: reload the page.")
