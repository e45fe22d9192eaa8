"""Errors as clients get them: a status, a type to act on, a message for a person. None of them quotes a text."""

import json
import sys
import traceback
from typing import Any, Literal, get_args

from starlette.responses import Response

ErrorType = Literal[
    "bad_request",
    "unauthorized",
    "not_found",
    "method_not_allowed",
    "body_timeout",
    "too_large",
    "unsupported_media_type",
    "invalid",
    "too_many_requests",
    "internal",
    "not_served",
    "overloaded",
    "decoder_unavailable",
    "not_ready",
    "timeout",
]
ERROR_TYPES: tuple[str, ...] = get_args(ErrorType)
"""All values of an error's `type`."""


class ServiceError(Exception):
    """An answer other than 200.

    retry_after: seconds after which it's worth trying again, or None.
    """

    def __init__(self, status: int, type_: ErrorType, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.type = type_
        self.message = message
        self.retry_after = retry_after


def error_response(error: ServiceError, request_id: str) -> Response:
    """The error as JSON: {"error": {"type", "message", "request_id"}}."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    if error.status in (408, 413):
        headers["Connection"] = "close"  # the rest of the body isn't waited for
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    content = {"error": {"type": error.type, "message": error.message, "request_id": request_id}}
    return Response(json.dumps(content), error.status, headers, "application/json")


def place_of(error: BaseException) -> str:
    """Type of an exception and where it was raised, innermost first, without its message: that can hold a text."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} in {frame.name}" for frame in reversed(frames)]
    return f"{type(error).__name__} at {' < '.join(places)}"


def note(**fields: Any) -> None:
    """Write one line of the log: a JSON object on stdout."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()
