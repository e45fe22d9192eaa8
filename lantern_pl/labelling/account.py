"""What a label run costs: tokens and money spent, and a budget that is never passed."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from lantern_pl.errors import UserError
from lantern_pl.teachers.chat import ChatFailed, ChatReply, ChatRequest

PER_MILLION = 1e6


@dataclass(frozen=True)
class Price:
    """Money per million tokens, in whatever currency the budget is in."""

    input: float
    """Per million tokens of the prompts."""
    output: float
    """Per million tokens of the answers."""

    def __post_init__(self) -> None:
        if not (0 <= self.input < float("inf") and 0 <= self.output < float("inf")):
            raise UserError(f"price is {self.input} and {self.output} per million tokens: give numbers of 0 or more")

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        """The cost of so many tokens."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / PER_MILLION

    def of_answer(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """What an answer has cost; None where it came without its tokens, unless these cost nothing anyway."""
        if self.is_nothing or (prompt_tokens and completion_tokens):
            return self.of(prompt_tokens, completion_tokens)
        return None

    @property
    def is_nothing(self) -> bool:
        return self.input == self.output == 0

    def most(self, request: ChatRequest) -> float:
        """What one answer to the question can cost, at most."""
        return self.of(most_prompt_tokens(request), request.max_tokens)


def most_prompt_tokens(request: ChatRequest) -> int:
    """How many tokens a question can be, at most: one is at least one byte of UTF-8."""
    schema = len(json.dumps(request.schema)) if request.schema else 0
    # Some tokens of roles and templates come with each message.
    return schema + sum(len(message["content"].encode("utf-8", "surrogatepass")) + 64 for message in request.messages)


class OutOfBudget(Exception):
    """The next question could cost more than what is left."""


@dataclass
class Tally:
    """What happened to the units of one stage in this run."""

    total: int = 0
    asked: int = 0
    """Answered in this run, whatever came of it."""
    cached: int = 0
    """Answered before."""
    blocked: int = 0
    """Not asked, since an answer that they build on is in quarantine."""
    quarantined: Counter[str] = field(default_factory=Counter)
    """By reason, of this run and before."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = 0.0
    """None as soon as one answer's cost isn't known."""
    attempts: Counter[str] = field(default_factory=Counter)
    """By outcome."""
    repairs: int = 0

    @property
    def done(self) -> int:
        return self.asked + self.cached + self.blocked

    def add(self, reply: ChatReply) -> None:
        """Count one reply's tokens and cost."""
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens
        self.cost = None if self.cost is None or reply.cost is None else self.cost + reply.cost


class Budget:
    """A hard limit on the money of a run: each question's highest possible cost is set aside before it's asked.

    Args:
        limit: how much may be spent in this run, or None.
        price: of the teacher's tokens; needed with a limit.
    """

    def __init__(self, limit: float | None, price: Price | None) -> None:
        if limit is not None and price is None:
            raise UserError(
                f"budget is {limit}, but the teacher's price isn't known: give it to the teacher (for litellm "
                "teacher.init_args.price, per million tokens), or leave the budget out."
            )
        if limit is not None and not 0 < limit < float("inf"):
            raise UserError(f"budget is {limit}: give a number above 0.")
        self.limit = limit
        self.spent = 0.0
        self.price = price
        self._set_aside = 0.0
        self._change = asyncio.Condition()

    def most(self, requests: Sequence[ChatRequest], attempts: int = 1) -> float:
        """The highest cost that questions can have, each with so many attempts that may be billed; 0 without a limit."""
        return 0.0 if self.limit is None or self.price is None else sum(map(self.price.most, requests)) * attempts

    def cost(self, requests: Sequence[ChatRequest], outcomes: Sequence[ChatReply | ChatFailed]) -> float:
        """What has been spent on questions, as far as the limit goes.

        A reply without its tokens, and each attempt that may be billed although nothing came of it, counts with the most
        that it can have cost.
        """
        if self.limit is None or self.price is None:
            return 0.0
        most, spent = max(map(self.price.most, requests), default=0.0), 0.0
        for outcome in outcomes:
            spent += most * sum(attempt.may_be_billed for attempt in outcome.attempts)
            if isinstance(outcome, ChatReply):
                known = self.price.of_answer(outcome.prompt_tokens, outcome.completion_tokens)
                spent += most if known is None else known
        return spent

    async def set_aside(self, most: float) -> None:
        """Wait until so much can be paid. Raises OutOfBudget where waiting won't help."""
        async with self._change:
            while self.limit is not None and self.spent + self._set_aside + most > self.limit:
                if not self._set_aside:
                    raise OutOfBudget
                await self._change.wait()
            self._set_aside += most

    async def settle(self, most: float, spent: float) -> None:
        """Give back what was set aside, but for what was spent."""
        async with self._change:
            # Rounding could leave a trace of what was set aside, and nobody would be left to wait for.
            self._set_aside = max(0.0, self._set_aside - most)
            if self._set_aside < 1e-12:
                self._set_aside = 0.0
            self.spent += spent
            self._change.notify_all()

    @asynccontextmanager
    async def questions(self, *requests: ChatRequest, attempts: int = 1) -> AsyncIterator[list[ChatReply | ChatFailed]]:
        """Wait until all questions can be paid for whatever the answers; the caller appends what came of them to the list
        it gets. `attempts` is how many of each may be billed. Raises OutOfBudget where waiting won't help.
        """
        outcomes: list[ChatReply | ChatFailed] = []
        if self.limit is None:
            yield outcomes
            return
        most = self.most(requests, attempts)
        await self.set_aside(most)
        try:
            yield outcomes
        finally:
            await self.settle(most, self.cost(requests, outcomes))
