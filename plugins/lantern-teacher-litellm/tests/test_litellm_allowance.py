"""How many requests are open at once, and how many go through in a minute."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from lantern_teacher_litellm.allowance import FIRST, Allowance
from lantern_teacher_litellm.rate import Rate


def in_a_loop(check: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            await check()

    asyncio.run(main())


async def succeed(allowance: Allowance, count: int) -> None:
    """So many requests that the server answers, as many at once as are allowed."""
    for _ in range(count):
        while allowance.open < int(allowance.limit):
            await allowance.enter()
        allowance.succeeded()
        allowance.leave()


def test_it_starts_low_and_fills_up_to_the_most() -> None:
    async def check() -> None:
        allowance = Allowance(64)
        assert allowance.limit == FIRST < 64
        await succeed(allowance, 64 - FIRST)
        assert allowance.limit == 64
        await succeed(allowance, 100)
        assert allowance.limit == 64
        assert Allowance(3).limit == 3

    in_a_loop(check)


def test_a_refusal_leaves_three_quarters_once_for_all_that_were_open() -> None:
    async def check() -> None:
        allowance = Allowance(64)
        await succeed(allowance, 64)
        while allowance.open:
            allowance.leave()
        tickets = [await allowance.enter() for _ in range(64)]
        for ticket in tickets[:20]:
            allowance.refused(ticket, None)
            allowance.leave()
        assert allowance.limit == 48
        # Those that came after it tell something new.
        for _ in tickets[20:]:
            allowance.leave()
        ticket = await allowance.enter()
        allowance.refused(ticket, None)
        assert allowance.limit == 36

    in_a_loop(check)


def test_after_a_refusal_a_window_of_successes_adds_one() -> None:
    async def check() -> None:
        allowance = Allowance(64)
        await succeed(allowance, 8)
        allowance.refused(0, None)  # a ticket from before any refusal
        assert allowance.limit == 12
        await succeed(allowance, 11)
        assert allowance.limit < 13
        await succeed(allowance, 2)
        assert allowance.limit == pytest.approx(13, abs=0.1)

    in_a_loop(check)


def test_it_never_falls_below_one() -> None:
    async def check() -> None:
        allowance = Allowance(4)
        for _ in range(20):
            allowance.refused(await allowance.enter(), None)
            allowance.leave()
        assert allowance.limit == 1
        assert await allowance.enter() == 20

    in_a_loop(check)


def test_what_isnt_used_doesnt_grow() -> None:
    async def check() -> None:
        allowance = Allowance(64)
        for _ in range(100):
            await allowance.enter()
            allowance.succeeded()
            allowance.leave()
        assert allowance.limit == FIRST

    in_a_loop(check)


def test_who_waits_gets_in_in_turn_and_never_too_many() -> None:
    async def check() -> None:
        allowance, order, most = Allowance(3), [], 0

        async def work(name: int) -> None:
            nonlocal most
            await allowance.enter()
            order.append(name)
            most = max(most, allowance.open)
            await asyncio.sleep(0.001)
            allowance.leave()

        async with asyncio.TaskGroup() as group:
            for name in range(20):
                group.create_task(work(name))
        assert order == list(range(20))
        assert most == 3
        assert allowance.open == 0

    in_a_loop(check)


def test_who_gives_up_waiting_takes_no_place() -> None:
    async def check() -> None:
        allowance = Allowance(1)
        await allowance.enter()
        waiting = [asyncio.create_task(allowance.enter()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        allowance.leave()
        # Given and given up at the same moment.
        waiting[1].cancel()
        await asyncio.wait(waiting)
        assert waiting[1].cancelled()
        assert not waiting[2].cancelled()
        assert allowance.open == 1

    in_a_loop(check)


def test_a_server_that_asks_to_wait_is_left_alone_by_all() -> None:
    async def check() -> None:
        allowance = Allowance(8)
        ticket = await allowance.enter()
        allowance.refused(ticket, 0.3)
        allowance.leave()
        started = time.monotonic()
        await asyncio.gather(*(allowance.enter() for _ in range(3)))
        assert 0.25 < time.monotonic() - started < 30

    in_a_loop(check)


@pytest.mark.parametrize(("per_minute", "amount"), [(600, 1), (6000, 30)])
def test_a_rate_is_kept_from_the_first_second(per_minute: float, amount: float) -> None:
    async def check() -> None:
        rate, started = Rate(per_minute), time.monotonic()
        takings = int(per_minute / 60 / amount * 2)
        await asyncio.gather(*(rate.take(amount) for _ in range(takings)))
        took = time.monotonic() - started
        # Two seconds' worth, the first of them at once.
        assert 0.7 < took < 50

    in_a_loop(check)


def test_one_taking_may_be_more_than_comes_at_once() -> None:
    async def check() -> None:
        rate, started = Rate(600), time.monotonic()
        await rate.take(15)
        assert 0.4 < time.monotonic() - started < 40

    in_a_loop(check)


def test_less_than_one_a_second() -> None:
    async def check() -> None:
        rate, started = Rate(6), time.monotonic()
        await rate.take()
        assert time.monotonic() - started < 5  # the first at once, the next after ten seconds

        rate, started = Rate(90), time.monotonic()
        await rate.take()
        await rate.take()
        assert 0.3 < time.monotonic() - started < 40

    in_a_loop(check)
