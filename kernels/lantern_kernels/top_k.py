"""A teacher of which only the most probable tokens are known, as servers and caches give them.

Both distributions are compared on k + 1 events: the k tokens, and all others as one, the tail. Merging events can only
lower a divergence (data processing inequality), so each value is a lower bound of the full one, and equal at k = V.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lantern_kernels.divergences import LOG_FLOOR, Pointwise


@dataclass(frozen=True, eq=False)
class TopK:
    """What is known of the teacher's distributions, at the temperature of the mixture.

    Args:
        ids: The tokens that are known, ``[N, k]``, all different within a row.
        log_probs: Their log-probabilities, ``[N, k]``.
        tail_log_mass: The logarithm of what is left for all other tokens together, ``[N]``; −∞ for nothing.
    """

    ids: Tensor
    log_probs: Tensor
    tail_log_mass: Tensor

    def __getitem__(self, rows: slice | Tensor) -> TopK:
        return TopK(self.ids[rows], self.log_probs[rows], self.tail_log_mass[rows])

    def events(self, dtype: torch.dtype) -> Tensor:
        """Log-probabilities of the events, ``[N, k + 1]``, at least LOG_FLOOR."""
        return torch.cat([self.log_probs, self.tail_log_mass[:, None]], -1).to(dtype).clamp(min=LOG_FLOOR)


@dataclass(frozen=True, eq=False)
class Events:
    """What follows from the student's log-probabilities of the events, ``[n, k + 1]``."""

    values: list[Tensor]
    """Per divergence ``[n]``."""
    slopes: Tensor
    """∂(loss of the divergences)/∂(log q) of each event, times 1/temperature; an event on the floor has none."""

    @property
    def total(self) -> Tensor:
        """Σ slopes, ``[n, 1]``."""
        return self.slopes.sum(-1, keepdim=True)


def on_events(
    divergences: Sequence[Pointwise], teacher: TopK, log_q: Tensor, factors: Sequence[float], temperature: float
) -> Events:
    """The divergences between the two distributions over the k + 1 events."""
    log_p, log_q = teacher.events(log_q.dtype), log_q.clamp(min=LOG_FLOOR)
    p, q = log_p.exp(), log_q.exp()
    values, slopes = [], torch.zeros_like(q)
    for k, divergence in enumerate(divergences):
        value, slope = divergence.value_and_slope(log_p, log_q, p, q)
        values.append(value.sum(-1))
        slopes = slopes + slope * (factors[k] / temperature)
    return Events(values, slopes.masked_fill(log_q <= LOG_FLOOR, 0.0))


def top_k_rows(
    divergences: Sequence[Pointwise],
    student: Tensor,
    teacher: TopK,
    factors: Sequence[float],
    temperature: float,
    with_gradient: bool,
) -> tuple[list[Tensor], Tensor | None]:
    """Values ``[n]`` and gradient ``[n, V]`` on rows of student logits, as `mixture.pointwise_rows` on full ones.

    With Q the student's distribution over the events, ∂D/∂s of a known token is slope − q·Σ slope; the slope of the tail
    is shared among its tokens in proportion to q.
    """
    tempered = student if temperature == 1.0 else student / temperature
    total = tempered.logsumexp(-1, keepdim=True)
    # Not 1 − Σ q, which loses everything where the known tokens hold nearly all the mass.
    others = tempered.scatter(-1, teacher.ids, -torch.inf)
    tail = others.logsumexp(-1, keepdim=True)
    log_q = torch.cat([tempered.gather(-1, teacher.ids), tail], -1) - total
    events = on_events(divergences, teacher, log_q, factors, temperature)
    if not with_gradient:
        return events.values, None
    share = (others - tail.clamp(min=torch.finfo(tail.dtype).min / 2)).exp().mul_(events.slopes[:, -1:])
    share.scatter_(-1, teacher.ids, events.slopes[:, :-1])
    return events.values, share.addcmul_((tempered - total).exp(), events.total, value=-1.0)
