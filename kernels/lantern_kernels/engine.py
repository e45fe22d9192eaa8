"""The walk over chunks of rows, with the gradient worked out on the way, and its place in autograd."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lantern_kernels.chunk import on_chunk, row_kernels
from lantern_kernels.heads import Head, Logits, Rows, bend_of, open_side, open_teacher, tensors_of, vocabulary
from lantern_kernels.mixture import Mixture
from lantern_kernels.top_k import TopK
from lantern_kernels.workspace import borrowed

# Both sides' logits of a chunk. Larger chunks make better GEMMs, and take more memory. With fewer than 128 rows GEMMs get
# slow, whatever the vocabulary. An accelerator wants a thousand rows and more.
_CHUNK_BYTES_CPU = 128 << 20
_CHUNK_BYTES_ACCELERATOR = 1 << 30
_FEWEST_ROWS = {"cpu": 128, "accelerator": 1024}
_TILE_ROWS = 128
"""An accelerator's products come in tiles of so many rows; a chunk that ends within one pays for all of it."""


@dataclass(frozen=True)
class Job:
    """A call with arguments that have been checked.

    `weights` are the row weights ``[N]``, in the dtype of the computation, 0 where a row doesn't count; `rows` are
    the ids of the rows to read, None for all of them (the kernels of the "triton" backend see for themselves).
    """

    student: Head | Logits
    teacher: Head | Logits | TopK | None
    mixture: Mixture
    targets: Tensor | None
    weights: Tensor
    rows: Tensor | None
    chunk_size: int | None
    backend: str
    accurate: bool
    in_place: bool
    skip_below: float
    logits_before: int | None

    def run(self) -> tuple[Tensor, Tensor]:
        """The loss, differentiable in the student's tensors, and the values ``[len(mixture.labels), N]``."""
        student = tensors_of(self.student)
        if self.backend == "triton" and isinstance(self.student, Logits) and not isinstance(self.teacher, Head):
            return _Recomputed.apply(self, *student)
        if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in student):
            loss, values = _GradientInForward.apply(self, *student)
        else:
            loss, values, _ = walk(self, [False] * len(student))
        return loss, values


class _GradientInForward(torch.autograd.Function):
    """A scalar whose gradient is known as soon as its value is, so that the backward only scales it."""

    @staticmethod
    def forward(ctx: Any, job: Job, *student: Tensor | None) -> tuple[Tensor, Tensor]:
        loss, values, gradients = walk(job, ctx.needs_input_grad[1:])
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in student]
        ctx.mark_non_differentiable(values)
        return loss, values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients: Sequence[Tensor | None] = ctx.saved_tensors
        # By far the most common factor, and the weight's gradient is the largest tensor here: spare its copy. On a
        # device, looking at the factor would mean waiting for it, and the copy costs little.
        if not (upstream.is_cpu and upstream == 1):
            gradients = [None if gradient is None else gradient * upstream for gradient in gradients]
        return None, *(None if g is None else g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True))


