"""The loss against a top-k teacher: two Triton kernels that read the student's logits alone.

The k known tokens of a row are few, and torch handles them. What takes V steps is here: the log-sum-exp of all other
tokens, and the gradient. Which tokens are known is told by one bit each: an eighth of a byte a logit.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lantern_kernels.divergences import LOG_FLOOR, Pointwise
from lantern_kernels.gpu.arithmetic import GROUP, LOWEST, exp, positions_from, read
from lantern_kernels.gpu.launch import NUM_WARPS, block_of, takes_assembly, with_unit_stride
from lantern_kernels.heads import Bend
from lantern_kernels.mixture import Mixture
from lantern_kernels.top_k import TopK, on_events


@triton.jit
def known_at(MEMBERS, start, columns, BLOCK: tl.constexpr):
    """Whether the tokens from `start` on are known, ``[BLOCK / GROUP, GROUP]``."""
    groups = start // GROUP + tl.arange(0, BLOCK // GROUP)
    bits = tl.load(MEMBERS + groups, mask=groups * GROUP < columns, other=0).to(tl.int32)
    return (bits[:, None] >> tl.arange(0, GROUP)[None, :]) & 1 == 1


@triton.jit
def tail_sums(
    S, MEMBERS, WEIGHTS, SUMS, s_stride, members_stride, columns, rows, inverse_temperature, s_scale, s_softcap,
    WITH_TARGETS: tl.constexpr, S_SCALED: tl.constexpr, S_CAPPED: tl.constexpr, ASSEMBLY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """SUMS ``[2, rows]``: the log-sum-exp of the unknown tokens, tempered, and WITH_TARGETS that of all, untempered."""
    row = tl.program_id(0).to(tl.int64)
    if tl.load(WEIGHTS + row) == 0.0:
        tl.store(SUMS + row, 0.0)
        tl.store(SUMS + rows + row, 0.0)
        return
    S += row * s_stride
    MEMBERS += row * members_stride
    top = tl.full([BLOCK // GROUP], LOWEST, tl.float32)
    tail = tl.zeros([BLOCK // GROUP], tl.float32)
    all_ = tl.zeros([BLOCK // GROUP], tl.float32)
    tail_top = top
    for start in range(0, columns, BLOCK):
        s = read(S, columns, positions_from(start, BLOCK), s_scale, s_softcap, S_SCALED, S_CAPPED, True, ASSEMBLY)
        others = tl.where(known_at(MEMBERS, start, columns, BLOCK), -float("inf"), s)
        # A maximum of its own: the known tokens' would underflow a tail that is far below.
        higher = tl.maximum(tail_top, tl.max(others, axis=1))
        fresh = tl.sum(exp((others - higher[:, None]) * inverse_temperature, ASSEMBLY), axis=1)
        tail = tail * exp((tail_top - higher) * inverse_temperature, ASSEMBLY) + fresh
        tail_top = higher
        if WITH_TARGETS:
            higher = tl.maximum(top, tl.max(s, axis=1))
            all_ = all_ * exp(top - higher, ASSEMBLY) + tl.sum(exp(s - higher[:, None], ASSEMBLY), axis=1)
            top = higher
    highest = tl.max(tail_top, axis=0)
    total = tl.sum(tail * tl.exp((tail_top - highest) * inverse_temperature), axis=0)
    tl.store(SUMS + row, highest * inverse_temperature + tl.log(total))
    if WITH_TARGETS:
        highest = tl.max(top, axis=0)
        tl.store(SUMS + rows + row, highest + tl.log(tl.sum(all_ * tl.exp(top - highest), axis=0)))


@triton.jit
def tail_gradient(
    S, MEMBERS, TARGETS, WEIGHTS, UPSTREAM, SCALARS, OUT, s_stride, members_stride, out_stride, columns, rows,
    inverse_temperature, cross_entropy, s_scale, s_softcap,
    WITH_TARGETS: tl.constexpr, S_SCALED: tl.constexpr, S_CAPPED: tl.constexpr, ASSEMBLY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient but for the known tokens' own slopes, one block of a row per program. OUT may be S itself.

    SCALARS ``[5, rows]``: log-sum-exp of the tail, of all, of all untempered; the tail's slope; Σ slopes.
    """
    row = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * BLOCK
    positions = positions_from(start, BLOCK)
    present = positions < columns
    weight = tl.load(WEIGHTS + row)
    OUT += row * out_stride
    if weight == 0.0:
        tl.store(OUT + positions, tl.zeros_like(positions).to(OUT.dtype.element_ty), mask=present)
        return
    s = read(S + row * s_stride, columns, positions, s_scale, s_softcap, S_SCALED, S_CAPPED, True, ASSEMBLY)
    tempered = s * inverse_temperature
    known = known_at(MEMBERS + row * members_stride, start, columns, BLOCK)
    share = exp(tl.where(known, -float("inf"), tempered) - tl.load(SCALARS + row), ASSEMBLY)
    gradient = share * tl.load(SCALARS + 3 * rows + row)
    gradient -= exp(tempered - tl.load(SCALARS + rows + row), ASSEMBLY) * tl.load(SCALARS + 4 * rows + row)
    if WITH_TARGETS:
        is_target = positions == tl.load(TARGETS + row)
        q = exp(s - tl.load(SCALARS + 2 * rows + row), ASSEMBLY)
        gradient += cross_entropy * (q - tl.where(is_target, 1.0, 0.0))
    if S_CAPPED:
        bent = s / s_softcap
        gradient = tl.where(s == -float("inf"), 0.0, gradient * (1.0 - bent * bent))
    gradient *= weight * tl.load(UPSTREAM) * s_scale
    tl.store(OUT + positions, gradient.to(OUT.dtype.element_ty), mask=present)


