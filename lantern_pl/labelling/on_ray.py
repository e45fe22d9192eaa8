"""Labelling by the workers of a Ray cluster: they ask, and the process of the command is the only one to write the store."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

from lantern_pl.data.pair import Pair
from lantern_pl.labelling.account import Budget, OutOfBudget, Price, Tally
from lantern_pl.labelling.asking import Asked, Asker, Unit
from lantern_pl.labelling.config import LabelConfig
from lantern_pl.labelling.staged import StagedRun
from lantern_pl.labelling.store_rows import Answered
from lantern_pl.labelling.whole import PairAsker, WholeRun
from lantern_pl.model_files import quiet_transformers
from lantern_pl.scale.cluster import Cluster, connected
from lantern_pl.tasks.stage import Stage
from lantern_pl.teachers.chat import ChatFailed, ChatReply, ChatRequest

PATIENCE = 60.0
"""Seconds that a question waits for money. Then a worker may be lost with what was set aside for its questions: the others
are finished, and what was lost is taken for spent."""

Tell = Callable[[str, Tally], None]


def run_on_ray(run: StagedRun | WholeRun, tell: Tell) -> None:
    """What `run.run` does, on the cluster of the config; what workers were asked that are lost is asked again."""
    with connected(run.config.ray) as cluster:
        if isinstance(run, WholeRun):
            _ask_pairs(run, cluster, tell)
            return
        with _board(cluster, run.budget) as board:
            for stage in run.stages:
                _ask_stage(run, stage, cluster, board, tell)
                run.check()
                if run.stopping:
                    return


# Whole pairs


def _ask_pairs(run: WholeRun, cluster: Cluster, tell: Tell) -> None:
    tally = run.begin()
    tell(run.stage, tally)
    numbers = count()
    under_way: dict[str, list[Pair]] = {}

    def take() -> tuple[str, list[Pair]] | None:
        if (batch := run.next_batch()) is None:
            return None
        key = str(next(numbers))
        under_way[key] = batch
        return key, batch

    make = partial(_pair_asker, run.config, run.stage)
    for key, rows in cluster.results(make, take, go_on=lambda: not run.stopping):
        run.keep(rows, under_way.pop(key), tally)
        tell(run.stage, tally)
        if run.stopping:
            return


def _pair_asker(config: LabelConfig, stage: str) -> Callable[[Sequence[Pair]], list[Answered]]:
    quiet_transformers()
    asker = PairAsker(config, stage)
    asker.get_ready()
    return asker.rows


# Stages


def _ask_stage(run: StagedRun, stage: Stage, cluster: Cluster, board: Any, tell: Tell) -> None:
    tally = run.begin(stage)
    tell(stage.name, tally)
    unsettled = run.unsettled(stage, tally)
    under_way: dict[str, Unit] = {}
    unasked: deque[Unit] = deque()
    kept: deque[Future[None]] = deque()

    def go_on() -> bool:
        run.budget.spent, used_up = cluster.ray.get(board.next_round.remote())
        if used_up:
            run.end_by_budget()
        return not run.stopping

    def take() -> tuple[str, Unit] | None:
        unit = unasked.popleft() if unasked else next(unsettled, None)
        if unit is None:
            return None
        under_way[unit.key] = unit
        return unit.key, unit

    make = partial(StageWorker, run.config, run.teacher_key, run.budget.limit, run.budget.price, board)
    told = False
    for key, came in cluster.results(make, take, run.teacher.max_in_flight, go_on):
        unit = under_way.pop(key)
        run.got_ready(came.ready, tell)
        if came.asked.row is not None:
            kept.append(run.keep(came.asked, tally))
        if came.asked.out_of_budget:
            # Or lacked money only for the moment: whether the run is to end is the board's to say, between rounds.
            unasked.append(unit if came.asked.row is None else replace(unit, before=came.asked.row))
        else:
            run.end_with(came.asked)
        while kept and (kept[0].done() or not under_way):
            kept.popleft().result()
        if run.stopping and not told:
            told = True
            board.stop.remote()
        tell(stage.name, tally)
    for future in kept:
        future.result()
    tell(stage.name, tally)


@dataclass(frozen=True)
class Came:
    """What came of a question; and what the teacher has asked for itself before it, if this was a worker's first."""

    asked: Asked
    ready: tuple[ChatReply, ...] = ()


