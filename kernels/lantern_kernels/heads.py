"""Where logits come from, and where their gradient goes: a model's head, or logits that somebody made.

The loss walks over chunks of rows. It asks each side to write the logits of a chunk into a buffer, and gives the
student's side the gradient of that chunk back. The two kinds of side look alike to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from lantern_kernels import products
from lantern_kernels.top_k import TopK
from lantern_kernels.workspace import Workspace

# Choosing columns copies them; with more than this share of them the dense products take less.
_SPARSE = 0.6

Room = Callable[[Tensor], Tensor]
"""Gives a buffer for a chunk's logits, of the dtype and on the device of the argument."""

Rows = slice | Tensor
"""A choice of rows: a slice where they're contiguous, which costs no copy, and ids where they aren't."""


@dataclass(frozen=True, eq=False)
class Head:
    """What a model contributes to its logits: ``softcap(scale·(hidden @ weightᵀ + bias))``.

    Args:
        hidden: Hidden states of the supervised positions, ``[N, d]``.
        weight: The output embedding, ``[V, d]``.
        bias: ``[V]``, or None.
        softcap: c of ``softcap(x) = c·tanh(x/c)``, as Gemma's ``final_logit_softcapping``; None for none.
        scale: Factor of the logits ahead of the cap: Cohere's ``logit_scale``, 1 / Granite's ``logits_scaling``.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0


@dataclass(frozen=True, eq=False)
class Logits:
    """Logits that were made already, ``softcap(scale·values)``; a bare tensor stands for the values alone.

    Args:
        values: ``[N, V]``.
        softcap: As in `Head`; None where the values are capped already.
        scale: As in `Head`.
    """

    values: Tensor
    softcap: float | None = None
    scale: float = 1.0


class Bend(NamedTuple):
    """What a model does to the products of hidden states and output embedding: scale them, then cap them."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """``softcap(scale·logits)``; −∞ stays −∞."""
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = (logits / self.softcap).tanh().mul(self.softcap).masked_fill(logits == -math.inf, -math.inf)
        return logits

    def back(self, gradient: Tensor, bent: Tensor) -> Tensor:
        """The gradient with respect to what was bent, from that with respect to the result and the result."""
        if self.softcap is not None:
            gradient = gradient * (1 - (bent / self.softcap).square()).masked_fill(bent == -math.inf, 0.0)
        return gradient * self.scale if self.scale != 1.0 else gradient


class TeacherSide(Protocol):
    """What a teacher says, by chunks of rows."""

    def read(self, rows: Rows) -> Tensor | TopK:
        """Logits ``[n, columns]`` ahead of their `Bend`, or the most probable tokens of the rows."""


class Side(Protocol):
    """One model's logits ahead of their `Bend`, by chunks of rows, and the gradients of what's behind them.

    Chunks are as wide as the wider of the two vocabularies; the columns that a side lacks are −inf.
    """

    def read(self, rows: Rows) -> Tensor:
        """Logits ``[n, columns]``, to be read only; the next call may write over them."""

    def room(self, rows: Rows, logits: Tensor) -> Tensor:
        """Where to write the gradient ``[n, columns]`` of the logits that were read last: possibly over them."""

    def take(self, rows: Rows, gradient: Tensor, negligible: Tensor | None) -> None:
        """Note the gradient, ``[n, columns]``, of the logits of `rows` ahead of their bend. Each row comes once.

        Columns in which no entry is larger than `negligible` may be left out.
        """

    def gradients(self) -> list[Tensor | None]:
        """Those of the side's tensors, in the order of `tensors_of`; None for what isn't wanted."""


class _ProjectedSide:
    """The logits of a `Head`, projected into `dtype` whatever the dtype of the hidden states.

    Rounding logits to bf16 makes q − p wrong by a fifth where student and teacher are close. So a weight of another
    dtype is converted, once, and its copy held as long as the loss is being computed, unless the device multiplies such
    factors into `dtype` (`products`).
    """

    def __init__(
        self,
        head: Head,
        dtype: torch.dtype,
        room: Room,
        wanted: Sequence[bool],
        weights: Tensor | None,
        group: dist.ProcessGroup | None,
    ):
        self._head, self._group = head, group
        # A row that doesn't count may hold a NaN, which no gradient of 0 would keep out of a sum over rows.
        self._hidden = head.hidden if weights is None else head.hidden.masked_fill((weights == 0)[:, None], 0.0)
        self._weight = head.weight.to(products.dtype_of_factors(head.hidden, head.weight, dtype))
        self._bias = None if head.bias is None else head.bias.to(dtype)
        self._buffer = room(head.weight.new_empty(0, dtype=dtype))
        hidden, weight, bias = wanted
        # Ranks add up their columns' parts of it, and parts that were rounded before would lose what cancels.
        kept = kept_dtype(head.hidden) if group is None else dtype
        self._hidden_gradient = torch.zeros_like(head.hidden, dtype=kept) if hidden else None
        self._weight_gradient = torch.empty_like(self._weight, dtype=dtype) if weight else None
        self._bias_gradient = torch.zeros_like(self._bias) if bias and self._bias is not None else None
        self._started = False

    def read(self, rows: Rows) -> Tensor:
        hidden = self._hidden[rows].to(self._weight.dtype)
        chunk = self._buffer[: len(hidden)]
        logits, absent = chunk[:, : len(self._weight)], chunk[:, len(self._weight) :]
        absent.fill_(-math.inf)
        products.multiply(hidden, self._weight.t(), out=logits)
        if self._bias is not None:
            logits.add_(self._bias)
        return chunk

    def room(self, rows: Rows, logits: Tensor) -> Tensor:
        return logits

    def take(self, rows: Rows, gradient: Tensor, negligible: Tensor | None) -> None:
        gradient = gradient[:, : len(self._weight)]
        if self._bias_gradient is not None:
            self._bias_gradient.add_(gradient.sum(0))
        hidden = self._hidden[rows].to(self._weight.dtype)
        columns = None if negligible is None else _columns_above(gradient, negligible)
        weight = self._weight
        if columns is not None:
            gradient, weight = gradient[:, columns], weight[columns]
        # Rounded once for both products, where they take narrow factors.
        dtype, gradient = gradient.dtype, gradient.to(weight.dtype)
        if self._hidden_gradient is not None:
            product = gradient.new_empty(len(gradient), weight.shape[1], dtype=dtype)
            products.multiply(gradient, weight, out=product)
            self._hidden_gradient[rows] = product.to(self._hidden_gradient.dtype)
        if self._weight_gradient is None:
            return
        if columns is None:
            # The first chunk overwrites: to clear the largest tensor here would cost a pass over it.
            products.accumulate(self._weight_gradient, gradient.t(), hidden, fresh=not self._started)
        else:
            if not self._started:
                self._weight_gradient.zero_()
            product = gradient.new_empty(len(columns), hidden.shape[1], dtype=dtype)
            products.multiply(gradient.t(), hidden, out=product)
            self._weight_gradient.index_add_(0, columns, product)
        self._started = True

    def gradients(self) -> list[Tensor | None]:
        if self._weight_gradient is not None and not self._started:
            self._weight_gradient.zero_()
        if self._group is not None and self._hidden_gradient is not None:
            dist.all_reduce(self._hidden_gradient, group=self._group)
        found = (self._hidden_gradient, self._weight_gradient, self._bias_gradient)
        return [
            None if gradient is None or tensor is None else gradient.to(kept_dtype(tensor))
            for gradient, tensor in zip(found, tensors_of(self._head), strict=True)
        ]


def kept_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of its gradient until the backward has scaled it: before, it would underflow in float16."""
    return torch.float32 if tensor.dtype == torch.float16 else tensor.dtype