class TopKKernels:
    """As `launch.RowKernels`, against a `TopK`; its sums are the scalars, the bits and the known tokens' gradient."""

    def __init__(self, mixture: Mixture, student_bend: Bend):
        self._mixture, self._bend = mixture, student_bend
        self._scalars = (student_bend.scale, student_bend.softcap or 1.0)
        self._constants: dict[str, Any] = {
            "WITH_TARGETS": mixture.with_targets,
            "S_SCALED": student_bend.scale != 1.0,
            "S_CAPPED": student_bend.softcap is not None,
            "ASSEMBLY": takes_assembly(),
            "num_warps": NUM_WARPS,
        }

    def sums(
        self, student: Tensor, teacher: TopK, targets: Tensor | None, weights: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Values ``[K, N]``, and what `gradient` goes by."""
        (rows, columns), T = student.shape, self._mixture.temperature
        if not rows:
            return weights.new_zeros(len(self._mixture.labels), 0), ()
        student = with_unit_stride(student)
        ids = teacher.ids.to(torch.int64)
        members = _bits(ids, columns)
        lse = weights.new_zeros(2, rows)
        with torch.cuda.device_of(student):
            tail_sums[(rows,)](
                student, members, weights, lse, student.stride(0), members.stride(0), columns, rows, 1.0 / T,
                *self._scalars, **self._constants, BLOCK=block_of(columns),
            )  # fmt: skip
        known = self._bend(student.gather(-1, ids).float())
        tail = lse[0][:, None]
        log_q = torch.cat([known / T, tail], -1)
        total = log_q.logsumexp(-1, keepdim=True)
        divergences = [term.divergence for term in self._mixture.terms if isinstance(term.divergence, Pointwise)]
        events = on_events(divergences, teacher, log_q - total, self._mixture.factors, T)
        values = list(events.values)
        gradient = events.slopes[:, :-1] - (known / T - total).exp() * events.total
        if targets is not None:
            # An ignored target may be any number.
            label = self._bend(student.gather(-1, targets[:, None].clamp(0, columns - 1)).float())[:, 0]
            values.append(-(label - lse[1]).clamp(min=LOG_FLOOR))
            towards = (known - lse[1][:, None]).exp() - (ids == targets[:, None]).float()
            gradient = gradient + self._mixture.factors[-1] * towards
        gradient = self._bend.back(gradient, known) * weights[:, None]
        # As `divergences.LOG_FLOOR` has it for the tail of a student that excludes all other tokens.
        scalars = torch.stack(
            [tail[:, 0].clamp(min=LOWEST.value), total[:, 0], lse[1], events.slopes[:, -1], events.total[:, 0]]
        )
        return torch.stack(values).masked_fill(weights == 0, 0.0), (scalars, members, ids, gradient)

    def gradient(
        self,
        student: Tensor,
        teacher: TopK | None,
        targets: Tensor | None,
        weights: Tensor,
        sums: tuple[Tensor, ...],
        upstream: Tensor,
        out: Tensor,
    ) -> None:
        """Write ``upstream·∂loss/∂student`` to `out`, which may be `student` itself."""
        if not sums:
            return
        scalars, members, ids, known = sums
        rows, columns = student.shape
        student = with_unit_stride(student)
        block = block_of(columns)
        with torch.cuda.device_of(student):
            tail_gradient[(rows, triton.cdiv(columns, block))](
                student, members, weights if targets is None else targets, weights, upstream, scalars, out,
                student.stride(0), members.stride(0), out.stride(0), columns, rows, 1.0 / self._mixture.temperature,
                self._mixture.cross_entropy, *self._scalars, **self._constants, BLOCK=block,
            )  # fmt: skip
            counts = (weights != 0)[:, None]
            exact = torch.where(counts, known * upstream, 0.0).to(out.dtype)
            out.scatter_(-1, ids, exact)


def _bits(ids: Tensor, columns: int) -> Tensor:
    """One bit per token, ``[N, columns / 8]``; 1 for the ids, which differ within a row."""
    bits = torch.zeros(len(ids), triton.cdiv(columns, 8), dtype=torch.uint8, device=ids.device)
    return bits.scatter_add_(-1, ids // 8, (1 << (ids % 8)).to(torch.uint8))
