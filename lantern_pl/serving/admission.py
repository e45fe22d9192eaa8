"""What a request passes before a route sees it: an id, a line in the log, keys, limits on rate, size and time."""

import asyncio
import hmac
import json
import re
import secrets
import sys
import time
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lantern_pl.serving.errors import ServiceError, error_response, note, place_of
from lantern_pl.serving.metrics import Metrics
from lantern_pl.serving.rate import InHand, RateLimit, client_of

ROUTES = frozenset({"/fit", "/explain", "/health", "/metrics", "/docs", "/openapi.json"})
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_OPEN = frozenset({"/health", "/docs", "/openapi.json"})
"""Routes that need no key."""
CLIENT_GONE = 499
"""Status in the log and in metrics of a request whose client didn't wait."""


@dataclass
class About:
    """What is known of the request in hand, for its answer, its line in the log and its figures."""

    id: str
    client: str = "unknown"
    began: float = field(default_factory=time.perf_counter)
    error: str = ""
    batch: int | None = None
    pairs: int | None = None


current: ContextVar[About] = ContextVar("current")


class Reception:
    """Outermost: gives each request an id, notes how it ended, and answers what nobody expected with a typed 500.

    The log has no texts, no bodies, no headers, and of paths only those that there are.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, variant: str) -> None:
        self.app = app
        self.metrics = metrics
        self.variant = variant

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        about = About(_request_id(scope["headers"]))
        current.set(about)
        status = CLIENT_GONE
        finished = False

        async def send_with_id(message: Message) -> None:
            nonlocal status, finished
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", about.id.encode())]
            await send(message)
            finished = message["type"] == "http.response.body" and not message.get("more_body")

        try:
            await self.app(scope, receive, send_with_id)
        except ClientGone:
            about.error = "client_gone"
        except Exception as error:
            about.error = error.type if isinstance(error, ServiceError) else "internal"
            if not isinstance(error, ServiceError):
                print(f"request {about.id}: {place_of(error)}", file=sys.stderr, flush=True)
                error = ServiceError(500, "internal", "Something failed here that isn't your request's fault.")
            if status == CLIENT_GONE:
                await error_response(error, about.id)(scope, receive, send_with_id)
        finally:
            if not finished:
                status, about.error = CLIENT_GONE, about.error or "client_gone"
            self._note(scope, status, about)

    def _note(self, scope: Scope, status: int, about: About) -> None:
        route = scope["path"] if scope["path"] in ROUTES else "other"
        seconds = time.perf_counter() - about.began
        self.metrics.request(route, status, about.error, seconds)
        note(
            time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            id=about.id,
            method=scope["method"] if scope["method"] in _METHODS else "other",
            route=route,
            status=status,
            ms=round(1000 * seconds, 1),
            variant=self.variant,
            **{name: value for name in ("error", "pairs", "batch") if (value := getattr(about, name))},
        )


class ClientGone(Exception):
    """The client closed the connection before its request was whole."""


class Admission:
    """Checks key, rate, type, size and time of a request, and that its body is JSON in UTF-8, and hands the body on whole.

    keys: of which a request must bring one, if there are any. in_hand: where requests to a model are counted.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Iterable[str],
        rate: RateLimit | None,
        in_hand: InHand,
        max_body_bytes: int,
        body_timeout: float,
    ) -> None:
        self.app = app
        self.in_hand = in_hand
        self.keys = {key: f"key {number}" for number, key in enumerate(keys)}
        self.rate = rate
        self.max_body_bytes = max_body_bytes
        self.body_timeout = body_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _OPEN:
            await self.app(scope, receive, send)
            return
        headers = {name: value for name, value in scope["headers"] if name in _LOOKED_AT}
        about = current.get()
        about.client = self._client(scope, headers)
        if scope["method"] != "POST" or scope["path"] not in ("/fit", "/explain"):
            await self.app(scope, receive, send)
            return
        with self.in_hand.one(about.client):
            if self.rate is not None:
                check_rate(self.rate, about.client, 1)
            self._check_head(headers)
            await self._hand_on(scope, receive, send)

    async def _hand_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await self._body(receive)
        _check_json(body)
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)

    def _client(self, scope: Scope, headers: dict[bytes, bytes]) -> str:
        """By what the client is known. Raises ServiceError if it should have sent a key and hasn't."""
        if not self.keys:
            return client_of(scope["client"][0]) if scope["client"] else "unknown"
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        given = token.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        # All are compared, so that the time says nothing of which was near.
        matches = [name for key, name in self.keys.items() if hmac.compare_digest(key.encode(), given)]
        if not matches:
            raise ServiceError(401, "unauthorized", "Send a key: Authorization: Bearer KEY, or X-API-Key: KEY.")
        return matches[0]

    def _check_head(self, headers: dict[bytes, bytes]) -> None:
        kind, _, parameters = headers.get(b"content-type", b"").partition(b";")
        charset = parameters.strip().lower().replace(b'"', b"")
        if kind.strip().lower() != b"application/json" or charset not in (b"", b"charset=utf-8"):
            raise ServiceError(415, "unsupported_media_type", "Send JSON in UTF-8, as Content-Type: application/json.")
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise ServiceError(415, "unsupported_media_type", "Send the body as it is, without Content-Encoding.")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self.max_body_bytes:
            raise self._too_large()

    async def _body(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self.max_body_bytes:
                        raise self._too_large()
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise ServiceError(408, "body_timeout", f"The body wasn't there within {self.body_timeout:g} seconds.") from None

    def _too_large(self) -> ServiceError:
        return ServiceError(413, "too_large", f"A body may have up to {self.max_body_bytes} bytes.")


_LOOKED_AT = frozenset({b"authorization", b"x-api-key", b"content-type", b"content-encoding", b"content-length"})


def check_rate(rate: RateLimit, client: str, pairs: int) -> None:
    """Take so many pairs from what the client may send. Raises ServiceError where it may not now."""
    if wait := rate.take(client, pairs):
        limit = f"{rate.rate:g} pairs a second, and {rate.burst} at once"
        raise ServiceError(429, "too_many_requests", f"You may send {limit}: try again in {wait:.1f} seconds.", wait)


def _check_json(body: bytes) -> None:
    """Raise ServiceError unless the body is JSON. Python's own reader also takes UTF-16 and halves of surrogate pairs."""
    try:
        from_json(body, allow_inf_nan=False)
    except ValueError as error:
        # Its message names what it expected, and a place; it never quotes.
        raise ServiceError(400, "bad_request", f"The body isn't JSON in UTF-8: {error}.") from None


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """What the client sent as X-Request-ID, if that is plain, or a new one."""
    given = next((value for name, value in headers if name == b"x-request-id"), b"")
    match = _ID.fullmatch(given.decode("latin-1"))
    return match[0] if match else secrets.token_hex(8)


def as_event(name: str, content: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps(content)}\n\n"
