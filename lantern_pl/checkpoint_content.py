"""What a checkpoint's plain values must be: one that was changed by hand, or made by someone else, is told from a bug."""

import math
from collections.abc import Callable
from types import TracebackType
from typing import Any

from packaging.version import InvalidVersion, Version
from torch import Tensor

_COUNTS = {"ready", "started", "processed", "completed", "epoch", "batches", "_batches_that_stepped"}


def wrong_with(checkpoint: dict[Any, Any]) -> str | None:
    """Which of its values isn't what it has to be, with what was expected; None if each is, or isn't there."""
    for key, (expected, is_right) in _EXPECTED.items():
        if key in checkpoint and not is_right(checkpoint[key]):
            return f"its {key} isn't {expected}"
    return None


def comes_from_restoring(error: BaseException) -> bool:
    """Whether an error was raised while a run took over what a checkpoint holds."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename.endswith("checkpoint_connector.py") and code.co_name.startswith(("restore", "resume_start")):
            return True
        if code.co_name == "go_to_place" and trace.tb_frame.f_globals.get("__name__") == "lantern_pl.resume":
            return True
        trace = trace.tb_next
    return False


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_version(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(Version(value))
    except InvalidVersion:
        return False


def _names(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, dict) and all(isinstance(name, str) and is_right(part) for name, part in value.items())
    )


def _counts_are_right(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_count(part) if key in _COUNTS else _counts_are_right(part) for key, part in value.items())
    return all(map(_counts_are_right, value)) if isinstance(value, list) else True


def _is_loops(value: Any) -> bool:
    fit = value.get("fit_loop") if isinstance(value, dict) else None
    if not (isinstance(fit, dict) and {"epoch_progress", "epoch_loop.batch_progress"} <= fit.keys()):
        return False
    inner = fit.get("state_dict", {})
    places = inner.get("combined_loader", []) if isinstance(inner, dict) else None
    whole = _list_of(lambda place: isinstance(place, dict) and {"epoch", "batches"} <= place.keys())
    return whole(places) and _counts_are_right(value)


def _is_optimizer(value: Any) -> bool:
    if not (isinstance(value, dict) and {"state", "param_groups"} <= value.keys() and isinstance(value["state"], dict)):
        return False
    states = value["state"].items()
    return all(_is_count(at) and _names(lambda part: isinstance(part, Tensor) or _is_number(part))(of) for at, of in states)


def _list_of(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_right, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_EXPECTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "state_dict": ("tensors by their names", _names(lambda value: isinstance(value, Tensor))),
    "pytorch-lightning_version": ("the version of a release", _is_version),
    "epoch": ("a count", _is_count),
    "global_step": ("a count", _is_count),
    "loops": ("the state of Lightning's loops", _is_loops),
    "callbacks": ("states of callbacks by their names", _names(lambda value: isinstance(value, dict))),
    "optimizer_states": ("a list of optimizers' states", _list_of(_is_optimizer)),
    "lr_schedulers": ("a list of schedules' states", _list_of(lambda value: isinstance(value, dict))),
    "random_states": (
        "a list of the states of random numbers' generators",
        _list_of(lambda value: isinstance(value, dict) and {"python", "numpy", "torch"} <= value.keys()),
    ),
    "rows_trained": ("a number", lambda value: _is_number(value) and math.isfinite(value) and value >= 0),
    "skipped_steps": ("a count", _is_count),
    "untrained_metrics": ("figures by their names", _names(_is_number)),
    "lantern_plugins": ("plugins' distributions by their names", _names(_is_text)),
}