class _Recomputed(torch.autograd.Function):
    """On logits that are there already: four scalars of a row are kept, and the gradient is made from them."""

    @staticmethod
    def forward(ctx: Any, job: Job, student: Tensor) -> tuple[Tensor, Tensor]:
        teacher: Any = job.teacher.values if isinstance(job.teacher, Logits) else job.teacher
        top_k = isinstance(teacher, TopK)
        with torch.autocast(student.device.type, enabled=False):
            kernels = row_kernels(job.mixture, bend_of(job.student), bend_of(job.teacher), job.accurate, top_k)
            values, sums = kernels.sums(student, teacher, job.targets, job.weights)
            loss = job.mixture.weighted_sum(values) @ job.weights
        # Saved in autograd's way, which notices what is changed in place until the backward; it refuses what a teacher
        # made in inference mode, and that alone is kept without it.
        others = [teacher.ids if top_k else teacher, job.targets]
        ctx.unwatched = [None if tensor is None or not tensor.is_inference() else tensor for tensor in others]
        ctx.save_for_backward(student, *(None if tensor is None or tensor.is_inference() else tensor for tensor in others))
        # What the gradient needs of a top-k teacher is among the sums.
        ctx.others = kernels, top_k, job.weights, sums
        # Rows that share memory, as those of an expanded tensor do, can't each hold a gradient.
        ctx.in_place = job.in_place and student.stride(1) == 1 and student.stride(0) >= student.shape[1]
        ctx.mark_non_differentiable(values)
        return loss, values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        student, *watched = ctx.saved_tensors
        teacher, targets = (a if b is None else b for a, b in zip(watched, ctx.unwatched, strict=True))
        kernels, top_k, weights, sums = ctx.others
        teacher = None if top_k else teacher
        gradient = torch.empty_like(student, memory_format=torch.contiguous_format)
        if ctx.in_place:
            gradient = student.detach()
        kernels.gradient(student, teacher, targets, weights, sums, upstream, out=gradient)
        if ctx.in_place:
            torch.autograd.graph.increment_version(student)  # a second backward is to fail, not to go wrong
        return None, gradient


def walk(job: Job, wanted: Sequence[bool]) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Loss, values, and the gradients of those of the student's tensors for which they're `wanted`."""
    mixture, weights = job.mixture, job.weights
    teacher_source = job.teacher if mixture.terms else None
    columns = max(vocabulary(job.student), vocabulary(teacher_source))
    # Ranks must exchange alike, however wide their own shares are.
    chunk_rows = _chunk_rows(job, columns if mixture.shard is None else mixture.shard.widest)
    values = weights.new_zeros(len(mixture.labels), len(weights))
    with torch.no_grad(), torch.autocast(weights.device.type, enabled=False), borrowed() as workspace:
        sizes = weights.dtype, chunk_rows, columns, workspace
        group = None if mixture.shard is None else mixture.shard.group
        student = open_side(job.student, *sizes, wanted, weights if job.backend == "triton" else None, group)
        teacher = None if teacher_source is None else open_teacher(teacher_source, *sizes)
        work = on_chunk(
            mixture,
            bend_of(job.student),
            bend_of(teacher_source),
            logits=columns * len(weights),
            logits_before=job.logits_before,
            backend=job.backend,
            accurate=job.accurate,
        )
        for rows in _split(job.rows, len(weights), chunk_rows):
            logits = student.read(rows)
            gradient = student.room(rows, logits) if any(wanted) else None
            values[:, rows] = work(
                logits,
                None if teacher is None else teacher.read(rows),
                None if job.targets is None else job.targets[rows].long(),
                weights[rows],
                gradient,
            )
            if gradient is not None:
                largest = weights[rows].abs().max() if job.skip_below else None
                student.take(rows, gradient, None if largest is None else job.skip_below * largest)
        loss = mixture.weighted_sum(values) @ weights
        return loss, values, student.gradients()


def _chunk_rows(job: Job, columns: int) -> int:
    total = max(1, len(job.weights) if job.rows is None else len(job.rows))
    return rows_of_a_chunk(total, job.chunk_size, columns * job.weights.element_size(), job.weights.is_cpu)


def rows_of_a_chunk(total: int, chunk_size: int | None, bytes_of_a_row: int, on_cpu: bool) -> int:
    """Chunks are of even size, so that the last one isn't a sliver; on an accelerator, whole tiles."""
    budget = _CHUNK_BYTES_CPU if on_cpu else _CHUNK_BYTES_ACCELERATOR
    most = chunk_size or max(_FEWEST_ROWS["cpu" if on_cpu else "accelerator"], budget // (2 * bytes_of_a_row))
    even = math.ceil(total / math.ceil(total / most))
    return even if on_cpu or chunk_size else math.ceil(even / _TILE_ROWS) * _TILE_ROWS


def _split(rows: Tensor | None, total: int, size: int) -> Iterator[Rows]:
    if rows is None:
        yield from (slice(start, min(start + size, total)) for start in range(0, total, size))
    elif len(rows):
        yield from rows.split(size)
