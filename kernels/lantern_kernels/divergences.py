"""The pointwise contract, and the four divergences of the field written on it.

p is the teacher's distribution over the vocabulary, q the student's, both at the temperature of the mixture. A
pointwise divergence is a sum over the vocabulary, ``D(p, q) = Σᵢ v(log pᵢ, log qᵢ)``, so its author writes two
functions of one vocabulary entry and the engine does the rest. With respect to the student's tempered logits s the
gradient is then

    ∂D/∂sⱼ = slopeⱼ − qⱼ·Σᵢ slopeᵢ,    slope = ∂v/∂log q.

The slope is taken with respect to log q, not to q: it's what autograd returns for `value`, so the two check each other,
and it stays bounded where ∂v/∂q overflows (KL: −p instead of −p/q).

Every divergence here takes the form whose entries are all ≥ 0. KL gains the term q − p, which sums to zero: near
convergence the plain Σ p·log(p/q) is the small difference of large terms, and the rounding of the two log-sum-exps,
which is common to a whole row, enters it at first order. In this form it enters at second order.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lantern_kernels.tile import Tile


@runtime_checkable
class Pointwise(Protocol):
    """D = Σᵢ v(log pᵢ, log qᵢ). Both methods work elementwise on tensors of one shape and dtype, and return the same.

    Log-probabilities of absent entries arrive as `LOG_FLOOR` (see `tile`), never as −inf. Neither method may write to
    its arguments. `value` should be differentiable by autograd, so that a test can hold `slope` against it.
    """

    name: str

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """v of every entry, in nats."""

    def slope(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """∂v/∂log q of every entry."""


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
class Fused(Protocol):
    """The optional third method of a pointwise divergence: both results at once, from quantities the terms share.

    It spares passes over memory, not arithmetic, and must agree with `value` and `slope`.
    """

    def accumulate(self, tile: Tile, slope: Tensor | None, weight: float) -> Tensor:
        """Return the row sums of v, ``[n]``; add ``weight·∂v/∂log q`` to `slope` ``[n, V]`` unless it's None."""


class KL:
    """Forward KL, KL(p‖q) = Σ p·log(p/q): the student is to cover all that the teacher says."""

    name = "kl"

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        p, q = log_p.exp(), log_q.exp()
        return p * (log_p - log_q) + (q - p)

    def slope(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return log_q.exp() - log_p.exp()

    def accumulate(self, tile: Tile, slope: Tensor | None, weight: float) -> Tensor:
        if slope is not None:
            slope.add_(tile.difference, alpha=weight)
        return torch.linalg.vecdot(tile.p, tile.log_ratio) + tile.difference.sum(-1)


class ReverseKL:
    """Reverse KL, KL(q‖p) = Σ q·log(q/p): the student is to say nothing that the teacher wouldn't.

    Where the teacher gives an entry no mass at all, log p is the finite floor: the value is large instead of infinite.
    """

    name = "reverse_kl"

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        p, q = log_p.exp(), log_q.exp()
        return q * (log_q - log_p) - (q - p)

    def slope(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return log_q.exp() * (log_q - log_p)

    def accumulate(self, tile: Tile, slope: Tensor | None, weight: float) -> Tensor:
        inner = tile.q * tile.log_ratio
        if slope is not None:
            slope.add_(inner, alpha=-weight)
        return -inner.sum(-1) - tile.difference.sum(-1)


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

    def __init__(self, beta: float = 0.5):
        if not 0.0 < beta < 1.0:
            raise ValueError(
                f"beta is {beta!r}; expected 0 < beta < 1, the teacher's weight in the mixture "
                "(at the limits, use kl instead of 0 and reverse_kl instead of 1)"
            )
        self.beta = float(beta)

    def _log_ratios(self, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
        """log(p/m) and log(m/q)."""
        x = log_ratio.clamp(max=self._FARTHEST)
        lam = x.expm1().mul(self.beta).log1p()
        return x - lam, lam

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        log_p_over_m, lam = self._log_ratios(log_p - log_q)
        return self.beta * log_p.exp() * log_p_over_m - (1 - self.beta) * log_q.exp() * lam

    def slope(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        _, lam = self._log_ratios(log_p - log_q)
        return (self.beta - 1) * log_q.exp() * lam

    def accumulate(self, tile: Tile, slope: Tensor | None, weight: float) -> Tensor:
        x = tile.log_ratio.clamp(max=self._FARTHEST)
        lam = x.expm1().mul_(self.beta).log1p_()
        inner = tile.q * lam
        if slope is not None:
            slope.add_(inner, alpha=(self.beta - 1) * weight)
        return self.beta * torch.linalg.vecdot(tile.p, x.sub_(lam)) - (1 - self.beta) * inner.sum(-1)


class TVD:
    """Total variation, ½ Σ |p − q|: the largest difference in probability of any event. ≤ 1."""

    name = "tvd"

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return 0.5 * (log_p.exp() - log_q.exp()).abs()

    def slope(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        q = log_q.exp()
        return 0.5 * q * torch.sign(q - log_p.exp())

    def accumulate(self, tile: Tile, slope: Tensor | None, weight: float) -> Tensor:
        if slope is not None:
            slope.addcmul_(torch.sign(tile.difference), tile.q, value=0.5 * weight)
        return 0.5 * tile.difference.abs().sum(-1)


FIRST_PARTY: dict[str, type] = {cls.name: cls for cls in (KL, ReverseKL, JS, TVD)}
"""The divergences that a `Term` can name, by name."""