class StageWorker:
    """Asks in a worker, many questions at once."""

    def __init__(self, config: LabelConfig, teacher_key: str, limit: float | None, price: Price | None, board: Any) -> None:
        quiet_transformers()
        self._asker = Asker(config, teacher_key, BoardBudget(Budget(limit, price), board))
        self._getting_ready = asyncio.Lock()
        self._ready = False

    async def __call__(self, unit: Unit) -> Came:
        replies: tuple[ChatReply, ...] = ()
        async with self._getting_ready:
            if not self._ready:
                try:
                    replies = await self._asker.get_ready()
                except OutOfBudget:
                    return Came(Asked(None, out_of_budget=True))
                self._ready = True
        return Came(await self._asker.ask(unit), replies)


# Money and the end


class Board:
    """The one place that all workers ask before each question: whether there's money for it, and whether the run goes on.

    An actor beside the process of the command.
    """

    def __init__(self, limit: float | None, price: Price | None) -> None:
        self._budget = Budget(limit, price)
        self._leases: dict[int, float] = {}
        self._count = 0
        self._closed = self._used_up = self._stopped = False

    async def begin(self, most: float) -> int | None:
        """A lease of so much money, to be given back; None where the question isn't to be asked now."""
        if self._closed:
            return None
        try:
            async with asyncio.timeout(PATIENCE):
                await self._budget.set_aside(most)
        except OutOfBudget:
            self._closed = self._used_up = True
            return None
        except TimeoutError:
            self._closed = True
            return None
        if self._closed:
            await self._budget.settle(most, 0.0)
            return None
        self._count += 1
        self._leases[self._count] = most
        return self._count

    async def end(self, lease: int, spent: float) -> None:
        """The question is answered, or failed."""
        most = self._leases.pop(lease, None)
        if most is not None:  # or it was taken for lost, and for spent
            await self._budget.settle(most, spent)

    async def next_round(self) -> tuple[float, bool]:
        """Nothing is under way: what was set aside still is lost, and may have been spent. Returns what was spent, and
        whether the next question could cost more than what is left."""
        for most in self._leases.values():
            await self._budget.settle(most, most)
        self._leases.clear()
        self._closed = self._used_up or self._stopped
        return self._budget.spent, self._used_up

    async def stop(self) -> None:
        """No further questions."""
        self._closed = self._stopped = True


class BoardBudget:
    """What pays for a worker's questions: the board."""

    def __init__(self, budget: Budget, board: Any) -> None:
        self._budget = budget
        self._board = board

    @asynccontextmanager
    async def questions(self, *requests: ChatRequest, attempts: int = 1) -> AsyncIterator[list[ChatReply | ChatFailed]]:
        lease = await self._board.begin.remote(self._budget.most(requests, attempts))
        if lease is None:
            raise OutOfBudget
        outcomes: list[ChatReply | ChatFailed] = []
        try:
            yield outcomes
        finally:
            await self._board.end.remote(lease, self._budget.cost(requests, outcomes))


@contextmanager
def _board(cluster: Cluster, budget: Budget) -> Iterator[Any]:
    """Its last word on what was spent goes into the budget."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(cluster.ray.get_runtime_context().get_node_id(), soft=False)
    actor = cluster.ray.remote(num_cpus=0, max_concurrency=1_000_000, scheduling_strategy=here)(Board)
    board = actor.remote(budget.limit, budget.price)
    try:
        yield board
        budget.spent, _ = cluster.ray.get(board.next_round.remote())
    finally:
        cluster.ray.kill(board)
