"""What the terms of a mixture share on a few rows: log-probabilities, probabilities, and their differences."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

LOG_FLOOR = -1e4
"""The finite stand-in for log 0.

e^LOG_FLOOR is exactly 0 in fp32 and fp64, so 0·log 0 comes out as 0 without a mask, and a divergence that is infinite
(the student puts mass where the teacher has none) comes out large and finite.
"""


class Tile:
    """Student and teacher on n rows, ``[n, V]``, and what follows from their logits, computed when first asked for.

    Everything here is shared: whoever reads it may not write to it.

    Args:
        student: The student's logits at the temperature of the comparison.
        teacher: The teacher's, of the same shape and dtype. None where only the student is asked about.
    """

    def __init__(self, student: Tensor, teacher: Tensor | None):
        self.student = student
        self._teacher = teacher

    @property
    def teacher(self) -> Tensor:
        """The teacher's logits."""
        assert self._teacher is not None, "a divergence needs a teacher; the public functions see to it"
        return self._teacher

    @cached_property
    def log_p(self) -> Tensor:
        """The teacher's log-probabilities, at least LOG_FLOOR."""
        return _floored(torch.log_softmax(self.teacher, -1))

    @cached_property
    def log_q(self) -> Tensor:
        """The student's log-probabilities, at least LOG_FLOOR."""
        return _floored(torch.log_softmax(self.student, -1))

    @cached_property
    def p(self) -> Tensor:
        """The teacher's probabilities."""
        return self.log_p.exp()

    @cached_property
    def q(self) -> Tensor:
        """The student's probabilities."""
        return self.log_q.exp()

    @cached_property
    def difference(self) -> Tensor:
        """q − p."""
        return self.q - self.p

    @cached_property
    def log_ratio(self) -> Tensor:
        """x = log(p/q)."""
        return self.log_p - self.log_q

    def through_softmax(self, slope: Tensor) -> Tensor:
        """∂D/∂logits = slope − q·Σ slope from slope = ∂v/∂log q, in place.

        An entry on the floor is a constant: it has no slope. So where the student lacks columns in which the teacher
        has mass, the gradient still sums to zero over the columns that it has, and vanishes at the teacher's
        renormalised.
        """
        if _lowest(self.log_q) <= LOG_FLOOR:
            slope.masked_fill_(self.log_q <= LOG_FLOOR, 0.0)
        return slope.addcmul_(self.q, slope.sum(-1, keepdim=True), value=-1.0)


def finite(logits: Tensor) -> Tensor:
    """Logits ``[n, V]`` with the same softmax, none of them further than LOG_FLOOR below the largest of its row."""
    return logits.clamp(min=logits.detach().amax(-1, keepdim=True) + LOG_FLOOR)


def _floored(log_probs: Tensor) -> Tensor:
    # A reading pass to spare a writing one: hardly any tile has an entry to floor. NaN fails the test and stays NaN.
    return log_probs if _lowest(log_probs) > LOG_FLOOR else log_probs.clamp_(min=LOG_FLOOR)


def _lowest(log_probs: Tensor) -> float:
    return float(log_probs.amin())
