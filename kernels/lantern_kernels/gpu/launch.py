"""Launching the kernels of `rows` on tensors. Importing this needs Triton; nothing else in the package does."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lantern_kernels.divergences import KL, ReverseKL
from lantern_kernels.gpu.entries import plain, sources
from lantern_kernels.gpu.rows import row_gradient, row_sums
from lantern_kernels.heads import Bend
from lantern_kernels.mixture import Mixture

# Larger blocks spill registers (16,384: 3.5 KB of stack) and take minutes to compile.
BLOCK = 4096
NUM_WARPS = 8

KINDS = {KL.triton_entry: 1, ReverseKL.triton_entry: 2}
"""The divergences that come out of the first sweep, as `rows.row_sums` numbers them."""


class RowKernels:
    """A mixture on raw logits ``[N, V]`` in bf16, fp16 or fp32; the arithmetic is in fp32.

    Args:
        mixture: Its terms have a `triton_entry`.
        student_bend: What makes logits of the student's tensor.
        teacher_bend: The teacher's.
        accurate: Whether values are summed from terms that are ≥ 0, at the price of a second sweep and of instructions.
    """

    def __init__(self, mixture: Mixture, student_bend: Bend, teacher_bend: Bend, accurate: bool):
        self._mixture = mixture
        self._factors: Tensor | None = None
        entries = [term.divergence.triton_entry() for term in mixture.terms]  # type: ignore[union-attr]
        kinds = [_kind(term.divergence) for term in mixture.terms]
        self._scalars = (
            1.0 / mixture.temperature,
            student_bend.scale,
            student_bend.softcap or 1.0,
            teacher_bend.scale,
            teacher_bend.softcap or 1.0,
        )
        assembly = takes_assembly()
        functions = tuple(function if accurate else plain(function, assembly) for function, _ in entries)
        self._constants: dict[str, Any] = {
            "ENTRIES": functions,
            "SOURCES": sources(functions),
            "PARAMETERS": tuple(tuple(map(tl.constexpr, parameters)) for _, parameters in entries),
            "WITH_TARGETS": mixture.with_targets,
            "S_SCALED": student_bend.scale != 1.0,
            "T_SCALED": teacher_bend.scale != 1.0,
            "S_CAPPED": student_bend.softcap is not None,
            "T_CAPPED": teacher_bend.softcap is not None,
            "ASSEMBLY": assembly,
        }
        self._sweeps = {"KINDS": tuple(map(tl.constexpr, kinds)), "ONE_SWEEP": not accurate and all(kinds)}

    def _factors_on(self, device: torch.device) -> Tensor:
        if self._factors is None:
            # Filled there: a copy from the host would wait for the device.
            single = [torch.full((1,), factor, dtype=torch.float32, device=device) for factor in self._mixture.factors]
            self._factors = torch.cat(single)
        return self._factors

    def sums(
        self, student: Tensor, teacher: Tensor | None, targets: Tensor | None, weights: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Values ``[K, N]`` and the four scalars of each row, ``[4, N]``, that `gradient` goes by."""
        rows = len(weights)
        values = weights.new_empty(len(self._mixture.labels), rows)
        if not rows:
            return values, (weights.new_empty(4, 0),)
        sums = weights.new_empty(4, rows)
        student, teacher_ = with_unit_stride(student), with_unit_stride(student if teacher is None else teacher)
        with torch.cuda.device_of(student):
            row_sums[(rows,)](
                student,
                teacher_,
                weights if targets is None else targets,
                weights,
                self._factors_on(weights.device),
                values,
                sums,
                student.stride(0),
                teacher_.stride(0),
                student.shape[1],
                teacher_.shape[1],
                rows,
                *self._scalars,
                **self._constants,
                **self._sweeps,
                TEMPERED=self._mixture.temperature != 1.0,
                BLOCK=block_of(max(student.shape[1], teacher_.shape[1])),
                num_warps=NUM_WARPS,
            )
        return values, (sums,)

    def gradient(
        self,
        student: Tensor,
        teacher: Tensor | None,
        targets: Tensor | None,
        weights: Tensor,
        sums: tuple[Tensor, ...],
        upstream: Tensor,
        out: Tensor,
    ) -> None:
        """Write ``upstream·∂loss/∂student`` to `out`, which may be `student` itself."""
        rows, columns = student.shape
        if not rows:
            return
        student, teacher_ = with_unit_stride(student), with_unit_stride(student if teacher is None else teacher)
        block = block_of(columns)
        with torch.cuda.device_of(student):
            row_gradient[(rows, triton.cdiv(columns, block))](
                student,
                teacher_,
                weights if targets is None else targets,
                weights,
                upstream,
                self._factors_on(weights.device),
                sums[0],
                out,
                student.stride(0),
                teacher_.stride(0),
                out.stride(0),
                columns,
                teacher_.shape[1],
                rows,
                *self._scalars,
                **self._constants,
                BLOCK=block,
                num_warps=NUM_WARPS,
            )


def _kind(divergence: Any) -> int:
    # By the method rather than by the class: a subclass that only adds to it is the same divergence.
    return KINDS.get(type(divergence).triton_entry, 0)


def with_unit_stride(logits: Tensor) -> Tensor:
    """The logits, copied only where neighbours in a row aren't neighbours in memory."""
    return logits if logits.stride(1) == 1 else logits.contiguous()


def block_of(columns: int) -> int:
    """Logits per step of a program."""
    return min(BLOCK, max(64, triton.next_power_of_2(columns)))


def is_interpreted() -> bool:
    """Whether Triton runs on a CPU here, as it does when it was imported with TRITON_INTERPRET=1."""
    return not isinstance(row_sums, triton.runtime.JITFunction)


def takes_assembly() -> bool:
    """Whether PTX can be written out: for NVIDIA's compiler alone."""
    return not is_interpreted() and torch.version.hip is None
