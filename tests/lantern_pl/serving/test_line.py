"""The line to the workers: what goes in one message, and who is told when none can go."""

import asyncio
from collections.abc import Iterator
from multiprocessing import Manager
from types import SimpleNamespace
from typing import Any

import pytest

from lantern_pl.serving.errors import ServiceError
from lantern_pl.serving.line import Line


@pytest.fixture
def server() -> Iterator[Any]:
    """As much of LitServe's server as a line knows, with a queue as it has."""
    with Manager() as manager:
        app = SimpleNamespace(response_queue_id=0)
        yield SimpleNamespace(manager=manager, app=app, response_buffer={}, litapi_request_queues={"/fit": manager.Queue()})


def line_of(server: Any, group: int) -> Line:
    return Line(server, "/fit", max_waiting=100, timeout=0.2, group=group)


async def failures(line: Line, requests: list[list[Any]]) -> list[ServiceError]:
    """What each request ends with, where nobody answers."""
    ended = await asyncio.gather(*(line.ask(questions) for questions in requests), return_exceptions=True)
    assert all(isinstance(one, ServiceError) for one in ended), ended
    return [one for one in ended if isinstance(one, ServiceError)]


@pytest.mark.parametrize(("group", "sizes"), [(1, [1] * 5), (3, [3, 2]), (8, [5])])
def test_questions_that_come_at_once_go_together(server: Any, group: int, sizes: list[int]) -> None:
    line = line_of(server, group)
    ended = asyncio.run(failures(line, [["a"], ["b", "c"], ["d"], ["e"]]))
    assert [one.status for one in ended] == [504] * 4  # nobody has answered
    queue = server.litapi_request_queues["/fit"]
    messages = [queue.get_nowait() for _ in range(queue.qsize())]
    assert [len(message) if isinstance(message, list) else 1 for message in messages] == sizes
    asked = [one for message in messages for one in (message if isinstance(message, list) else [message])]
    assert [question for *_, question in asked] == list("abcde")
    assert (line.waiting, server.response_buffer) == (0, {})


@pytest.mark.parametrize("group", [1, 3])
def test_of_a_service_that_ends_nobody_waits(server: Any, group: int) -> None:
    server.manager.shutdown()
    line = line_of(server, group)
    ended = asyncio.run(failures(line, [["a", "b"], ["c"], ["d"]]))
    assert [(one.status, one.type) for one in ended] == [(503, "not_ready")] * 3
    assert (line.waiting, server.response_buffer) == (0, {})


def test_a_fault_is_told_to_those_that_it_concerns(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A question that can't be sent takes its group along, and no other."""
    line = line_of(server, 2)
    ended = asyncio.run(failures(line, [["a"], [lambda: None], ["c"], ["d"]]))
    assert [one.status for one in ended] == [500, 500, 504, 504]
    assert "/fit: " in capsys.readouterr().err
    assert (line.waiting, server.response_buffer) == (0, {})
