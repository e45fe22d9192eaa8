"""Connections that don't bring a request are closed, before they hold what others need."""

from asyncio import TimerHandle
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 32_768
"""Bytes of a request's first line and headers."""


def guarded(head_timeout: float) -> type[HttpToolsProtocol]:
    """uvicorn's protocol, with limits on the time and the size of a request's head, of which it has none."""

    class Guarded(HttpToolsProtocol):
        _timer: TimerHandle | None = None
        _in_head = True
        _head = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._timer = self.loop.call_later(head_timeout, self._too_slow)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._in_head, self._head = True, 0
            if self._timer is None:
                self._timer = self.loop.call_later(head_timeout, self._too_slow)

        def on_headers_complete(self) -> None:
            self._in_head = False
            self._stop()
            super().on_headers_complete()

        def data_received(self, data: bytes) -> None:
            if self._in_head:
                self._head += len(data)
            super().data_received(data)
            if self._in_head and self._head > MAX_HEAD and not self.transport.is_closing():
                self.send_400_response("The request's headers are too large.")

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _too_slow(self) -> None:
            self._timer = None
            if not self.transport.is_closing():
                self.send_400_response("The request's headers took too long.")

    return Guarded
