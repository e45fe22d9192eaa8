"""One distribution made of several: the formulas, on log-probabilities.

Both mixtures are those of Hinton et al., arXiv 1503.02531: an arithmetic or geometric mean of the teachers' distributions as
the soft targets. Everywhere −inf stands for a probability of 0.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Mixing = Literal["arithmetic", "geometric"]


def log_row_weights(log_probs: Sequence[Tensor], shares: Sequence[float], temperature: float | None) -> Tensor:
    """Logarithms [K, n, 1] of the weights of K teachers in each of n rows, which sum to 1 over the teachers.

    Without a temperature they are the shares. With one, a teacher counts for more in the rows where it's sure:

        weight_k ∝ share_k · exp(−H(p_k) / temperature),  H(p) = −Σ p·log p in nats

    That teachers of lower entropy get the larger part is the idea of Kwon et al., "Adaptive Knowledge Distillation Based on
    Entropy" (ICASSP 2020, doi 10.1109/ICASSP40776.2020.9054698). The exponential form is ours.
    """
    given = torch.tensor(shares, device=log_probs[0].device).log()[:, None, None]
    if temperature is None:
        return given.expand(-1, len(log_probs[0]), 1)
    entropies = torch.stack([torch.special.entr(each.exp()).sum(-1, keepdim=True) for each in log_probs])
    return (given - entropies / temperature).log_softmax(0)


def mix(log_probs: Sequence[Tensor], log_weights: Tensor, mixing: Mixing) -> Tensor:
    """Log-probabilities [n, V] of the mixture of K distributions [n, V] with weights [K, n, 1].

    Arithmetic is log Σ wₖ·pₖ. Geometric is Σ wₖ·log pₖ, normalised: what any teacher excludes is excluded. Where that
    leaves nothing of a row, since its teachers contradict each other in everything, the row is their arithmetic mixture.
    """
    if mixing == "arithmetic":
        return _arithmetic(log_probs, log_weights)
    total = torch.zeros_like(log_probs[0])
    for each, weight in zip(log_probs, log_weights.exp(), strict=True):
        # A weight that underflowed to 0 would make NaN of −inf; in exact arithmetic it's above 0, and excludes.
        total += (each * weight).masked_fill_(each == -torch.inf, -torch.inf)
    nothing_left = total.amax(-1) == -torch.inf
    mixed = total.log_softmax(-1)
    if nothing_left.any():
        mixed[nothing_left] = _arithmetic([each[nothing_left] for each in log_probs], log_weights[:, nothing_left])
    return mixed


def _arithmetic(log_probs: Sequence[Tensor], log_weights: Tensor) -> Tensor:
    total = log_probs[0] + log_weights[0]
    for each, weight in zip(log_probs[1:], log_weights[1:], strict=True):
        total = torch.logaddexp(total, each + weight)
    return total
