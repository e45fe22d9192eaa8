"""Token signals of several teachers as one: by chunks of rows, or as one linear form."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeGuard

import torch
from torch import Tensor

from lantern_pl.signals import Hidden, Logits, OutputHead

CHUNK_ROWS = 256
"""Rows whose distributions over the vocabulary exist at a time, of each teacher."""


def chunks(rows: int) -> Iterator[slice]:
    """Slices that cover so many rows."""
    return (slice(start, min(start + CHUNK_ROWS, rows)) for start in range(0, rows, CHUNK_ROWS))


def values_of(signal: Hidden | Logits) -> Tensor:
    """What a signal has a row of for each of the N positions."""
    return signal.logits if isinstance(signal, Logits) else signal.hidden


def reader(signal: Hidden | Logits, vocab_size: int) -> Callable[[slice], Tensor]:
    """Gives the log-probabilities [n, vocab_size] of some of a signal's rows, in float32.

    The columns that the signal lacks are −inf.
    """
    logits = _given(signal) if isinstance(signal, Logits) else _projected(signal)

    def log_probs(rows: slice) -> Tensor:
        found = logits(rows).log_softmax(-1)
        if found.shape[1] == vocab_size:
            return found
        padded = found.new_full((len(found), vocab_size), -torch.inf)
        padded[:, : found.shape[1]] = found
        return padded

    return log_probs


def _given(signal: Logits) -> Callable[[slice], Tensor]:
    return lambda rows: signal.logits[rows].float()


def _projected(signal: Hidden) -> Callable[[slice], Tensor]:
    head = signal.head
    # Logits that are rounded to bfloat16 are too coarse to learn from. The conversion is done once for all chunks.
    weight = head.weight.float()
    bias = None if head.bias is None else head.bias.float()

    def logits(rows: slice) -> Tensor:
        products = torch.nn.functional.linear(signal.hidden[rows].float(), weight, bias) * head.scale
        if head.softcap is None:
            return products
        capped = head.softcap * torch.tanh(products / head.softcap)
        return capped.masked_fill(products == -torch.inf, -torch.inf)

    return logits


def are_linear(signals: Sequence[Hidden | Logits]) -> TypeGuard[Sequence[Hidden]]:
    """Whether all signals are linear in their hidden states, over equally many tokens."""
    linear = [signal for signal in signals if isinstance(signal, Hidden) and signal.head.softcap is None]
    return len(linear) == len(signals) and len({signal.head.weight.shape[0] for signal in linear}) == 1


class JoinedHead:
    """The geometric mixture of linear signals with fixed shares, as one linear signal.

    It's exact. With logits z_k, log p_k = z_k − c_k, where c_k is the same for every token of a row. So Σ share_k·log p_k
    and Σ share_k·z_k differ by a number per row, to which a softmax is blind, at any temperature. And with
    z_k = scale_k·(h_k @ W_kᵀ + b_k), Σ share_k·z_k is itself a linear form: its hidden states are share_k·scale_k·h_k side
    by side, its weight W_k side by side, its bias Σ share_k·scale_k·b_k.

    The weight is as large as all teachers' together. It's made once, since teachers' weights don't change.
    """

    def __init__(self, shares: Sequence[float]) -> None:
        self._shares = shares
        self._parts: list[Tensor] = []
        self._head: OutputHead | None = None

    def join(self, signals: Sequence[Hidden]) -> Hidden:
        """The mixture of signals that `are_linear`."""
        factors = [share * signal.head.scale for share, signal in zip(self._shares, signals, strict=True)]
        # In float32: a factor isn't to cost a bfloat16 hidden state another rounding.
        hidden = [factor * signal.hidden.float() for factor, signal in zip(factors, signals, strict=True)]
        return Hidden(torch.cat(hidden, -1), self._joined([signal.head for signal in signals], factors))

    def _joined(self, heads: Sequence[OutputHead], factors: Sequence[float]) -> OutputHead:
        parts = [head.weight for head in heads]
        if self._head is None or any(one is not other for one, other in zip(parts, self._parts, strict=True)):
            biases = [factor * h.bias.float() for factor, h in zip(factors, heads, strict=True) if h.bias is not None]
            self._head = OutputHead(torch.cat(parts, -1), torch.stack(biases).sum(0) if biases else None)
            self._parts = parts
        return self._head
