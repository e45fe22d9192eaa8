"""Rows on their way to a disk: one thread writes them in groups, since each commit waits for the disk."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, Protocol, Self, TypeVar

from lantern_pl.errors import UserError

GROUP = 64
"""Rows of one commit, at most."""
WINDOW = 0.03
"""Seconds that a row waits, at most, for others to join its commit."""
ROOM = 1024
"""Rows that wait, at most: whoever puts faster than the disk writes has to wait, so that memory stays flat."""


class Keyed(Protocol):
    """What can be put."""

    @property
    def key(self) -> str: ...

    def replaces(self, waiting: Self) -> bool:
        """Whether this one, put later under the same key, is the one to be found."""


Row = TypeVar("Row", bound=Keyed)


class _Group(Generic[Row]):
    """Rows of one commit, and the future of all of them."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.future: Future[None] = Future()
        self.future.set_running_or_notify_cancel()  # an awaiting task that is cancelled doesn't take its row back


class GroupCommits(Generic[Row]):
    """A queue and the thread that empties it.

    Args:
        write: writes and commits a group, all of it or nothing. After it has raised once, nothing more is written: each row
            that waits and each later `put` fails with the same error.
    """

    def __init__(self, write: Callable[[Sequence[Row]], None]) -> None:
        self._write = write
        self._changed = threading.Condition()
        self._queue: deque[_Group[Row]] = deque()  # of which only the last isn't full
        self._latest: dict[str, Row] = {}
        self._put = self._settled = 0
        self._hurry = 0
        self._closed = False
        self._failure: str | None = None
        # A daemon, so that a program that ends without `close` ends; the rows whose futures aren't done are lost then.
        self._thread = threading.Thread(target=self._work, name="label store", daemon=True)
        self._thread.start()

    def put(self, row: Row) -> Future[None]:
        """A future that is done once the row is committed; rows of one commit share it. Waits for room. Raises UserError
        once a write has failed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting() < ROOM or self._failure or self._closed)
            if self._closed:
                raise RuntimeError("the label store is closed")
            if self._failure:
                raise UserError(self._failure)
            waiting = self._latest.get(row.key)
            if waiting is None or row.replaces(waiting):
                self._latest[row.key] = row
            if not self._queue or len(self._queue[-1].rows) == GROUP:
                self._queue.append(_Group())
            group = self._queue[-1]
            group.rows.append(row)
            self._put += 1
            if self._waiting() in (1, GROUP):  # else the thread is awake, or waits for this group to fill
                self._changed.notify_all()
            return group.future

    def find(self, key: str) -> Row | None:
        """The row of this key that waits to be committed."""
        with self._changed:
            return self._latest.get(key)

    def flush(self) -> None:
        """Wait until all that was put before is committed, or has failed."""
        with self._changed:
            put = self._put
            self._hurry += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._settled >= put)
            self._hurry -= 1

    def close(self) -> None:
        """Write what waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while group := self._next_group():
            failure = self._failure or self._attempt(group.rows)
            with self._changed:
                self._failure = failure
                for row in group.rows:
                    if self._latest.get(row.key) is row:
                        del self._latest[row.key]
            if failure is None:
                group.future.set_result(None)
            else:
                group.future.set_exception(UserError(failure))
            with self._changed:
                self._settled += len(group.rows)
                self._changed.notify_all()

    def _next_group(self) -> _Group[Row] | None:
        """The next rows to commit together; None once closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            self._changed.wait_for(lambda: self._waiting() >= GROUP or self._hurry or self._closed, timeout=WINDOW)
            if not self._queue:
                return None
            group = self._queue.popleft()
            self._changed.notify_all()
            return group

    def _waiting(self) -> int:
        """Rows in the queue."""
        return (len(self._queue) - 1) * GROUP + len(self._queue[-1].rows) if self._queue else 0

    def _attempt(self, rows: Sequence[Row]) -> str | None:
        """Write; returns what was in the way, if anything."""
        try:
            self._write(rows)
        except UserError as error:
            return str(error)
        except Exception as error:
            # Its words could be a row's.
            return f"Answers can't be written to the label store: {type(error).__name__}, which is a fault of lantern-pl's."
        return None
