"""The Divergence contract: what a plugin author implements."""

from dataclasses import dataclass
from typing import Any, ClassVar

from lantern_kernels import Term
from lantern_kernels.divergences import LOG_FLOOR
from torch import Tensor


class Divergence:
    """How far a student's next-token distribution is from the teacher's, one number per position, in nats.

    The general form: implement `__call__`. The framework does the rest: the shift of labels, masks, chunks, the
    temperature and T², weights, normalisation, precision, logging. Most divergences are pointwise and had better derive
    from `PointwiseDivergence`, which is faster and never differentiates through autograd.

    Attributes:
        lantern_api: version of this contract that the class was written for.
        name: under which its value is logged.
        upper_bound: the largest value that it can take, None if it has no bound.
    """

    lantern_api: ClassVar[int] = 1
    name: ClassVar[str]
    upper_bound: float | None = None

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Divergence [n] of logits [n, V] that were already divided by the temperature; differentiable in the student."""
        raise TypeError(f"{type(self).__name__} doesn't implement __call__(student_logits, teacher_logits)")

    def term(self, weight: float, label: str | None = None) -> Term:
        """This divergence as a term of a mixture, logged under `label` (its name by default)."""
        divergence: Any = self  # one of the kernels' two protocols: general here, pointwise in the subclass
        return Term(divergence, weight=weight, label=label)


class PointwiseDivergence(Divergence):
    """A divergence of the form Σᵢ v(log pᵢ, log qᵢ), with p the teacher's and q the student's distribution."""

    def value_and_slope(self, log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """v in nats and ∂v/∂log q, elementwise; p and q are the exponentials of log_p and log_q.

        Log-probabilities are finite: −inf comes as −1e4, whose exponential is 0. Unlike ∂v/∂q, the slope stays bounded
        where q vanishes (forward KL: −p instead of −p/q).
        """
        raise TypeError(f"{type(self).__name__} doesn't implement value_and_slope(log_p, log_q, p, q)")

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        log_p, log_q = (logits.log_softmax(-1).clamp_min(LOG_FLOOR) for logits in (teacher_logits, student_logits))
        return self.value_and_slope(log_p, log_q, log_p.exp(), log_q.exp())[0].sum(-1)


@dataclass
class WeightedDivergence:
    """A divergence and its share of the distillation loss."""

    divergence: Divergence
    """The divergence, such as lantern_pl.divergences.js."""
    weight: float = 1.0
    """Its weight in the mixture."""
    label: str | None = None
    """The name that it's logged under; needed only when a mixture holds the same divergence twice."""

    def term(self) -> Term:
        return self.divergence.term(self.weight, self.label)
