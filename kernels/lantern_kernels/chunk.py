"""What happens on a chunk of logits between the matrix products, in eager mode or as Inductor compiles it for a CPU.

In eager mode every operation is a pass over memory; compiled, there are four passes in all, however many terms. It takes
Inductor some ten seconds a mixture, so that's done once a process has sent enough logits through a mixture for
it to pay, and where there is a C++ compiler. Both give the same results up to rounding.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lantern_kernels.divergences import Pointwise
from lantern_kernels.heads import Bend
from lantern_kernels.mixture import Mixture, pointwise_rows
from lantern_kernels.top_k import TopK

if TYPE_CHECKING:
    from lantern_kernels.gpu.launch import RowKernels
    from lantern_kernels.gpu.top_k import TopKKernels

_LOGITS_BEFORE_COMPILING = 1 << 28
"""A student's logits that go through a mixture in eager mode first: ten seconds of work on two cores."""

_TILE_BYTES_CPU = 3 << 19
"""One tensor of eager mode. A dozen passes go over half a dozen of these, which are to stay in a CPU's cache."""

_seen: Counter[_Recipe] = Counter()
_not_compilable: set[_Recipe] = set()

OnChunk = Callable[[Tensor, Tensor | TopK | None, Tensor | None, Tensor, Tensor | None], Tensor]
"""Values ``[K, n]`` from student's and teacher's logits ``[n, V]``, targets ``[n]`` and row weights ``[n]``.

The logits come ahead of their bend. The gradient with respect to the student's, times the row weights, is written to the
last argument, which may be the student's logits themselves; None if it isn't wanted.
"""


@dataclass(frozen=True)
class _Recipe:
    """What a compiled function depends on, beside its tensors."""

    divergences: tuple[Pointwise, ...] = field(compare=False)
    identities: tuple[Hashable, ...]
    with_targets: bool
    student_bend: Bend
    teacher_bend: Bend


