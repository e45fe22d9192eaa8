"""The line to a model's workers: questions go in, answers come back, and nobody waits for ever."""

import asyncio
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

from litserve import LitServer
from litserve.utils import LitAPIStatus, ResponseBufferItem

from lantern_pl.serving.errors import ServiceError


class Line:
    """Puts questions into LitServe's queue of one route and waits for their answers.

    Args:
        server: whose workers answer.
        route: the worker's `api_path`.
        max_waiting: how many questions may be open at once.
        timeout: seconds for an answer.
    """

    def __init__(self, server: LitServer, route: str, max_waiting: int, timeout: float) -> None:
        self.waiting = 0
        self.max_waiting = max_waiting
        self.timeout = timeout
        self._server = server
        self._route = route

    def check_room(self, questions: int) -> None:
        """Raise ServiceError unless there is room for so many more questions."""
        if self.waiting + questions > self.max_waiting:
            raise ServiceError(
                503, "overloaded", f"{self.waiting} pairs are waiting, of {self.max_waiting} that may: try again.", 1.0
            )

    async def ask(self, questions: list[Any]) -> list[Any]:
        """The answers to all questions, each of which is one for the worker's batches. Raises ServiceError if there is no
        room for all of them, or they took too long."""
        self.check_room(len(questions))
        until = time.monotonic() + self.timeout
        asked = [_Asked(self, question) for question in questions]
        try:
            return [await one.next(until) for one in asked]
        finally:
            for one in asked:
                one.close()

    async def listen(self, question: Any, until: float) -> AsyncGenerator[Any, None]:
        """What a streaming worker says to a question, until it has finished. Raises ServiceError likewise."""
        self.check_room(1)
        one = _Asked(self, question)
        try:
            while (said := await one.next(until)) is not _FINISHED:
                yield said
        finally:
            one.close()


_FINISHED = object()


class _Asked:
    """One open question."""

    def __init__(self, line: Line, question: Any) -> None:
        self._line = line
        self._buffer: dict[str, ResponseBufferItem] = line._server.response_buffer
        self._uid = str(uuid.uuid4())
        self._said = ResponseBufferItem(event=asyncio.Event(), response_queue=deque())
        line.waiting += 1
        self._buffer[self._uid] = self._said
        try:
            queue = line._server.litapi_request_queues[line._route]
            queue.put((line._server.app.response_queue_id, self._uid, time.monotonic(), question))
        except (OSError, EOFError):
            self.close()
            raise ServiceError(503, "not_ready", "The service is ending.", 5.0) from None

    async def next(self, until: float) -> Any:
        """The answer, or the next piece of one."""
        said = self._said
        assert said.response_queue is not None
        while not said.response_queue and said.response is None:
            said.event.clear()
            try:
                await asyncio.wait_for(said.event.wait(), until - time.monotonic())
            except TimeoutError:
                raise ServiceError(504, "timeout", f"No answer within {self._line.timeout:g} seconds.", 1.0) from None
        content, status = said.response or said.response_queue.popleft()
        if status == LitAPIStatus.FINISH_STREAMING:
            return _FINISHED
        if status != LitAPIStatus.OK:
            # A worker of ours says in words that it failed: this is one that died, or found the question out of date.
            raise ServiceError(504, "timeout", f"No answer within {self._line.timeout:g} seconds.", 1.0)
        return content

    def close(self) -> None:
        if self._buffer.pop(self._uid, None) is not None:
            self._line.waiting -= 1