def _columns_above(gradient: Tensor, negligible: Tensor) -> Tensor | None:
    """Ids of the columns with an entry larger than `negligible`; None where they're too many for a choice to pay."""
    columns = (~(torch.linalg.vector_norm(gradient, torch.inf, dim=0) <= negligible)).nonzero()[:, 0]  # NaN stays
    return columns if len(columns) < _SPARSE * gradient.shape[1] else None


class _GivenSide:
    """`Logits`, which need no copy where they have the dtype and the width of the computation and the rows are a slice."""

    def __init__(self, source: Logits, dtype: torch.dtype, columns: int, room: Room, wanted: Sequence[bool]):
        self._logits = logits = source.values
        self._fits = logits.dtype == dtype and logits.shape[1] == columns
        self._buffer = None if self._fits else room(logits.new_empty(0, dtype=dtype))
        self._gradient = torch.zeros_like(logits, dtype=kept_dtype(logits)) if any(wanted) else None

    def read(self, rows: Rows) -> Tensor:
        given = self._logits[rows]
        if self._buffer is None:
            return given
        chunk = self._buffer[: len(given)]
        chunk[:, : given.shape[1]] = given
        chunk[:, given.shape[1] :] = -math.inf
        return chunk

    def room(self, rows: Rows, logits: Tensor) -> Tensor:
        # What was read is the caller's own, or a copy.
        return self._gradient[rows] if self._is_view(rows) and self._gradient is not None else logits

    def take(self, rows: Rows, gradient: Tensor, negligible: Tensor | None) -> None:
        if self._gradient is not None and not self._is_view(rows):
            self._gradient[rows] = gradient[:, : self._gradient.shape[1]].to(self._gradient.dtype)

    def gradients(self) -> list[Tensor | None]:
        return [self._gradient]

    def _is_view(self, rows: Rows) -> bool:
        return self._fits and isinstance(rows, slice)


