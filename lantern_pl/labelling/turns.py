"""The turns of one question to a chat teacher: its answer, and the corrections that it's asked for."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lantern_pl.labelling.answers import REFUSED, TRUNCATED, BadAnswer, repair_messages
from lantern_pl.labelling.store import Answered
from lantern_pl.tasks.guide import Stage
from lantern_pl.teachers.chat import Attempt, ChatFailed, ChatReply, ChatRequest

FAILED = "failed"
"""The finish reason of a question that got no answer at all: it's asked again in the next run."""
UNREPAIRED = "unrepaired"
"""The finish reason of an answer that couldn't be read, and whose correction wasn't to be had: the next run asks for it."""
INCURABLE = frozenset({TRUNCATED, REFUSED})
"""What another turn wouldn't put right."""


class Turns:
    """What came of a question so far.

    Args:
        stage: what is asked.
        levels: of the task.
        request: the question.
        before: what the store has of it; an answer that is `UNREPAIRED` is where this goes on.

    Attributes:
        request: what is to be asked next.
        replies, attempts: of this run.
        parsed: the answer, once one could be read; reason: why the last one couldn't.
        raw, finish_reason: of the last reply.
    """

    def __init__(self, stage: Stage, levels: Sequence[str], request: ChatRequest, before: Answered | None) -> None:
        self.stage, self.levels = stage, levels
        self.request = request
        self.replies: list[ChatReply] = []
        self.attempts: list[Attempt] = []
        self.parsed: dict[str, Any] | None = None
        self.reason: str | None = None
        self.raw, self.finish_reason = "", FAILED
        self.has_news = False
        self._earlier = 0
        if before is not None and before.finish_reason == UNREPAIRED:
            self._earlier = before.repairs + 1
            self.raw, self.finish_reason = before.raw, UNREPAIRED
            self._unread(before.reason or "")

    @property
    def repairs(self) -> int:
        """How many corrections there were, those of earlier runs included."""
        return max(0, self._earlier + len(self.replies) - 1)

    @property
    def new_repairs(self) -> int:
        """How many of them this run had."""
        return self.repairs - max(0, self._earlier - 1)

    @property
    def cost(self) -> float | None:
        """Of this run's replies; None where it isn't known."""
        costs = [reply.cost for reply in self.replies]
        if None in costs or (not costs and any(attempt.may_be_billed for attempt in self.attempts)):
            return None
        return sum(cost for cost in costs if cost is not None)

    def go_on(self, repair_turns: int) -> bool:
        """Whether there is something to ask, with so many corrections allowed."""
        asked = self._earlier + len(self.replies)
        return self.parsed is None and self.reason not in INCURABLE and asked <= repair_turns

    def take(self, reply: ChatReply, read: Callable[[ChatReply], dict[str, Any]]) -> None:
        """Read a reply with `read`, which raises BadAnswer."""
        self.has_news = True
        self.replies.append(reply)
        self.attempts += reply.attempts
        self.raw, self.finish_reason = reply.text, reply.finish_reason
        try:
            self.parsed, self.reason = read(reply), None
        except BadAnswer as bad:
            self._unread(bad.reason)

    def fail(self, failed: ChatFailed) -> None:
        """There was no reply."""
        self.has_news = True
        self.attempts += failed.attempts
        if not (self._earlier or self.replies):
            self.reason = failed.reason
        self.leave()

    def leave(self) -> None:
        """The next turn isn't to be had in this run."""
        if self._earlier or self.replies:
            self.finish_reason = UNREPAIRED

    def _unread(self, reason: str) -> None:
        self.reason = reason
        if reason not in INCURABLE:
            said = {"role": "assistant", "content": self.raw}
            asked = repair_messages(self.stage, self.levels, reason)
            self.request = replace(self.request, messages=(*self.request.messages, said, *asked))


def is_unfinished(row: Answered, repair_turns: int) -> bool:
    """Whether an answer in the store is none yet, and can be had by asking again or on."""
    return row.finish_reason == FAILED or (row.finish_reason == UNREPAIRED and row.repairs < repair_turns)
