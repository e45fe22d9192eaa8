"""The pointwise contract, and the four divergences of the field written on it.

p is the teacher's distribution over the vocabulary, q the student's, both at the temperature of the mixture. A
pointwise divergence is a sum over the vocabulary, ``D(p, q) = Σᵢ v(log pᵢ, log qᵢ)``, so its author writes two numbers
of one vocabulary entry, v and its slope, and the engines do the rest. With respect to the student's tempered logits s
the gradient is then

    ∂D/∂sⱼ = slopeⱼ − qⱼ·Σᵢ slopeᵢ,    slope = ∂v/∂log q.

The slope is taken with respect to log q, not to q: it's what autograd returns for v, so the two check each other, and
it stays bounded where ∂v/∂q overflows (KL: −p instead of −p/q).

Every divergence here takes the form whose entries are all ≥ 0. KL gains the term q − p, which sums to zero: near
convergence the plain Σ p·log(p/q) is the small difference of large terms, and the rounding of the two log-sum-exps,
which is common to a whole row, enters it at first order. In this form it enters at second order.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

LOG_FLOOR = -1e4
"""The finite stand-in for log 0.

e^LOG_FLOOR is exactly 0 in fp32 and fp64, so 0·log 0 comes out as 0 without a mask, and a divergence that is infinite
(the student puts mass where the teacher has none) comes out large and finite.
"""


@runtime_checkable
class Pointwise(Protocol):
    """D = Σᵢ v(log pᵢ, log qᵢ)."""

    name: str

    def value_and_slope(self, log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """v in nats and ∂v/∂log q of every entry, elementwise on tensors of one shape and dtype.

        p = exp(log_p) and q = exp(log_q) are given since most divergences need them. Absent entries arrive with a log-
        probability of `LOG_FLOOR`, never of −inf. None of the four may be written to. v should be differentiable by
        autograd (through q too), so that a test can hold the slope against it.
        """


@runtime_checkable
class General(Protocol):
    """Any divergence of two distributions that isn't a sum over the vocabulary; autograd differentiates it.

    It's called with student and teacher logits, both ``[n, V]``, already divided by the temperature and finite (absent
    entries lie `LOG_FLOOR` below their row's largest logit), and returns ``[n]``, one divergence per row. Rows are
    independent: the engine decides how many it passes at a time.
    """

    name: str

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The divergence of every row, in nats."""


@runtime_checkable
class WithTriton(Protocol):
    """A pointwise divergence that GPU kernels can fuse, into one launch with all the others."""

    def triton_entry(self) -> tuple[Any, tuple[float, ...]]:
        """A ``@triton.jit`` function and its parameters: `value_and_slope` in Triton.

        It's called as ``function(log_p, log_q, p, q, parameters)`` on blocks of float32, with the parameters as a tuple
        of compile-time constants, and returns the value and the slope.
        """


def has_triton_entry(divergence: object) -> bool:
    """Whether its Triton function is that of its own numbers, not of some that a subclass has overridden."""
    for cls in type(divergence).__mro__:
        if "triton_entry" in vars(cls):
            return True
        if {"value_and_slope", "value", "slope"} & vars(cls).keys():
            return False
    return False


class KL:
    """Forward KL, KL(p‖q) = Σ p·log(p/q): the student is to cover all that the teacher says."""

    name = "kl"

    def value_and_slope(self, log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        slope = q - p
        return p * (log_p - log_q) + slope, slope

    def triton_entry(self) -> tuple[Any, tuple[float, ...]]:
        from lantern_kernels.gpu.entries import kl_entry

        return kl_entry, ()


class ReverseKL:
    """Reverse KL, KL(q‖p) = Σ q·log(q/p): the student is to say nothing that the teacher wouldn't.

    Where the teacher gives an entry no mass at all, log p is the finite floor: the value is large instead of infinite.
    """

    name = "reverse_kl"

    def value_and_slope(self, log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        slope = q * (log_q - log_p)
        return slope - (q - p), slope

    def triton_entry(self) -> tuple[Any, tuple[float, ...]]:
        from lantern_kernels.gpu.entries import reverse_kl_entry

        return reverse_kl_entry, ()


class JS:
    """Jensen-Shannon, β·KL(p‖m) + (1−β)·KL(q‖m) with m = βp + (1−β)q; β is the teacher's weight. ≤ ln 2 at β = ½.

    For small β it tends to β·KL(p‖q), for β near 1 to (1−β)·KL(q‖p). That is the generalised form of GKD
    (arXiv 2306.13649, equation 1).

    m itself is never formed, since it underflows where both distributions do: with x = log(p/q), all that's needed is
    λ = log(m/q) = log1p(β·(eˣ − 1)), which keeps its relative accuracy as the student converges and x vanishes.
    """

    name = "js"

    # Beyond it q is lost in the rounding of p, even in float64, and log(p/m) = x − λ has reached −log β: x may stop.
    _FARTHEST = 40.0
    _LEAST = 1e-6

    def __init__(self, beta: float = 0.5):
        # Closer to 1, 1 − β would be lost in float32.
        if not (isinstance(beta, int | float) and self._LEAST <= beta <= 1 - self._LEAST):
            raise ValueError(
                f"beta is {beta!r}; expected 0 < beta < 1 by at least {self._LEAST:g}, the teacher's weight in the mixture "
                "(at the limits, use kl instead of 0 and reverse_kl instead of 1)"
            )
        self.beta = float(beta)

    def value_and_slope(self, log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        x = (log_p - log_q).clamp(max=self._FARTHEST)
        lam = x.expm1().mul(self.beta).log1p()
        slope = (self.beta - 1) * q * lam
        return self.beta * p * (x - lam) + slope, slope

    def triton_entry(self) -> tuple[Any, tuple[float, ...]]:
        from lantern_kernels.gpu.entries import js_entry

        return js_entry, (self.beta,)


class TVD:
    """Total variation, ½ Σ |p − q|: the largest difference in probability of any event. ≤ 1."""

    name = "tvd"

    def value_and_slope(self, log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        difference = q - p
        return 0.5 * difference.abs(), 0.5 * q * difference.sign()

    def triton_entry(self) -> tuple[Any, tuple[float, ...]]:
        from lantern_kernels.gpu.entries import tvd_entry

        return tvd_entry, ()


FIRST_PARTY: dict[str, type] = {cls.name: cls for cls in (KL, ReverseKL, JS, TVD)}
"""The divergences that a `Term` can name, by name."""
