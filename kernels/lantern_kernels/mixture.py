"""The mixture on a few rows of logits: every term's value, and the gradient of their weighted sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lantern_kernels.divergences import Fused, General, Pointwise
from lantern_kernels.terms import CROSS_ENTROPY, Term
from lantern_kernels.tile import Tile, finite


@dataclass(frozen=True)
class Mixture:
    """The loss of one row, T²·Σ wₖ·Dₖ + c·CE: divergences of softmax(logits/T), cross entropy at T = 1."""

    terms: Sequence[Term]
    temperature: float
    cross_entropy: float
    with_targets: bool

    @property
    def labels(self) -> list[str]:
        """What the values are values of: the terms, and the cross entropy if there are targets."""
        labels = [term.label for term in self.terms]
        return [*labels, CROSS_ENTROPY] if self.with_targets else labels

    def coefficients(self, like: Tensor) -> Tensor:
        """The factor in the loss of each value, in the order of `labels`."""
        factors = [term.weight * self.temperature**2 for term in self.terms]
        return like.new_tensor([*factors, self.cross_entropy] if self.with_targets else factors)

    def rows(
        self, student: Tensor, teacher: Tensor | None, targets: Tensor | None, with_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The terms' values and, on request, the gradient of the rows' losses.

        Args:
            student: Logits ``[n, V]``.
            teacher: Logits ``[n, V]`` of the same dtype; None if there are no terms.
            targets: Class ids ``[n]``, or None to leave the cross entropy out.
            with_gradient: Whether to work out the gradient.

        Returns:
            ``[len(labels), n]``, unweighted, in nats; and ∂loss/∂logits ``[n, V]`` of the student, or None.
        """
        T = self.temperature
        untempered = Tile(student, teacher)
        tempered = untempered if T == 1.0 else Tile(student / T, None if teacher is None else teacher / T)
        gradient = torch.zeros_like(student) if with_gradient else None
        values = {}

        # A divergence's gradient carries T² for its size and 1/T for the step from tempered logits to logits.
        for term in self.terms:
            if isinstance(term.divergence, Pointwise):
                values[term.label] = _accumulate(term.divergence, tempered, gradient, term.weight * T)
        if values and gradient is not None:
            tempered.through_softmax(gradient)
        for term in self.terms:
            if not isinstance(term.divergence, Pointwise):
                values[term.label] = _differentiate(term.divergence, tempered, gradient, term.weight * T)
        if targets is not None:
            values[CROSS_ENTROPY] = _cross_entropy(untempered, targets, gradient, self.cross_entropy)
        return torch.stack([values[label] for label in self.labels]), gradient


def _accumulate(divergence: Pointwise, tile: Tile, slope: Tensor | None, weight: float) -> Tensor:
    if weight == 0.0:
        slope = None
    if isinstance(divergence, Fused):
        return divergence.accumulate(tile, slope, weight)
    if slope is not None:
        slope.add_(divergence.slope(tile.log_p, tile.log_q), alpha=weight)
    return divergence.value(tile.log_p, tile.log_q).sum(-1)


def _differentiate(divergence: General, tile: Tile, gradient: Tensor | None, weight: float) -> Tensor:
    wanted = gradient is not None and weight != 0.0
    with torch.set_grad_enabled(wanted):
        student = tile.student.detach().requires_grad_(wanted)
        value = divergence(finite(student), finite(tile.teacher))
        if value.shape != student.shape[:1]:
            raise ValueError(
                f"divergence {divergence.name!r} returned shape {list(value.shape)} for {student.shape[0]} rows; "
                f"expected [{student.shape[0]}], one value per row"
            )
        if wanted and gradient is not None:
            (slope,) = torch.autograd.grad(value.sum(), student)
            gradient.add_(slope, alpha=weight)
    return value.detach()


def _cross_entropy(tile: Tile, targets: Tensor, gradient: Tensor | None, weight: float) -> Tensor:
    if gradient is not None and weight != 0.0:
        gradient.add_(tile.q, alpha=weight)
        gradient.scatter_add_(-1, targets[:, None], gradient.new_full((len(targets), 1), -weight))
    return -tile.log_q.gather(-1, targets[:, None])[:, 0]
