"""What LitServe's worker processes share: their life, and a loop that waits instead of asking a thousand times a second."""

import os
import signal
import threading
import time
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
    client does are left out.
    """

    def get_batch_requests(
        self, lit_api: LitAPI, request_queue: Queue[Any], transport: MessageTransport
    ) -> tuple[list[Any], list[Any]]:
        batch: list[Any] = []
        late: list[Any] = []
        wait, end = _IDLE, float("inf")
        while len(batch) < lit_api.max_batch_size:
            try:
                consumer, uid, asked, payload = request_queue.get(timeout=wait) if wait > 0 else request_queue.get_nowait()
            except Empty:
                break
            now = time.monotonic()
            self.put_response(transport, consumer, uid, (), LitAPIStatus.START, LoopResponseType.REGULAR)
            if now - asked > (lit_api.request_timeout or float("inf")):
                late.append((consumer, uid))
            else:
                batch.append((consumer, uid, payload))
                end = min(end, now + lit_api.batch_timeout)
            wait = min(_IDLE, end - now)
        return batch, late


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