class _TopKSide:
    """A teacher's most probable tokens."""

    def __init__(self, source: TopK):
        self._source = source

    def read(self, rows: Rows) -> TopK:
        return self._source[rows]


def open_teacher(
    source: Head | Logits | TopK, dtype: torch.dtype, chunk_rows: int, columns: int, workspace: Workspace
) -> TeacherSide:
    """Ready a teacher to be read by chunks of at most `chunk_rows`."""
    return _TopKSide(source) if isinstance(source, TopK) else open_side(source, dtype, chunk_rows, columns, workspace)


def open_side(
    source: Head | Logits,
    dtype: torch.dtype,
    chunk_rows: int,
    columns: int,
    workspace: Workspace,
    wanted: Sequence[bool] | None = None,
    weights: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> Side:
    """Ready a side to be read by chunks of at most `chunk_rows`, gathering gradients of its tensors where `wanted`.

    With row weights given, the rows of weight 0 are kept from reaching the others. A head's vocabulary is sharded over the
    `group`, if there is one.
    """
    if wanted is None:
        wanted = [False] * len(tensors_of(source))
    room = partial(workspace.empty, chunk_rows, columns)
    if isinstance(source, Head):
        return _ProjectedSide(source, dtype, room, wanted, weights, group)
    return _GivenSide(source, dtype, columns, room, wanted)


def bend_of(source: Head | Logits | TopK | None) -> Bend:
    """What makes logits of what a side's chunks hold; nothing where these aren't logits."""
    return Bend(source.scale, source.softcap) if isinstance(source, Head | Logits) else Bend()


def tensors_of(source: Head | Logits | None) -> list[Tensor | None]:
    """What a side's gradient may flow to: hidden, weight and bias of a head, or the logits themselves."""
    if source is None:
        return []
    return [source.hidden, source.weight, source.bias] if isinstance(source, Head) else [source.values]


def vocabulary(source: Head | Logits | TopK | None) -> int:
    """The number of logits that a side has per row; 0 where it has none."""
    if not isinstance(source, Head | Logits):
        return 0
    return source.weight.shape[0] if isinstance(source, Head) else source.values.shape[1]
