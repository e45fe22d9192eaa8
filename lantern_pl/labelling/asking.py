"""Asks a chat teacher one question: the answer is read, and may be corrected."""

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from lantern_pl.data.pair import Pair
from lantern_pl.errors import UserError
from lantern_pl.labelling.account import OutOfBudget, Price
from lantern_pl.labelling.answers import read_answer
from lantern_pl.labelling.config import LabelConfig
from lantern_pl.labelling.store_rows import Answered
from lantern_pl.labelling.turns import Turns
from lantern_pl.plugin_checks import fault
from lantern_pl.tasks.guide import TEXTS, Stage
from lantern_pl.teachers import Teacher
from lantern_pl.teachers.chat import Attempt, ChatFailed, ChatReply, ChatRequest


@dataclass(frozen=True)
class Unit:
    """One question: a stage about a job, a candidate or a pair. `pair` is one of those that it serves; `before` is what the
    store has of it, where that is an answer to go on with."""

    stage: Stage
    subject: str
    pair: Pair
    sample: int
    inputs: Mapping[str, str]
    request: ChatRequest
    key: str
    before: Answered | None = None


@dataclass(frozen=True)
class Asked:
    """What came of a question.

    row, attempts: for the store; no row where nothing came of it.
    replies, repairs: of this time.
    out_of_budget: whether it ended since the next turn could cost too much.
    failure: why nothing else could be answered either.
    cancelled: whether it was cancelled; then whoever asked is to end, once the row is kept.
    """

    row: Answered | None
    attempts: tuple[Attempt, ...] = ()
    replies: tuple[ChatReply, ...] = ()
    repairs: int = 0
    out_of_budget: bool = False
    failure: str | None = None
    cancelled: bool = False


class Purse(Protocol):
    """What pays for questions: see `account.Budget`."""

    def questions(
        self, *requests: ChatRequest, attempts: int = 1
    ) -> AbstractAsyncContextManager[list[ChatReply | ChatFailed]]: ...


class Asker:
    """Asks the questions of a guide.

    Args:
        config: whom, and how.
        teacher_key: the teacher's key for chats.
        budget: what pays.
    """

    def __init__(self, config: LabelConfig, teacher_key: str, budget: Purse) -> None:
        self.config = config
        self.teacher = config.teacher
        self.teacher_key = teacher_key
        self.levels = config.task.levels
        self.budget = budget

    async def get_ready(self) -> tuple[ChatReply, ...]:
        """Make the teacher ready; what it was answered to questions of its own. Raises OutOfBudget, with nothing asked,
        where these could cost too much, and UserError where it can't be used."""
        own = self.teacher.questions_to_get_ready()
        async with self.budget.questions(*own, attempts=self.teacher.most_billed) as outcomes:
            replies = tuple(await self.teacher.get_ready_to_chat() or ())
            outcomes.extend(replies)
        return tuple(with_cost(reply, self.teacher) for reply in replies)

    async def ask(self, unit: Unit) -> Asked:
        """Ask, read, and let the teacher correct itself. What came of it is returned also where that ended in the middle.

        Raises UserError, with nothing to keep, for a teacher that breaks its contract.
        """
        turns = Turns(unit.stage, self.levels, unit.request, unit.before)
        ended: dict[str, Any] = {}
        try:
            while turns.go_on(self.config.repair_turns):
                turns.take(await self._chat(turns.request), lambda reply: self._read(unit, reply))
        except ChatFailed as failed:
            turns.fail(failed)
            ended = {"failure": failed.reason} if failed.stop else {}
        except OutOfBudget:
            turns.leave()
            ended = {"out_of_budget": True}
        except UserError as fault:
            if not turns.has_news:
                raise
            turns.leave()
            ended = {"failure": str(fault)}
        except asyncio.CancelledError:
            turns.leave()
            ended = {"cancelled": True}
        if not turns.has_news:
            return Asked(None, **ended)
        row = self._row(unit, turns)
        return Asked(row, tuple(turns.attempts), tuple(turns.replies), turns.new_repairs, **ended)

    async def _chat(self, request: ChatRequest) -> ChatReply:
        async with self.budget.questions(request, attempts=self.teacher.most_billed) as outcomes:
            try:
                reply = await self.teacher.chat(request)
            except ChatFailed as failed:
                outcomes.append(failed)
                raise
            except (UserError, asyncio.CancelledError):
                raise
            except Exception as error:
                raise UserError(
                    f"The teacher {type(self.teacher).__name__} has failed with {fault(error)}, which is a fault of its "
                    "own: a chat teacher says by ChatFailed that it got no answer."
                ) from None
            outcomes.append(reply)
        return with_cost(reply, self.teacher)

    def _read(self, unit: Unit, reply: ChatReply) -> dict[str, Any]:
        shown = {**{name: getattr(unit.pair, name) for name in TEXTS}, **unit.inputs}
        strict = self.teacher.follows_schema
        return read_answer(reply.text, reply.finish_reason, unit.stage, self.levels, shown, strict)

    def _row(self, unit: Unit, turns: Turns) -> Answered:
        subject = self.config.guide.subject(unit.stage.name)
        return Answered(
            key=unit.key,
            stage=unit.stage.name,
            subject=unit.subject,
            job_id=unit.pair.job_id if subject != "candidate" else None,
            candidate_id=unit.pair.candidate_id if subject != "job" else None,
            pair_id=unit.pair.pair_id if subject == "pair" else None,
            sample=unit.sample,
            state="ok" if turns.reason is None else "quarantined",
            reason=turns.reason,
            raw=turns.raw,
            parsed=turns.parsed,
            finish_reason=turns.finish_reason,
            prompt_tokens=sum(reply.prompt_tokens for reply in turns.replies),
            completion_tokens=sum(reply.completion_tokens for reply in turns.replies),
            cost=turns.cost,
            repairs=turns.repairs,
            teacher=self.teacher_key,
            seconds=sum(attempt.seconds for attempt in turns.attempts),
        )


def with_cost(reply: ChatReply, teacher: Teacher) -> ChatReply:
    """The reply with what it has cost, where the teacher hasn't said so and its price is known."""
    if reply.cost is None and teacher.price is not None:
        return replace(reply, cost=Price(*teacher.price).of_answer(reply.prompt_tokens, reply.completion_tokens))
    return reply
