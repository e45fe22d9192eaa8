"""From the arguments of a loss to a `Job`: every check, and what "auto" and the defaults come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch
import torch.distributed as dist
from torch import Tensor

from lantern_kernels import checks
from lantern_kernels.divergences import has_triton_entry
from lantern_kernels.engine import Job
from lantern_kernels.heads import Head, Logits, vocabulary
from lantern_kernels.mixture import Mixture
from lantern_kernels.sharded import share_of
from lantern_kernels.terms import Term
from lantern_kernels.top_k import TopK


@dataclass(frozen=True)
class Options:
    """The keywords of the public functions that are plain numbers and words."""

    temperature: float
    cross_entropy: float
    ignore_index: int
    backend: str
    accurate: bool
    in_place: bool = False
    chunk_size: int | None = None
    skip_below: float = 0.0
    process_group: dist.ProcessGroup | None = None
    logits_before: int | None = None


def prepare(
    student: Head | Logits,
    teacher: Head | Logits | TopK | None,
    terms: Sequence[Term],
    targets: Tensor | None,
    row_weights: Tensor | None,
    options: Options,
) -> Job:
    """A job that can run. Raises ValueError naming the argument, its value and what was expected."""
    if isinstance(student, Logits):
        checks.logits("student_logits", student)
        name, like = "teacher_logits", student.values
    else:
        checks.head("student", student)
        name, like = "teacher", student.hidden
    classes = vocabulary(student)
    if isinstance(teacher, Head):
        checks.head(name, teacher, like)
    elif isinstance(teacher, Logits):
        checks.logits(name, teacher, like)
    checks.chunk_size(options.chunk_size)
    checks.skip_below(options.skip_below)
    checks.logits_before(options.logits_before)
    checks.mixture(terms, options.temperature, options.cross_entropy, teacher is not None, targets is not None)
    shard = None
    if options.process_group is not None:
        checks.sharded(terms, student, teacher, options.backend)
        shard = share_of(classes, like, options.process_group)
        classes = shard.total
    if isinstance(teacher, TopK):
        teacher = checks.top_k(name, teacher, terms, like, classes)
    backend = "torch" if shard is not None else _backend(options.backend, terms, like, teacher)
    weights = _weights(like, classes, targets, row_weights, options.ignore_index)
    return Job(
        student=student,
        teacher=teacher,
        mixture=Mixture(tuple(terms), float(options.temperature), float(options.cross_entropy), targets is not None, shard),
        targets=targets,
        weights=weights,
        rows=None if backend == "triton" else _rows_that_count(weights),
        chunk_size=options.chunk_size,
        backend=backend,
        accurate=options.accurate,
        in_place=options.in_place,
        skip_below=options.skip_below,
        logits_before=options.logits_before,
    )


def _backend(name: str, terms: Sequence[Term], like: Tensor, teacher: Head | Logits | TopK | None) -> str:
    """What "auto" comes to on this device; on a CPU it's left to the engine, which decides as it goes."""
    checks.backend(name, () if isinstance(teacher, TopK) else terms, like)
    top_k = isinstance(teacher, TopK)
    if top_k and name == "inductor":
        raise ValueError(f"backend is {name!r}, which doesn't read a TopK teacher; use 'auto'")
    if name == "auto" and like.is_cuda:
        # Against a top-k teacher the divergences themselves are torch's work, on k + 1 events.
        fusable = top_k or all(has_triton_entry(term.divergence) for term in terms)
        return "triton" if fusable and like.dtype != torch.float64 and find_spec("triton") else "torch"
    if name == "auto" and top_k:
        return "torch"
    return name


def _weights(like: Tensor, classes: int, targets: Tensor | None, row_weights: Tensor | None, ignore_index: int) -> Tensor:
    """Row weights ``[N]``, 0 where a row doesn't count."""
    counts = torch.ones(like.shape[0], dtype=torch.bool, device=like.device)
    if targets is not None:
        checks.targets(targets, like, classes, ignore_index)
        counts &= targets != ignore_index
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if row_weights is None:
        return counts.to(dtype) / counts.sum().clamp(min=1)
    checks.row_weights(row_weights, like)
    return row_weights.detach().to(dtype) * counts


def _rows_that_count(weights: Tensor) -> Tensor | None:
    """Ids of the rows to read; None for all of them. On a GPU this waits for the device, so the kernels do without."""
    rows = weights.nonzero()[:, 0]
    return None if len(rows) == len(weights) else rows