def on_chunk(
    mixture: Mixture,
    student_bend: Bend,
    teacher_bend: Bend,
    *,
    logits: int,
    logits_before: int | None,
    backend: str,
    accurate: bool,
) -> OnChunk:
    """The work on the chunks of a call.

    Args:
        mixture: What to compute.
        student_bend: What makes logits of what the student's chunks hold.
        teacher_bend: The teacher's.
        logits: How many of the student's the call has; what "auto" goes by.
        logits_before: How many the calls before it had; None for as many as this process has counted.
        backend: "torch" for eager mode, "inductor", "triton", or "auto": Inductor once it pays.
        accurate: Whether the values are to stay exact as the student converges.
    """

    def eager(
        student: Tensor, teacher: Tensor | TopK | None, targets: Tensor | None, weights: Tensor, out: Tensor | None
    ) -> Tensor:
        values = weights.new_empty(len(mixture.labels), len(weights))
        columns = student.shape[1] if mixture.shard is None else mixture.shard.widest
        rows = max(1, _TILE_BYTES_CPU // (columns * student.element_size())) if student.is_cpu else len(student)
        for start in range(0, len(weights), max(1, rows)):
            tile = slice(start, start + rows)
            logits = student_bend(student[tile])
            t_logits = None if teacher is None else teacher[tile]
            if isinstance(t_logits, Tensor):
                t_logits = teacher_bend(t_logits)
            if accurate:
                logits = logits.double()
                t_logits = t_logits.double() if isinstance(t_logits, Tensor) else t_logits
            y_tile = None if targets is None else targets[tile]
            values[:, tile], gradient = mixture.rows(logits, t_logits, y_tile, out is not None)
            if gradient is not None and out is not None:
                torch.mul(student_bend.back(gradient, logits), weights[tile, None], out=out[tile])
        return values

    def compiled(student: Tensor, teacher: Any, targets: Tensor | None, weights: Tensor, out: Tensor | None) -> Tensor:
        # As tensors, so that a schedule of weights or temperature doesn't compile anew at each step.
        factors, T = weights.new_tensor(mixture.factors), mixture.temperature
        chunk = _compile(recipe, gradient="none" if out is None else "in place" if out is student else "apart")
        apart = () if out is None or out is student else (out,)
        return chunk(student, teacher, targets, weights, factors, T if T == 1.0 else weights.new_tensor(T), *apart)

    def compiled_if_possible(student: Tensor, *rest: Any) -> Tensor:
        if recipe in _not_compilable:
            return eager(student, *rest)
        try:
            return compiled(student, *rest)
        except _compiler_errors() as error:  # before anything was written
            _not_compilable.add(recipe)
            reason = str(error).strip().splitlines()[0]
            warnings.warn(f"eager mode is used, since the loss can't be compiled: {reason}", stacklevel=2)
            return eager(student, *rest)

    kernels: RowKernels | TopKKernels | None = None

    def fused(student: Tensor, teacher: Any, targets: Tensor | None, weights: Tensor, out: Tensor | None) -> Tensor:
        nonlocal kernels
        kernels = kernels or row_kernels(mixture, student_bend, teacher_bend, accurate, isinstance(teacher, TopK))
        values, sums = kernels.sums(student, teacher, targets, weights)
        if out is not None:
            kernels.gradient(student, teacher, targets, weights, sums, weights.new_ones(()), out=out)
        return values

    if backend == "triton":
        return fused
    if backend == "torch" or accurate or not mixture.is_pointwise:
        return eager
    recipe = _recipe(mixture, student_bend, teacher_bend)
    if backend == "inductor":
        return compiled
    _seen[recipe] += logits
    so_far = _seen[recipe] if logits_before is None else logits_before + logits
    return compiled_if_possible if so_far > _LOGITS_BEFORE_COMPILING else eager


def row_kernels(
    mixture: Mixture, student_bend: Bend, teacher_bend: Bend, accurate: bool, top_k: bool
) -> RowKernels | TopKKernels:
    """The Triton kernels for a mixture; Triton is imported here, so that the package needs torch alone."""
    from lantern_kernels.gpu.launch import RowKernels
    from lantern_kernels.gpu.top_k import TopKKernels

    return TopKKernels(mixture, student_bend) if top_k else RowKernels(mixture, student_bend, teacher_bend, accurate)


def _recipe(mixture: Mixture, student_bend: Bend, teacher_bend: Bend) -> _Recipe:
    divergences = tuple(term.divergence for term in mixture.terms if isinstance(term.divergence, Pointwise))
    identities = tuple(map(_identity, divergences))
    return _Recipe(divergences, identities, mixture.with_targets, student_bend, teacher_bend)


def _identity(divergence: Pointwise) -> Hashable:
    """Equal for two objects of a class with the same plain attributes: callers may make a term anew at each step."""
    state = getattr(divergence, "__dict__", None)
    slots = any(getattr(cls, "__slots__", ()) for cls in type(divergence).__mro__)
    if state is not None and not slots and all(isinstance(value, int | float | str | None) for value in state.values()):
        return type(divergence), tuple(sorted(state.items()))
    return id(divergence)


@lru_cache(maxsize=64)
def _compile(recipe: _Recipe, gradient: Literal["none", "in place", "apart"]) -> Callable[..., Tensor]:
    def chunk(
        student: Tensor,
        teacher: Tensor | None,
        targets: Tensor | None,
        weights: Tensor,
        factors: Tensor,
        temperature: Tensor | float,
        out: Tensor | None = None,
    ) -> Tensor:
        logits = recipe.student_bend(student)
        t_logits = None if teacher is None else recipe.teacher_bend(teacher)
        values, slope = pointwise_rows(
            recipe.divergences, logits, t_logits, targets, factors, temperature, gradient != "none"
        )
        if slope is not None:
            torch.mul(recipe.student_bend.back(slope, logits), weights[:, None], out=student if out is None else out)
        return torch.stack(values)

    # Dynamo counts compilations of a code object, whichever closure it belongs to; each recipe is to have its own count.
    chunk.__code__ = chunk.__code__.replace()
    return torch.compile(chunk, fullgraph=True, dynamic=True)


def _compiler_errors() -> tuple[type[Exception], ...]:
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import, and is there by now
    from torch._inductor.exc import InductorError
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    return TorchDynamoException, InductorError, GuardOnDataDependentSymNode
