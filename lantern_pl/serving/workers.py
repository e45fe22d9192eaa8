"""What LitServe's worker processes share: their life, and a loop that waits instead of asking a thousand times a second."""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, Queue
from typing import Any

from litserve import LitAPI
from litserve.loops import BatchedLoop
from litserve.transport.base import MessageTransport
from litserve.utils import LitAPIStatus, LoopResponseType

from lantern_pl.model_files import quiet_transformers

_IDLE = 1.0


class BatchLoop(BatchedLoop):
    """Batches of what is waiting, the next ones of which fill up while one is computed.

    LitServe's own loop asks its queue once a millisecond, each time through another process; this one sleeps until the
    first pair comes, and then waits for others no longer than the batch's timeout. Pairs that have waited longer than a
    client does are left out. Pairs may come in lists, as `Line` sends them, and the answers of a batch go back in one
    message, for `Unpacked`.

    No message tells that a pair was taken up: LitServe would look for it in another process than the one that answers, so
    that the pairs of a worker that dies end by their timeout either way.
    """

    def __init__(self) -> None:
        super().__init__()
        self._taken: deque[Any] = deque()
        self._unanswered: set[str] = set()
        self._answers: list[tuple[str, tuple[Any, ...]]] = []

    def get_batch_requests(
        self, lit_api: LitAPI, request_queue: Queue[Any], transport: MessageTransport
    ) -> tuple[list[Any], list[Any]]:
        batch: list[Any] = []
        late: list[Any] = []
        wait, end = _IDLE, float("inf")
        while len(batch) < lit_api.max_batch_size:
            if not self._taken:
                try:
                    taken = request_queue.get(timeout=wait) if wait > 0 else request_queue.get_nowait()
                except Empty:
                    break
                self._taken.extend(taken if isinstance(taken, list) else [taken])
            consumer, uid, asked, payload = self._taken.popleft()
            now = time.monotonic()
            if now - asked > (lit_api.request_timeout or float("inf")):
                late.append((consumer, uid))
            else:
                batch.append((consumer, uid, payload))
                end = min(end, now + lit_api.batch_timeout)
            wait = min(_IDLE, end - now)
        self._unanswered, self._answers = {uid for _, uid, _ in batch}, []
        return batch, late

    def put_response(
        self,
        transport: MessageTransport,
        response_queue_id: int,
        uid: str,
        response_data: Any,
        status: LitAPIStatus,
        response_type: LoopResponseType,
    ) -> None:
        if uid not in self._unanswered:  # it has waited too long
            super().put_response(transport, response_queue_id, uid, response_data, status, response_type)
            return
        self._unanswered.remove(uid)
        self._answers.append((uid, (response_data, status, response_type, self.worker_id)))
        if not self._unanswered:
            transport.send(self._answers, consumer_id=response_queue_id)


class Unpacked(MessageTransport):
    """A transport whose messages may be lists of what LitServe takes for one message each."""

    def __init__(self, transport: MessageTransport) -> None:
        self._transport = transport
        self._left: deque[Any] = deque()

    def send(self, item: Any, consumer_id: int) -> None:
        self._transport.send(item, consumer_id)

    async def areceive(self, consumer_id: int, timeout: int | None = None) -> Any:
        if not self._left:
            message = await self._transport.areceive(consumer_id=consumer_id, timeout=timeout)
            self._left.extend(message if isinstance(message, list) else [message])
        return self._left.popleft()


def start_worker() -> None:
    """Called first in a worker: it leaves Ctrl-C to the main process, which lets it finish, and ends with that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    quiet_transformers()
    end_with_parent(lambda: os._exit(1))


def end_with_parent(end: Callable[[], None]) -> None:
    """Call `end` once the process that started this one is gone, so that nothing is left of a service that was killed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_IDLE)
        end()

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()
