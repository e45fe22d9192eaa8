"""Runs a guide's stages on a chat teacher: many questions at once, and each answer is kept before it counts."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import chain
from typing import Any

from lantern_pl.data.pair import Pair
from lantern_pl.errors import UserError
from lantern_pl.labelling.account import Budget, OutOfBudget, Tally
from lantern_pl.labelling.asking import Asked, Asker, Unit
from lantern_pl.labelling.config import LabelConfig
from lantern_pl.labelling.labels import NOT_ASKED, Label, NoLabel, majority
from lantern_pl.labelling.store import Answered, LabelStore
from lantern_pl.labelling.turns import is_unfinished
from lantern_pl.tasks.guide import TEXTS, Stage, compact
from lantern_pl.tasks.schema import json_schema, model_of
from lantern_pl.teachers.chat import ChatReply, ChatRequest

READY = "getting ready"
"""Where the report has what the teacher has asked for itself."""


class StagedRun:
    """Labels pairs by the stages of `config.guide`.

    Args:
        config: what to do.
        pairs: about whom.
        store: what was answered before, and where answers go.
        budget: what may be spent.
        retry_quarantined: whether to ask again what is in quarantine.
    """

    def __init__(
        self, config: LabelConfig, pairs: Sequence[Pair], store: LabelStore, budget: Budget, retry_quarantined: bool = False
    ) -> None:
        self.config = config
        self.pairs = pairs
        self.store = store
        self.budget = budget
        self.retry_quarantined = retry_quarantined
        self.levels = config.task.levels
        self.stages = config.guide.plan(self.levels)
        self.teacher = config.teacher
        self.teacher_key = config.teacher.chat_key()
        self._asker = Asker(config, self.teacher_key, budget)
        self.tallies = {stage.name: Tally() for stage in self.stages}
        self.stopping = False
        self._failure: str | None = None
        self._out_of_budget = False
        self._deciding = next(stage.name for stage in self.stages if "level" in stage.output)
        self._explaining = next(stage.name for stage in self.stages if "explanation" in stage.output)
        self._schemas = {stage.name: json_schema(model_of(stage, self.levels)) for stage in self.stages}
        self._commit: Future[None] | None = None
        # Keys rather than answers: a run's memory doesn't grow with what it's told.
        self._keys: dict[tuple[str, str], list[str]] = {}

    @property
    def ended_by_budget(self) -> bool:
        return self._out_of_budget

    # What there is to ask

    def subject(self, stage: Stage, pair: Pair) -> str:
        """The id of what the stage's answer is about."""
        kind = self.config.guide.subject(stage.name)
        return {"job": pair.job_id, "candidate": pair.candidate_id, "pair": pair.pair_id}[kind]

    def subjects(self, stage: Stage) -> Iterator[tuple[str, Pair]]:
        """Each subject of a stage once, with a pair that it's in."""
        seen: set[str] = set()
        for pair in self.pairs:
            subject = self.subject(stage, pair)
            if subject not in seen:
                seen.add(subject)
                yield subject, pair

    def samples(self, stage: Stage) -> int:
        return self.config.samples if stage.name == self._deciding else 1

    def units(self, stage: Stage) -> Iterator[Unit | None]:
        """The questions of a stage; None in the place of one that can't be asked, since what it reads is missing."""
        for subject, pair in self.subjects(stage):
            inputs = self.inputs(stage, pair)
            keys = self._keys[stage.name, subject] = []
            for sample in range(self.samples(stage)):
                if inputs is None:
                    yield None
                    continue
                unit = self._unit(stage, subject, pair, sample, inputs)
                keys.append(unit.key)
                yield unit

    def inputs(self, stage: Stage, pair: Pair) -> Mapping[str, str] | None:
        """What a stage reads about a pair: texts, and answers of earlier stages as JSON; None where one is missing."""
        inputs: dict[str, str] = {}
        for name in stage.reads:
            if name in TEXTS:
                inputs[name] = getattr(pair, name)
                continue
            answer = self.answer(name, pair)
            if not isinstance(answer, Answered) or answer.parsed is None:
                return None
            inputs[name] = compact(answer.parsed)
        return inputs

    def _unit(self, stage: Stage, subject: str, pair: Pair, sample: int, inputs: Mapping[str, str]) -> Unit:
        request = ChatRequest(
            messages=self.config.guide.messages(stage, inputs, self.levels),
            schema=self._schemas[stage.name],
            temperature=self.config.temperature,
            max_tokens=stage.max_tokens,
            seed=seed_of(self.config.seed, sample),
        )
        # Alike texts of two persons are two questions: each is forgotten with its own person.
        key = hashlib.sha256(f"{request.key(self.teacher_key)} {subject}".encode()).hexdigest()
        return Unit(stage, subject, pair, sample, inputs, request, key)

    # Asking

    async def run(self, tell: Callable[[str, Tally], None]) -> None:
        """Ask what isn't answered yet, stage by stage; `tell` hears of each answer.

        Ends early, with what is in flight answered and kept, once `stopping` is set or the budget is used up. Raises
        UserError where the teacher can't be used or the store can't be written.
        """
        ready = False
        try:
            for stage in self.stages:
                tally = self.begin(stage)
                tell(stage.name, tally)
                units = self.unsettled(stage, tally)
                if (first := next(units, None)) is not None:
                    if not ready:  # not before: it may cost, and wants a server, which a finished run has no need of
                        self.got_ready(await self._asker.get_ready(), tell)
                        ready = True
                    await self._ask_all(stage.name, chain([first], units), tally, tell)
                tell(stage.name, tally)
                self.check()
                if self.stopping:
                    return
        except OutOfBudget:
            self.end_by_budget()
        finally:
            if ready:
                await self.teacher.close()

    async def _ask_all(self, stage: str, units: Iterator[Unit], tally: Tally, tell: Callable[[str, Tally], None]) -> None:
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(self.teacher.max_in_flight):
                    workers.create_task(self._work(stage, units, tally, tell))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _work(self, stage: str, units: Iterator[Unit], tally: Tally, tell: Callable[[str, Tally], None]) -> None:
        for unit in units:
            asked = await self._asker.ask(unit)
            if asked.row is not None:
                await self._on_disk(self.keep(asked, tally))
            tell(stage, tally)
            if asked.cancelled:
                raise asyncio.CancelledError
            self.end_with(asked)

    async def _on_disk(self, commit: "Future[None]") -> None:
        """Wait for a commit, as others do for the same one: the store's thread wakes the event loop once for all of them."""
        if commit is not self._commit:
            self._commit, self._committed = commit, asyncio.wrap_future(commit)
            # Looked at also where all who wait were cancelled meanwhile: asyncio would tell of it in its own words.
            self._committed.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(self._committed)  # of which one may be cancelled

    # What whoever asks tells the run

    def got_ready(self, replies: Sequence[ChatReply], tell: Callable[[str, Tally], None]) -> None:
        """Count what a teacher has asked for itself before the first question."""
        if not replies:
            return
        if READY not in self.tallies:
            self.tallies = {READY: Tally(), **self.tallies}
        tally = self.tallies[READY]
        for reply in replies:
            tally.add(reply)
            tally.attempts.update(attempt.outcome for attempt in reply.attempts)
        tally.total = tally.asked = tally.asked + len(replies)
        tell(READY, tally)

    def begin(self, stage: Stage) -> Tally:
        """The tally of a stage that is to be asked."""
        tally = self.tallies[stage.name]
        tally.total = sum(1 for _ in self.subjects(stage)) * self.samples(stage)
        return tally

    def unsettled(self, stage: Stage, tally: Tally) -> Iterator[Unit]:
        """The questions of a stage that there is no answer to, until the run is to stop; the others are counted."""
        known = self.store.keys(stage.name)  # a look into the store for each new question would take longer than to ask it
        for unit in self.units(stage):
            if self.stopping:
                return
            if unit is None:
                tally.blocked += 1
            elif self._settled(row := self.store.get(unit.key) if unit.key in known else None):
                tally.cached += 1
                if row is not None and row.state == "quarantined":
                    tally.quarantined[row.reason or ""] += 1
            else:
                yield unit if row is None else replace(unit, before=row)

    def keep(self, asked: Asked, tally: Tally) -> "Future[None]":
        """Put an answer into the store and count what it took. It's there once the future is done."""
        assert asked.row is not None
        for reply in asked.replies:
            tally.add(reply)
        tally.attempts.update(attempt.outcome for attempt in asked.attempts)
        tally.repairs += asked.repairs
        tally.asked += 1
        if asked.row.reason is not None:
            tally.quarantined[asked.row.reason] += 1
        return self.store.put(asked.row, asked.attempts)

    def end_with(self, asked: Asked) -> None:
        """Stop where a question has ended in a way that leaves nothing for the next one."""
        if asked.out_of_budget:
            self.end_by_budget()
        if asked.failure is not None:
            self._failure, self.stopping = asked.failure, True

    def end_by_budget(self) -> None:
        self._out_of_budget = self.stopping = True

    def check(self) -> None:
        """Raise UserError where the teacher has failed for good."""
        if self._failure is not None:
            raise UserError(f"{self._failure} What was answered is kept: run the same command again.")

    def is_settled(self, key: str) -> bool:
        """Whether there's no need to ask."""
        return self._settled(self.store.get(key))

    def _settled(self, row: Answered | None) -> bool:
        if row is None or is_unfinished(row, self.config.repair_turns):
            return False
        return row.state == "ok" or not self.retry_quarantined

    # What came of it

    def answer(self, stage: str, pair: Pair) -> Answered | NoLabel:
        """The stage's answer about a pair: of several samples the first one of the majority's level."""
        rows = self._rows(stage, pair)
        good = [row for row in rows if row.state == "ok" and row.parsed is not None]
        if not good:
            return NoLabel(f"{stage}: {rows[0].reason}") if rows else NOT_ASKED
        if stage != self._deciding:
            return good[0]
        if 2 * len(good) <= self.config.samples:
            # The few that could be read would pass for all: one of five for a teacher that is certain.
            return NoLabel(f"{stage}: no more than half of the samples could be read")
        level = majority(self.levels, self._votes(good))
        return next(row for row in good if row.parsed is not None and row.parsed["level"] == level)

    def label(self, pair: Pair) -> Label | NoLabel:
        """What the stages' answers about a pair come to."""
        answers = {stage.name: self.answer(stage.name, pair) for stage in self.stages}
        for answer in answers.values():
            if isinstance(answer, NoLabel):
                return answer
        parsed = {name: answer.parsed or {} for name, answer in answers.items() if isinstance(answer, Answered)}
        decided = parsed[self._deciding]
        good = [row for row in self._rows(self._deciding, pair) if row.state == "ok"]
        kinds = {item["requirement"]: item.get("kind", "") for item in _requirements(parsed, but=self._deciding)}
        return Label(
            level=decided["level"],
            explanation=parsed[self._explaining]["explanation"],
            votes=self._votes(good) if self.config.samples > 1 else None,
            confidence=decided.get("confidence"),
            requirements=[
                {"kind": kinds.get(item.get("requirement", ""), ""), **item} for item in decided.get("requirements", [])
            ],
            reduced_job_text=self.config.guide.reduced(parsed),
        )

    def _rows(self, stage: str, pair: Pair) -> list[Answered]:
        named = next(s for s in self.stages if s.name == stage)
        keys = self._keys.get((stage, self.subject(named, pair)), [])
        return [row for key in keys if (row := self.store.get(key)) is not None]

    def _votes(self, rows: Sequence[Answered]) -> tuple[float, ...]:
        counts = Counter(row.parsed["level"] for row in rows if row.parsed is not None)
        return tuple(float(counts[level]) for level in self.levels)


def seed_of(seed: int, sample: int) -> int:
    """What a sample is asked with. Not their sum, by which the samples of one seed would be those of its neighbours."""
    if sample == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {sample}".encode()).digest()[:4]) >> 1


def _requirements(parsed: Mapping[str, Mapping[str, Any]], but: str) -> Iterator[Mapping[str, Any]]:
    """The requirements that stages other than the deciding one have found."""
    for name, answer in parsed.items():
        if name != but:
            yield from answer.get("requirements", [])
