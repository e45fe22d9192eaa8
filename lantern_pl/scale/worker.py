"""What runs in a worker's process: it takes in what to do, does it, and says what came of it.

Nothing is ever raised in here. Ray logs exceptions with their words, which may be a person's text, and a user wants one
message and no traceback: so what goes wrong is said as a value.
"""

import os
import pickle
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import isawaitable
from pathlib import Path
from typing import Any

from lantern_pl.errors import UserError

Work = Callable[[Any], Any]
"""Does one item, which it returns the outcome of; or an awaitable of it."""


@dataclass(frozen=True)
class Outcome:
    """What came of an item."""

    value: Any


@dataclass(frozen=True)
class Refusal:
    """Why the run can't go on, for the user."""

    message: str


def sent(make: Callable[[], Any], env: list[str]) -> bytes:
    """Everything that a worker needs. Raises UserError where it can't be sent.

    Secrets go this way: unlike Ray's runtime environments, it leaves them in no log.
    """
    from ray import cloudpickle

    if missing := [name for name in env if name not in os.environ]:
        raise UserError(f"ray.env names {missing[0]}, which isn't set here: set it, or leave it out.")
    try:
        return bytes(cloudpickle.dumps(({name: os.environ[name] for name in env}, make)))
    except Exception as error:
        raise UserError(
            f"What the workers need can't be sent to them: {type(error).__name__} at {_place(error)}. A teacher must be fit "
            "for pickling until its weights are loaded."
        ) from None


def begin(content: bytes) -> Any:
    """What `make` has made in this process, or the Refusal."""
    try:
        env, make = _received(content)
        os.environ.update(env)
        return make()
    except Exception as error:
        return _refusal(error)


def _received(content: bytes) -> tuple[Mapping[str, str], Callable[[], Any]]:
    try:
        received: tuple[Mapping[str, str], Callable[[], Any]] = pickle.loads(content)
        return received
    except ImportError as error:
        raise UserError(
            f"A worker can't import {error.name}: the same lantern-pl and plugins must be installed on all machines of the "
            "cluster."
        ) from None


def once(content: bytes) -> bytes:
    """The Outcome of `make` alone, or the Refusal, pickled."""
    made = begin(content)
    try:
        return pickle.dumps(made if isinstance(made, Refusal) else Outcome(made))
    except Exception as error:
        return pickle.dumps(_refusal(error))


def do(work: Work | Refusal, item: bytes) -> bytes:
    """The Outcome or Refusal, pickled."""
    if isinstance(work, Refusal):
        return pickle.dumps(work)
    try:
        return pickle.dumps(Outcome(work(pickle.loads(item))))
    except Exception as error:
        return pickle.dumps(_refusal(error))


async def do_async(work: Work | Refusal, item: bytes) -> bytes:
    """Likewise, for work that waits."""
    if isinstance(work, Refusal):
        return pickle.dumps(work)
    try:
        doing = work(pickle.loads(item))
        return pickle.dumps(Outcome(await doing if isawaitable(doing) else doing))
    except Exception as error:
        return pickle.dumps(_refusal(error))


def value_of(said: bytes) -> Any:
    """The outcome's value. Raises UserError for a refusal."""
    found: Outcome | Refusal = pickle.loads(said)
    if isinstance(found, Refusal):
        raise UserError(found.message)
    return found.value


def _refusal(error: Exception) -> Refusal:
    if isinstance(error, UserError):
        return Refusal(str(error))
    return Refusal(
        f"A worker has failed with {type(error).__name__} at {_place(error)}. What was done before stays. The words of the "
        "error are left out, which may hold a text: `--engine local` shows them."
    )


def _place(error: BaseException) -> str:
    """Where it was raised, and where in lantern-pl that was called."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "lantern" in frame.filename]
    shown = dict.fromkeys(f"{Path(frame.filename).name}:{frame.lineno}" for frame in (*own[-1:], *frames[-1:]))
    return ", ".join(shown) or "an unknown place"
