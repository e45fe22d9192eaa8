"""What a model says of texts, each asked once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from lantern_pl.audit.intervals import Floats
from lantern_pl.data.pair import Pair
from lantern_pl.errors import UserError
from lantern_pl.plugin_checks import checked_level_probs
from lantern_pl.tasks import Task
from lantern_pl.teachers import Teacher

Texts = tuple[str, str]
"""A job's text and a candidate's."""


@dataclass(frozen=True)
class Levels:
    """Answers about n texts. level [n]: the index of the most probable level. score [n]: the expected level, as 0 (the
    worst) to 1 (the best)."""

    level: NDArray[np.int64]
    score: Floats

    def selected(self, lowest: int) -> NDArray[np.bool_]:
        """Which are at least of this level."""
        return self.level >= lowest


class Answers:
    """A model's level distributions, kept by text."""

    def __init__(self, name: str, model: Teacher, task: Task, batch_size: int) -> None:
        if "level_probs" not in model.capabilities:
            raise UserError(
                f"The model {name!r} ({type(model).__name__}) can't level_probs, which the audit is made of; it can: "
                f"{', '.join(sorted(model.capabilities))}."
            )
        self.name = name
        self.model = model
        self.task = task
        self.batch_size = batch_size
        self._probs: dict[Texts, list[float]] = {}

    def missing(self, texts: Iterable[Texts]) -> list[Texts]:
        """Those that weren't asked yet, once each."""
        return [each for each in dict.fromkeys(texts) if each not in self._probs]

    def ask(self, texts: Iterable[Texts], what: str) -> None:
        """Ask about all texts that weren't asked yet, with a progress bar."""
        # Equal jobs side by side let a teacher share prefixes; similar lengths need little padding.
        rest = sorted(self.missing(texts), key=lambda each: (len(each[0]), each[0], len(each[1])))
        batches = [rest[start : start + self.batch_size] for start in range(0, len(rest), self.batch_size)]
        for batch in track(batches, f"{self.name}: {what}", disable=not batches):
            pairs = [Pair(f"pair-{n}", f"job-{n}", f"candidate-{n}", *texts) for n, texts in enumerate(batch)]
            with torch.no_grad():
                probs = checked_level_probs(self.model, pairs, self.task)
            self._probs.update(zip(batch, probs.double().cpu().tolist(), strict=True))

    def levels(self, texts: Sequence[Texts]) -> Levels:
        """What was said of texts that were asked. Raises KeyError for others."""
        probs = np.array([self._probs[each] for each in texts]).reshape(len(texts), len(self.task.levels))
        scale = np.linspace(0, 1, len(self.task.levels))
        return Levels(probs.argmax(-1), probs @ scale)
