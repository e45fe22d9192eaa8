"""What a chat teacher is asked and what it answers: an LLM behind an interface that takes messages.

`lantern label` runs the stages of a task on a teacher with the capability `chat`, many questions at once, and keeps
every answer. Torch-free.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_GAVE_UP = ("http 408", "http 504", "http 524")


@dataclass(frozen=True)
class ChatRequest:
    """One question to a chat teacher.

    messages: what was said so far, {"role": "system" | "user" | "assistant", "content": text} each.
    schema: JSON schema that the answer should follow, or None for free text. A teacher whose server doesn't honour
        schemas leaves it out: whoever asks checks the answer anyway.
    seed: tells samples of the same question apart; a server that knows seeds gets it.
    """

    messages: tuple[Mapping[str, str], ...]
    schema: Mapping[str, Any] | None = None
    temperature: float = 0.0
    max_tokens: int = 1024
    seed: int = 0

    def key(self, teacher: str) -> str:
        """sha256 of the canonical request to the teacher of this cache key: equal keys mean the same question."""
        # Not asdict, which would copy all of it.
        canonical = json.dumps({"teacher": teacher, **vars(self)}, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Attempt:
    """One try at getting an answer: when it began (seconds since the epoch), how long it took, and how it ended, such as
    "ok", "http 429", "timeout" or "connection". Never holds a text."""

    started: float
    seconds: float
    outcome: str

    @property
    def may_be_billed(self) -> bool:
        """Whether the model may have answered although nothing of it has come: unless the server wasn't reached, or has
        refused by an HTTP status that isn't a gateway's giving up."""
        refused = self.outcome.startswith("http ") and self.outcome not in _GAVE_UP
        return not refused and self.outcome not in ("ok", "no server")


@dataclass(frozen=True)
class ChatReply:
    """An answer. `finish_reason` is "stop" where the model ended it by itself; `cost` is None where it isn't known."""

    text: str
    finish_reason: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    attempts: tuple[Attempt, ...] = ()


class ChatFailed(Exception):
    """A question that got no answer, after all attempts.

    reason: for a person, without any word of the question or the answer.
    stop: whether every other question would fail as well (a wrong key, an unknown model, no such server).
    """

    def __init__(self, reason: str, attempts: tuple[Attempt, ...] = (), stop: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.attempts = attempts
        self.stop = stop
