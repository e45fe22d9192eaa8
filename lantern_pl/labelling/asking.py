"""Asks a chat teacher one question: the answer is read, and may be corrected."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from lantern_pl.data.pair import Pair
from lantern_pl.errors import UserError
from lantern_pl.labelling.account import Price
from lantern_pl.labelling.answers import REFUSED, TRUNCATED, BadAnswer, read_answer, repair_messages
from lantern_pl.labelling.config import LabelConfig
from lantern_pl.labelling.store_rows import Answered
from lantern_pl.tasks.guide import TEXTS, Stage
from lantern_pl.teachers.chat import Attempt, ChatFailed, ChatReply, ChatRequest

FAILED = "failed"
"""The finish reason of a question that got no answer at all: it's asked again in the next run."""
INCURABLE = frozenset({TRUNCATED, REFUSED})
"""What another turn wouldn't put right."""


@dataclass(frozen=True)
class Unit:
    """One question: a stage about a job, a candidate or a pair. `pair` is one of those that it serves."""

    stage: Stage
    subject: str
    pair: Pair
    sample: int
    request: ChatRequest
    key: str


@dataclass(frozen=True)
class Asked:
    """What came of a question, for the store."""

    row: Answered
    attempts: tuple[Attempt, ...]


class Purse(Protocol):
    """What pays for questions: see `account.Budget`."""

    def question(self, request: ChatRequest) -> AbstractAsyncContextManager[list[ChatReply]]: ...


class Asker:
    """Asks the questions of a guide.

    Args:
        config: whom, and how.
        teacher_key: the teacher's cache key.
        budget: what pays.
    """

    def __init__(self, config: LabelConfig, teacher_key: str, budget: Purse) -> None:
        self.config = config
        self.teacher = config.teacher
        self.teacher_key = teacher_key
        self.levels = config.task.levels
        self.budget = budget

    async def ask(self, unit: Unit, heard: Callable[[ChatReply], object]) -> Asked:
        """Ask, read, and let the teacher correct itself; `heard` gets each reply as it comes. Raises OutOfBudget, and
        ChatFailed where nothing else could be answered either."""
        request = unit.request
        replies: list[ChatReply] = []
        attempts: list[Attempt] = []
        parsed, reason = None, None
        for _ in range(self.config.repair_turns + 1):
            try:
                reply = await self._chat(request)
            except ChatFailed as failed:
                if failed.stop:
                    raise
                attempts += failed.attempts
                reason = failed.reason
                if not replies:
                    replies.append(ChatReply("", FAILED, cost=None if failed.attempts else 0.0))
                break
            replies.append(reply)
            attempts += reply.attempts
            heard(reply)
            try:
                parsed, reason = self._read(unit, reply), None
                break
            except BadAnswer as bad:
                reason = bad.reason
                if reason in INCURABLE:
                    break
                asked_again = repair_messages(unit.stage, self.levels, reason)
                request = replace(request, messages=(*request.messages, _said(reply.text), *asked_again))
        return Asked(self._row(unit, replies, attempts, parsed, reason), tuple(attempts))

    async def _chat(self, request: ChatRequest) -> ChatReply:
        async with self.budget.question(request) as paid:
            try:
                paid.append(await self.teacher.chat(request))
            except (ChatFailed, UserError, asyncio.CancelledError):
                raise
            except Exception as error:
                # What a plugin raises may quote what it was asked.
                raise UserError(
                    f"The teacher {type(self.teacher).__name__} has failed with {type(error).__name__}, which is a fault of "
                    "its own: a chat teacher says by ChatFailed that it got no answer."
                ) from None
        (reply,) = paid
        if reply.cost is None and self.teacher.price is not None:
            cost = Price(*self.teacher.price).of(reply.prompt_tokens, reply.completion_tokens)
            reply = replace(reply, cost=cost)
        return reply

    def _read(self, unit: Unit, reply: ChatReply) -> dict[str, Any]:
        texts = {name: getattr(unit.pair, name) for name in TEXTS}
        strict = self.teacher.follows_schema
        return read_answer(reply.text, reply.finish_reason, unit.stage, self.levels, texts, strict)

    def _row(
        self,
        unit: Unit,
        replies: Sequence[ChatReply],
        attempts: Sequence[Attempt],
        parsed: dict[str, Any] | None,
        reason: str | None,
    ) -> Answered:
        subject = self.config.guide.subject(unit.stage.name)
        costs = [reply.cost for reply in replies]
        return Answered(
            key=unit.key,
            stage=unit.stage.name,
            subject=unit.subject,
            job_id=unit.pair.job_id if subject != "candidate" else None,
            candidate_id=unit.pair.candidate_id if subject != "job" else None,
            pair_id=unit.pair.pair_id if subject == "pair" else None,
            sample=unit.sample,
            state="ok" if reason is None else "quarantined",
            reason=reason,
            raw=replies[-1].text,
            parsed=parsed,
            finish_reason=replies[-1].finish_reason,
            prompt_tokens=sum(reply.prompt_tokens for reply in replies),
            completion_tokens=sum(reply.completion_tokens for reply in replies),
            cost=None if None in costs else sum(cost for cost in costs if cost is not None),
            repairs=len(replies) - 1,
            teacher=self.teacher_key,
            seconds=sum(attempt.seconds for attempt in attempts),
        )


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
