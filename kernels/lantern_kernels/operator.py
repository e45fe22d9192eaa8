"""A loss as one operator of torch.library, so that `torch.compile(fullgraph=True)` goes through it.

An operator takes tensors, numbers and strings alone: so the arguments are taken apart here and put together again inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lantern_kernels.divergences import Pointwise
from lantern_kernels.engine import walk
from lantern_kernels.heads import Head, Logits, kept_dtype, tensors_of
from lantern_kernels.prepare import Options, prepare
from lantern_kernels.terms import Term, from_key
from lantern_kernels.top_k import TopK


def run_as_operator(
    student: Head | Logits,
    teacher: Head | Logits | TopK | None,
    terms: Sequence[Term],
    targets: Tensor | None,
    row_weights: Tensor | None,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """Loss and values ``[K, N]``. A term around an object must have been made outside the compiled function."""
    if options.process_group is not None:
        raise ValueError("process_group can't be given under torch.compile; call the loss under torch.compiler.disable")
    tensors = _padded(tensors_of(student))
    t_tensors = [teacher.ids, teacher.log_probs, teacher.tail_log_mass] if isinstance(teacher, TopK) else tensors_of(teacher)
    loss, values, *_ = torch.ops.lantern_kernels.loss(
        *tensors,
        *_padded(t_tensors),
        targets,
        row_weights,
        type(student).__name__,
        type(teacher).__name__,
        *_bend(student),
        *_bend(teacher),
        "\n".join([term.key for term in terms]),
        "\n".join([term.label for term in terms]),
        [term.weight for term in terms],
        [torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in tensors],
        options.temperature,
        options.cross_entropy,
        options.ignore_index,
        options.backend,
        options.accurate,
        options.chunk_size,
        options.skip_below,
        options.logits_before,
    )
    return loss, values


@torch.library.custom_op("lantern_kernels::loss", mutates_args=())
def _operator(
    s0: Tensor,
    s1: Tensor | None,
    s2: Tensor | None,
    t0: Tensor | None,
    t1: Tensor | None,
    t2: Tensor | None,
    targets: Tensor | None,
    row_weights: Tensor | None,
    student_kind: str,
    teacher_kind: str,
    s_softcap: float | None,
    s_scale: float,
    t_softcap: float | None,
    t_scale: float,
    keys: str,
    labels: str,
    term_weights: Sequence[float],
    wanted: Sequence[bool],
    temperature: float,
    cross_entropy: float,
    ignore_index: int,
    backend: str,
    accurate: bool,
    chunk_size: int | None,
    skip_below: float,
    logits_before: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    student = _put_together(student_kind, (s0, s1, s2), s_softcap, s_scale)
    teacher = _put_together(teacher_kind, (t0, t1, t2), t_softcap, t_scale)
    # Not strict: no terms make one empty line.
    spelt = zip(keys.split("\n"), term_weights, labels.split("\n"), strict=False)
    terms = [from_key(key, weight, label) for key, weight, label in spelt]
    if general := [term.label for term in terms if not isinstance(term.divergence, Pointwise)]:
        raise ValueError(
            f"{general[0]!r} isn't pointwise: it needs autograd, which doesn't work within an operator. Call the loss from "
            "a function under torch.compiler.disable, or implement `value_and_slope`"
        )
    options = Options(
        temperature,
        cross_entropy,
        ignore_index,
        backend,
        accurate,
        chunk_size=chunk_size,
        skip_below=skip_below,
        logits_before=logits_before,
    )
    job = prepare(student, teacher, terms, targets, row_weights, options)
    loss, values, gradients = walk(job, wanted[: len(tensors_of(student))])
    first, second, third = (s0.new_empty(0) if gradient is None else gradient for gradient in _padded(gradients))
    return loss, values, first, second, third


@_operator.register_fake
def _(s0: Tensor, s1: Tensor | None, s2: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    targets, term_weights, wanted = rest[3], rest[13], rest[14]
    dtype = torch.float64 if s0.dtype == torch.float64 else torch.float32
    gradients = [
        torch.empty_like(tensor, dtype=kept_dtype(tensor)) if needed and tensor is not None else s0.new_empty(0)
        for tensor, needed in zip((s0, s1, s2), wanted, strict=True)
    ]
    values = s0.new_empty(len(term_weights) + (targets is not None), s0.shape[0], dtype=dtype)
    return s0.new_empty((), dtype=dtype), values, *gradients


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.wanted, ctx.count = inputs[17], len(inputs)
    ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in inputs[:3]]
    ctx.save_for_backward(*output[2:])


def _backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    gradients = [
        (gradient * upstream).to(dtype) if needed else None
        for gradient, dtype, needed in zip(ctx.saved_tensors, ctx.dtypes, ctx.wanted, strict=True)
    ]
    return *gradients, *[None] * (ctx.count - len(gradients))


_operator.register_autograd(_backward, setup_context=_save)


def _padded(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [*tensors, None, None, None][:3]


def _bend(source: Head | Logits | TopK | None) -> tuple[float | None, float]:
    return (source.softcap, source.scale) if isinstance(source, Head | Logits) else (None, 1.0)


def _put_together(kind: str, tensors: Sequence[Tensor | None], softcap: float | None, scale: float) -> Any:
    first, second, third = tensors
    if kind == "Head":
        return Head(first, second, third, softcap, scale)  # type: ignore[arg-type]
    if kind == "Logits":
        return Logits(first, softcap, scale)  # type: ignore[arg-type]
    return TopK(first, second, third) if kind == "TopK" else None  # type: ignore[arg-type]
