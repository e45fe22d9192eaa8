"""What an exception of litellm means: how the attempt ended, and whether to try again.

litellm's exceptions quote questions and answers, and its classes differ between providers for one and the same failure: a
lost connection is an "internal server error 500" of a server that never said so. So what's below them is looked at, and
nothing of their texts leaves this module.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite

import httpx

TRANSIENT = frozenset({408, 409, 425, 500, 502, 503, 504, 529})
"""Statuses that may pass. 429 is apart: it says nothing about the question."""
DEEPEST = 20


@dataclass(frozen=True)
class Failure:
    """An attempt without an answer.

    outcome: for `Attempt`, such as "http 429".
    kind: the exception's class.
    status: of the server's answer; None where there was none, or litellm itself refused.
    again: whether another attempt may end otherwise.
    asked_wait: seconds that the server asks to wait (Retry-After).
    quota: whether an account has used up what it has paid for.
    """

    outcome: str
    kind: str
    status: int | None = None
    again: bool = True
    asked_wait: float | None = None
    quota: bool = False


def read_failure(error: BaseException) -> Failure:
    """What has happened, from an exception that asking litellm raised."""
    kind, below = type(error).__name__, list(_chain(error))
    answered = next((e for e in below if isinstance(e, httpx.HTTPStatusError)), None)
    if answered is not None:
        response = answered.response
        return _by_status(response.status_code, error, asked_wait(response.headers.get))
    if any(isinstance(e, TimeoutError | httpx.TimeoutException) for e in below):
        return Failure("timeout", kind)
    if any(isinstance(e, httpx.ConnectError) for e in below):
        return Failure("no server", kind)
    if any(isinstance(e, httpx.TransportError) for e in below):
        return Failure("connection", kind)
    status = getattr(error, "status_code", None)
    # What litellm makes of other providers' failures, or thinks itself. 500 is also its word for what it can't read.
    if isinstance(status, int) and status >= 400 and status != 500:
        asked = asked_wait(lambda name: _header(below, name))
        return _by_status(status, error, asked, at_server=status not in (400, 404, 422))
    return Failure("unreadable", kind)


def asked_wait(header: Callable[[str], str | None]) -> float | None:
    """Seconds that a server asks to wait, from its answer's headers: the finer of the two that say so, if it's readable."""
    milliseconds = retry_after(header("retry-after-ms"))
    return retry_after(header("retry-after")) if milliseconds is None else milliseconds / 1000


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks to wait: its number, or until its date; None where it has neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
            seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if isfinite(seconds) else None


def _by_status(status: int, error: BaseException, asked_wait: float | None, at_server: bool = True) -> Failure:
    again = status == 429 or status in TRANSIENT or status >= 520
    quota = status == 429 and any("insufficient_quota" in str(e) for e in _chain(error))
    known = status if at_server else None
    return Failure(f"http {status}", type(error).__name__, known, again, asked_wait, quota)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception, and those that it came from."""
    at: BaseException | None = error
    for _ in range(DEEPEST):
        if at is None:
            return
        yield at
        at = at.__cause__ or at.__context__


def _header(errors: list[BaseException], name: str) -> str | None:
    for error in errors:
        headers = getattr(error, "litellm_response_headers", None) or getattr(error, "headers", None)
        if headers is None:
            headers = getattr(getattr(error, "response", None), "headers", None)
        if headers is not None and headers.get(name) is not None:
            return str(headers.get(name))
    return None
