"""The HTTP side: JSON questions to one server, with retries, and errors that a user can act on."""

import logging
import threading
import time
from typing import Any

import httpx2

from lantern_pl.errors import UserError

ATTEMPTS = 5
FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0
"""Seconds before the second attempt, doubled for each further one."""
LONGEST_ASKED_WAIT = 60.0
"""Seconds; a server that asks for more patience than this (Retry-After) gets this much."""
TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
CONNECT_TIMEOUT = 10.0

log = logging.getLogger(__name__)


class Refused(Exception):
    """The server answered that it won't or can't do this; trying again would change nothing."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"HTTP {status}: {said}")
        self.status = status
        self.said = said


class Server:
    """An OpenAI-compatible server. Its methods may be called from several threads.

    Args:
        base_url: with or without /v1 at its end.
        timeout: seconds for one answer.
        connections: how many at the same time.
        key: what to authorize with; it never appears in a message.
    """

    def __init__(self, base_url: str, timeout: float, connections: int, key: str | None) -> None:
        self.url = base_url.rstrip("/").removesuffix("/v1")
        self._key = key
        self._reached = threading.Event()
        self._client = httpx2.Client(
            timeout=httpx2.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT), pool=None),
            limits=httpx2.Limits(max_connections=connections),
            headers={"Authorization": f"Bearer {key}"} if key else None,
        )

    def get(self, path: str) -> Any:
        """The JSON that the server has at this path. Raises as `post`."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON answer to a JSON question.

        Raises Refused where the server says no, UserError where it can't be reached, doesn't accept the key, doesn't speak
        JSON, or still fails after several attempts.
        """
        return self._ask("POST", path, body)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        for attempt in range(1, ATTEMPTS + 1):
            asked_wait = None
            try:
                response = self._client.request(method, self.url + path, json=body)
            except httpx2.TransportError as error:
                failure = self._hidden(f"{type(error).__name__}: {error}")
                if not self._reached.is_set():
                    raise self._not_there(failure) from error
            except httpx2.InvalidURL as error:
                raise self._not_there(str(error)) from error
            else:
                self._reached.set()
                if response.status_code not in TRANSIENT:
                    return self._read(response, path)
                failure = f"HTTP {response.status_code}: {self._said(response)}"
                asked_wait = response.headers.get("retry-after")
            if attempt < ATTEMPTS:
                wait = _wait(attempt, asked_wait)
                log.warning("%s%s: %s. Attempt %d of %d in %.1f s.", self.url, path, failure, attempt + 1, ATTEMPTS, wait)
                time.sleep(wait)
        raise UserError(
            f"The server at {self.url} failed {ATTEMPTS} times at {path}; the last time: {failure}. Its log may say why. "
            "Where it is overloaded, a smaller max_concurrency or a longer timeout helps."
        )

    def _read(self, response: httpx2.Response, path: str) -> Any:
        if response.status_code in (401, 403):
            raise UserError(
                f"The server at {self.url} "
                + (
                    "doesn't accept the key in the environment variable that api_key_variable names: correct it there."
                    if self._key
                    else "wants a key: put it into an environment variable, and its name into api_key_variable."
                )
            )
        if not response.is_success:
            raise Refused(response.status_code, self._said(response))
        try:
            return response.json()
        except ValueError as error:
            raise UserError(
                f"{self.url}{path} answers with something else than JSON: {self._hidden(response.text[:80])!r}. Is base_url "
                "that of an OpenAI-compatible server?"
            ) from error

    def _not_there(self, failure: str) -> UserError:
        return UserError(
            f"No server answers at {self.url} ({failure}). Start one, for example "
            "`vllm serve MODEL --port 8000` or `llama-server -m MODEL.gguf --port 8080`, or correct base_url."
        )

    def _said(self, response: httpx2.Response) -> str:
        """The server's own words: the message of its error where there is one, else how its answer starts."""
        text = response.text
        try:
            answer = response.json()
            error = answer.get("error", answer)
            text = error if isinstance(error, str) else error.get("message") or error.get("detail") or text
        except (ValueError, AttributeError):
            pass  # not JSON, or not an object
        return self._hidden(" ".join(str(text).split())[:300]) or response.reason_phrase

    def _hidden(self, text: str) -> str:
        """The text without the key, which a server could have sent back."""
        return text.replace(self._key, "***") if self._key else text


def _wait(attempt: int, asked: str | None) -> float:
    """Seconds to wait after a failed attempt."""
    if asked is not None and asked.strip().isdigit():
        return min(float(asked), LONGEST_ASKED_WAIT)
    return float(min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT))
