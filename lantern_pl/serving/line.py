"""The line to a model's workers: questions go in, answers come back, and nobody waits for ever."""

import asyncio
import sys
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

from litserve import LitServer
from litserve.utils import LitAPIStatus, ResponseBufferItem

from lantern_pl.serving.errors import ServiceError, place_of

_Message = tuple[int, str, float, Any]
"""As LitServe's workers take it: who is to be answered, under which name, when it was asked, and what."""


class Line:
    """Puts questions into LitServe's queue of one route and waits for their answers.

    Args:
        server: whose workers answer.
        route: the worker's `api_path`.
        max_waiting: how many questions may be open at once.
        timeout: seconds for an answer.
        group: up to how many questions that come at once go in one message, for a `BatchLoop`; 1 for LitServe's own loops.
    """

    def __init__(self, server: LitServer, route: str, max_waiting: int, timeout: float, group: int = 1) -> None:
        self.group = group
        self.waiting = 0
        self.max_waiting = max_waiting
        self.timeout = timeout
        self._server = server
        self._route = route
        self._coming: list[_Message] = []

    def put(self, message: _Message) -> None:
        """Send a question to the workers; a group's, once all that is to be done at the moment is done.

        Raises ServiceError if the service is ending; a group's is answered with it then.
        """
        if self.group == 1:
            try:
                self._queue.put(message)
            except (OSError, EOFError):
                raise _ending() from None
            return
        if not self._coming:
            asyncio.get_running_loop().call_soon(self._put_coming)
        self._coming.append(message)

    def _put_coming(self) -> None:
        coming, self._coming = self._coming, []
        for start in range(0, len(coming), self.group):
            messages = coming[start : start + self.group]
            try:
                self._queue.put(messages)
            except Exception as error:  # whatever it is, nobody else would hear of it
                is_ending = isinstance(error, (OSError, EOFError))
                if not is_ending:
                    print(f"{self._route}: {place_of(error)}", file=sys.stderr, flush=True)
                for _, uid, *_ in messages:
                    if (said := self._server.response_buffer.get(uid)) is not None:
                        said.response = (_ending() if is_ending else _broken(), LitAPIStatus.ERROR)
                        said.event.set()

    @property
    def _queue(self) -> Any:
        return self._server.litapi_request_queues[self._route]

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
        asked: list[_Asked] = []
        try:
            for question in questions:
                asked.append(_Asked(self, question))  # those before one that fails are closed, too
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


def _ending() -> ServiceError:
    return ServiceError(503, "not_ready", "The service is ending.", 5.0)


def _broken() -> ServiceError:
    return ServiceError(500, "internal", "Something failed here that isn't your request's fault.")


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
            line.put((line._server.app.response_queue_id, self._uid, time.monotonic(), question))
        except ServiceError:
            self.close()
            raise

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
        if isinstance(content, ServiceError):
            raise content
        if status != LitAPIStatus.OK:
            # A worker of ours says in words that it failed: this is one that died, or found the question out of date.
            raise ServiceError(504, "timeout", f"No answer within {self._line.timeout:g} seconds.", 1.0)
        return content

    def close(self) -> None:
        if self._buffer.pop(self._uid, None) is not None:
            self._line.waiting -= 1
