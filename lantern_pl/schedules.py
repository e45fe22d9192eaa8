"""Numbers of a loss that change in the course of a fit."""

import math
from dataclasses import dataclass
from typing import Literal

from lantern_pl.errors import UserError

Shape = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Progress:
    """Where a fit is: steps of the optimizer and epochs that are done, and how many there will be."""

    step: int
    steps: int
    epoch: int
    epochs: int


@dataclass(frozen=True)
class Schedule:
    """A number that goes from `start` to `end`."""

    start: float
    """Its value at the first step."""
    end: float
    """Its value from the end of the way on."""
    shape: Shape = "linear"
    """The way between: linear, cosine (slow at both ends), or constant, which stays at start and then jumps to end."""
    unit: Literal["step", "epoch"] = "step"
    """Whether it changes at each step, or at each epoch only."""
    length: int | None = None
    """How many steps or epochs the way takes; null is the whole fit."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            raise UserError(f"A schedule goes from {self.start} to {self.end}: give finite numbers.")
        if self.length is not None and self.length < 1:
            raise UserError(f"A schedule's length is {self.length}: give 1 or more, or null for the whole fit.")

    def at(self, progress: Progress) -> float:
        """Its value there. Without a length, the last of several steps, or epochs, of the whole fit has the end value."""
        done, whole = (progress.step, progress.steps) if self.unit == "step" else (progress.epoch, progress.epochs)
        length = self.length if self.length is not None else max(whole - 1, 1)
        share = min(max(done / length, 0.0), 1.0)
        if self.shape == "constant":
            return self.end if share >= 1 else self.start
        if self.shape == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return self.start + (self.end - self.start) * share

    def stands_still(self, progress: Progress) -> bool:
        """Whether a fit has too few epochs, namely one, for it to leave its start."""
        return self.unit == "epoch" and self.length is None and progress.epochs <= 1 and self.start != self.end


Scheduled = float | Schedule
"""A number, or a schedule of one."""


def value_at(number: Scheduled, progress: Progress) -> float:
    return number.at(progress) if isinstance(number, Schedule) else number


def first(number: Scheduled) -> float:
    """The value at the start of a fit."""
    return number.start if isinstance(number, Schedule) else number


def last(number: Scheduled) -> float:
    """The value that stands when a fit is over."""
    return number.end if isinstance(number, Schedule) else number


def extremes(number: Scheduled) -> tuple[float, float]:
    """The smallest and the largest value that it takes."""
    return (
        (min(number.start, number.end), max(number.start, number.end)) if isinstance(number, Schedule) else (number, number)
    )
