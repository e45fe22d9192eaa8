"""The mixture on a few rows of logits: every term's value, and the gradient of their weighted sum.

`pointwise_rows` is the one formula, in plain tensor operations: `Mixture.rows` calls it as it is, and `compiled` hands
it to Inductor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lantern_kernels.divergences import LOG_FLOOR, General, Pointwise
from lantern_kernels.sharded import Shard, sharded_rows
from lantern_kernels.terms import CROSS_ENTROPY, Term
from lantern_kernels.top_k import TopK, top_k_rows


@dataclass(frozen=True)
class Mixture:
    """The loss of one row, T²·Σ wₖ·Dₖ + c·CE: divergences of softmax(logits/T), cross entropy at T = 1."""

    terms: Sequence[Term]
    temperature: float
    cross_entropy: float
    with_targets: bool
    shard: Shard | None = None
    """This rank's share of the vocabulary, if it's sharded."""

    @cached_property
    def labels(self) -> list[str]:
        """What the values are values of: the terms, and the cross entropy if there are targets."""
        labels = [term.label for term in self.terms]
        return [*labels, CROSS_ENTROPY] if self.with_targets else labels

    @cached_property
    def factors(self) -> list[float]:
        """The factor in the loss of each value, in the order of `labels`."""
        factors = [term.weight * self.temperature**2 for term in self.terms]
        return [*factors, self.cross_entropy] if self.with_targets else factors

    def weighted_sum(self, values: Tensor) -> Tensor:
        """The rows' losses ``[N]`` from the values ``[K, N]``."""
        total = values.new_zeros(values.shape[1])
        for factor, value in zip(self.factors, values, strict=True):
            total = total + factor * value
        return total

    @property
    def is_pointwise(self) -> bool:
        """Whether every term is a sum over the vocabulary."""
        return all(isinstance(term.divergence, Pointwise) for term in self.terms)

    def rows(
        self, student: Tensor, teacher: Tensor | TopK | None, targets: Tensor | None, with_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The terms' values and, on request, the gradient of the rows' losses.

        Args:
            student: Logits ``[n, V]``.
            teacher: Logits ``[n, V]`` of the same dtype, or the most probable tokens of n rows; None if there are no
                terms.
            targets: Class ids ``[n]``, or None to leave the cross entropy out.
            with_gradient: Whether to work out the gradient.

        Returns:
            ``[len(labels), n]``, unweighted, in nats; and ∂loss/∂logits ``[n, V]`` of the student, or None.
        """
        general = {k: term.divergence for k, term in enumerate(self.terms) if not isinstance(term.divergence, Pointwise)}
        pointwise = [term.divergence for term in self.terms if isinstance(term.divergence, Pointwise)]
        factors = [factor for k, factor in enumerate(self.factors) if k not in general]
        if self.shard is not None:
            values, gradient = sharded_rows(
                pointwise, student, teacher, targets, factors, self.temperature, with_gradient, self.shard
            )
            return torch.stack(values), gradient
        if isinstance(teacher, TopK):
            values, gradient = top_k_rows(pointwise, student, teacher, factors, self.temperature, with_gradient)
            found, towards = pointwise_rows([], student, None, targets, factors[len(pointwise) :], 1.0, with_gradient)
            values += found
            gradient = towards if gradient is None else gradient if towards is None else gradient.add_(towards)
            return torch.stack(values), gradient
        values, gradient = pointwise_rows(pointwise, student, teacher, targets, factors, self.temperature, with_gradient)
        for k, divergence in general.items():
            assert teacher is not None
            value, slope = _differentiate(
                divergence, student / self.temperature, teacher / self.temperature, with_gradient and self.factors[k] != 0
            )
            values.insert(k, value)
            if slope is not None:
                slope = slope.mul_(self.factors[k] / self.temperature)
                gradient = slope if gradient is None else gradient.add_(slope)
        if with_gradient and gradient is None:
            gradient = torch.zeros_like(student)
        return torch.stack(values), gradient


def pointwise_rows(
    divergences: Sequence[Pointwise],
    student: Tensor,
    teacher: Tensor | None,
    targets: Tensor | None,
    factors: Sequence[float] | Tensor,
    temperature: float | Tensor,
    with_gradient: bool,
) -> tuple[list[Tensor], Tensor | None]:
    """Values ``[n]`` and gradient ``[n, V]`` of rows of logits; the arguments are those of `Mixture.rows`.

    No Python branch looks at what tensors hold, and a schedule's weights and temperature may be tensors: so Inductor
    compiles it once. Without divergences and targets there is no gradient.
    """
    untempered = isinstance(temperature, float) and temperature == 1.0
    values = []
    gradient = None
    if divergences:
        assert teacher is not None, "a divergence needs a teacher; the public functions see to it"
        log_q = _log_softmax(student if untempered else student / temperature)
        log_p = _log_softmax(teacher if untempered else teacher / temperature)
        p, q = log_p.exp(), log_q.exp()
        total = None
        for k, divergence in enumerate(divergences):
            value, slope = divergence.value_and_slope(log_p, log_q, p, q)
            values.append(value.sum(-1))
            if with_gradient:
                # T² keeps the gradient's size; one T goes in the step from tempered logits to logits.
                slope = slope * (factors[k] / temperature)
                total = slope if total is None else total + slope
        if total is not None:
            # An entry on the floor is a constant: it has no slope. So where the student lacks columns in which the
            # teacher has mass, the gradient still sums to zero over those that it has.
            total = total.masked_fill(log_q <= LOG_FLOOR, 0.0)
            gradient = total - q * total.sum(-1, keepdim=True)
    if targets is not None:
        if not divergences or not untempered:
            log_q = _log_softmax(student)
            q = log_q.exp()
        values.append(-log_q.gather(-1, targets[:, None])[:, 0])
        if with_gradient:
            columns = torch.arange(student.shape[1], device=student.device)
            towards = (q - (columns == targets[:, None]).to(q.dtype)) * factors[len(divergences)]
            gradient = towards if gradient is None else gradient + towards
    return values, gradient


def _differentiate(
    divergence: General, student: Tensor, teacher: Tensor, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Values ``[n]`` of tempered logits ``[n, V]``, and their gradient."""
    with torch.set_grad_enabled(with_gradient):
        student = student.detach().requires_grad_(with_gradient)
        value = divergence(_finite(student), _finite(teacher))
        if value.shape != student.shape[:1]:
            raise ValueError(
                f"divergence {divergence.name!r} returned shape {list(value.shape)} for {student.shape[0]} rows; "
                f"expected [{student.shape[0]}], one value per row"
            )
        slope = torch.autograd.grad(value.sum(), student)[0] if with_gradient else None
    return value.detach(), slope


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, -1).clamp(min=LOG_FLOOR)


def _finite(logits: Tensor) -> Tensor:
    """Logits ``[n, V]`` with the same softmax, none of them further than LOG_FLOOR below the largest of its row."""
    return logits.clamp(min=logits.detach().amax(-1, keepdim=True) + LOG_FLOOR)
