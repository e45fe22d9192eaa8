"""The Divergence contract: what a plugin author implements."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from lantern_kernels import Term
from lantern_kernels.divergences import LOG_FLOOR
from torch import Tensor

from lantern_pl.errors import UserError
from lantern_pl.schedules import Scheduled, extremes, first


class Divergence:
    """How far a student's next-token distribution is from the teacher's, one number per position, in nats.

    The general form: implement `__call__`. The framework does the rest: the shift of labels, masks, chunks, the
    temperature and T², weights, normalisation, precision, logging. Most divergences are pointwise and had better derive
    from `PointwiseDivergence`, which is faster and never differentiates through autograd.

    Attributes:
        lantern_api: version of this contract that the class was written for, 1; each plugin's class says it itself.
        name: under which its value is logged.
        upper_bound: the largest value that it can take, None if it has no bound.
        same_tokenizer: whether token ids must mean the same to teacher and student. With False, rows are the positions at
            which a token of both starts at the same byte of the text, and column i of the two is not the same token.
    """

    lantern_api: ClassVar[int]
    name: ClassVar[str]
    upper_bound: float | None = None
    same_tokenizer: ClassVar[bool] = True

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Divergence [n] of logits [n, V] that were already divided by the temperature; differentiable in the student."""
        raise TypeError(f"{type(self).__name__} doesn't implement __call__(student_logits, teacher_logits)")

    def term(self, weight: float, label: str | None = None) -> Term:
        """This divergence as a term of a mixture, logged under `label` (its name by default)."""
        divergence: Any = self  # one of the kernels' two protocols: general here, pointwise in the subclass
        return Term(divergence, weight=weight, label=label)


class PointwiseDivergence(Divergence):
    """A divergence of the form Σᵢ v(log pᵢ, log qᵢ), with p the teacher's and q the student's distribution.

    Implement `value` and `slope`; or, where the two share work, `value_and_slope` in their place. For GPUs, add
    `triton_entry` (see `lantern_kernels.divergences.WithTriton`): it's fused into one launch with all other terms.

    All tensors are of one shape and dtype, the numbers elementwise. Log-probabilities are finite: −inf comes as −1e4, whose
    exponential is 0. v had better be ≥ 0 for every entry, which keeps its accuracy as the student converges.
    """

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """v, in nats."""
        return self._both("value", log_p, log_q)[0]

    def slope(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """∂v/∂log q. Unlike ∂v/∂q, it stays bounded where q vanishes (forward KL: −p instead of −p/q)."""
        return self._both("slope", log_p, log_q)[1]

    def value_and_slope(self, log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Both; p and q are the exponentials of log_p and log_q."""
        return self.value(log_p, log_q), self.slope(log_p, log_q)

    def _both(self, missing: str, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        if type(self).value_and_slope is PointwiseDivergence.value_and_slope:
            raise TypeError(f"{type(self).__name__} doesn't implement {missing}(log_p, log_q)")
        return self.value_and_slope(log_p, log_q, log_p.exp(), log_q.exp())

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        log_p, log_q = (logits.log_softmax(-1).clamp_min(LOG_FLOOR) for logits in (teacher_logits, student_logits))
        return self.value_and_slope(log_p, log_q, log_p.exp(), log_q.exp())[0].sum(-1)


@dataclass
class WeightedDivergence:
    """A divergence and its share of the distillation loss."""

    divergence: Divergence
    """The divergence, such as lantern_pl.divergences.js."""
    weight: Scheduled = 1.0
    """Its weight in the mixture, or a schedule of it."""
    label: str | None = None
    """The name that it's logged under; needed only when a mixture holds the same divergence twice."""

    def __post_init__(self) -> None:
        least, most = extremes(self.weight)
        if not (math.isfinite(most) and least >= 0):
            raise UserError(f"model.mixture.weight is {self.weight}: give a finite weight of 0 or more.")

    def term(self) -> Term:
        """As a term of a mixture, with the weight at the start of a fit."""
        return self.divergence.term(first(self.weight), self.label)
