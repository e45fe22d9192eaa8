"""Mixture losses from logits, or from hidden states and output embeddings without ever making N×V logits."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from lantern_kernels import checks
from lantern_kernels.divergences import WithTriton
from lantern_kernels.engine import Job
from lantern_kernels.heads import Head, Logits
from lantern_kernels.mixture import Mixture
from lantern_kernels.terms import Term
from lantern_kernels.top_k import TopK


class MixtureOutput(NamedTuple):
    """A loss and what it's made of."""

    loss: Tensor
    """Scalar, ``Σ row_weight·(T²·Σ wₖ·Dₖ + c·CE)``."""
    terms: dict[str, Tensor]
    """Per label ``[N]``: nats, unweighted, without T², detached, 0 in rows that don't count."""


def mixture_loss(
    student_logits: Tensor | Logits,
    teacher_logits: Tensor | Logits | TopK | None,
    terms: Sequence[Term],
    *,
    temperature: float = 1.0,
    targets: Tensor | None = None,
    cross_entropy: float = 0.0,
    row_weights: Tensor | None = None,
    ignore_index: int = -100,
    backend: str = "auto",
    accurate: bool = False,
    in_place: bool = False,
) -> MixtureOutput:
    """A mixture of divergences between two models' next-token distributions, plus cross entropy, from their logits.

    ``loss = Σ_rows row_weight·(T²·Σ_k w_k·D_k(p, q) + cross_entropy·CE)`` with q = softmax(student/T), p =
    softmax(teacher/T) and CE that of the untempered student. T² keeps the size of the gradient as T grows (Hinton et
    al., arXiv 1503.02531).

    Where the vocabularies differ in size (padding), the columns that one side lacks have probability 0 there. The
    logarithm of a probability 0 is taken to be −10⁴, so that nothing is infinite or NaN: the reverse KL against a
    teacher that excludes what the student says is large and finite.

    Args:
        student_logits: ``[N, V]`` of any floating dtype, or `Logits` that are yet to be scaled or capped. The arithmetic
            is in float32, or in float64 if they are float64; autocast doesn't touch it.
        teacher_logits: ``[N, V']``, or `Logits`, or of each row the most probable tokens, `TopK`. Gets no gradient. None
            is possible with no terms.
        terms: The divergences and their weights. May be empty, for a plain cross entropy.
        temperature: T > 0, of the divergences.
        targets: Class ids ``[N]`` for the cross entropy. Rows with `ignore_index` count for nothing.
        cross_entropy: The weight of the cross entropy, c.
        row_weights: ``[N]``, finite, without gradient. 1 / (number of rows that count) by default. To normalise over a
            global batch, give 1 / (number of supervised positions in it).
        ignore_index: The target of rows that don't count.
        backend: ``torch`` is eager mode; ``inductor`` compiles what happens between the matrix products; ``auto``
            does so on a CPU once that pays. ``triton`` runs fused kernels, on a GPU, or anywhere in Triton's interpreter
            (TRITON_INTERPRET=1); ``auto`` takes them on a GPU where every divergence has a `triton_entry`.
        accurate: Whether the values stay exact as the student converges. By default a KL of 5·10⁻⁷ is wrong by a per
            cent on a CPU, and by half in the ``triton`` backend, which then needs one reading pass less; gradients
            don't suffer. On a CPU it costs arithmetic in float64.
        in_place: Whether the backward may write the gradient over the student's logits, to spare their size in memory.
            The ``triton`` backend makes use of it. Nobody else may need the logits then.

    Returns:
        The loss, differentiable once in `student_logits`, and the terms' values per row. The cross entropy is among
        them if there are targets. A row that doesn't count (weight 0, or an ignored target) isn't read: its gradient
        is exactly 0 even if its logits are NaN. If none counts, the loss is 0 with a gradient of zeros.

    Raises:
        ValueError: Before any work, naming the argument, its value and what was expected.
    """
    student = checks.logits("student_logits", student_logits)
    values = student.values
    teacher = _given_teacher("teacher_logits", teacher_logits, terms, values, values.shape[1])
    mixture = _mixture(terms, temperature, cross_entropy, teacher is not None, targets is not None)
    backend = _backend(backend, terms, values, teacher)
    weights, rows = _rows_that_count(values, values.shape[1], targets, row_weights, ignore_index)
    return _output(Job(student, teacher, mixture, targets, weights, rows, None, backend, accurate, in_place, 0.0))


def linear_mixture_loss(
    student: Head,
    teacher: Head | Logits | TopK | Tensor | None,
    terms: Sequence[Term],
    *,
    temperature: float = 1.0,
    targets: Tensor | None = None,
    cross_entropy: float = 0.0,
    row_weights: Tensor | None = None,
    ignore_index: int = -100,
    backend: str = "auto",
    accurate: bool = False,
    chunk_size: int | None = None,
    skip_below: float = 0.0,
) -> MixtureOutput:
    """`mixture_loss` of logits that are projected by chunks of rows and never exist in full.

    The gradient is worked out in the forward, while a chunk's logits are at hand: four GEMMs, 8·N·V·d FLOP, where
    recomputing the logits in a backward takes six to eight. What is held is two chunks of logits, a float32 gradient
    of the weight, and a float32 copy of each weight that isn't float32. A frozen head (a weight that requires no
    gradient) spares its GEMM.

    Args:
        student: Its hidden states and output embedding. Gradients go to those of its tensors that require one.
        teacher: A head, whose hidden size may differ from the student's, or logits ``[N, V']`` as a tensor or as `Logits`;
            or `TopK`; None with no terms.
        terms: As in `mixture_loss`, and so are the other keywords.
        chunk_size: Rows per chunk. By default so many that both sides' logits take 64 MiB on a CPU, 1 GiB on an
            accelerator, yet at least 128.
        skip_below: τ ≥ 0. Vocabulary entries whose gradient ∂loss/∂logit is at most τ times the chunk's largest row
            weight, in every row of a chunk, are left out of the gradients' two products. Student and teacher both
            think little of most entries, so τ = 2⁻¹² leaves out five of six and makes the whole faster than its dense
            products (cut cross entropy, arXiv 2411.09009, does so). With w the largest row weight, the gradient of a
            row's hidden state is off by at most τ·w·Σ‖W_j‖ over what was left out, that of W_j by at most τ·Σ w·‖hᵢ‖;
            the loss and the bias' gradient are exact. 0 leaves nothing out.

    Returns:
        As `mixture_loss`.

    Raises:
        ValueError: Before any work, naming the argument, its value and what was expected.
    """
    checks.head("student", student)
    if isinstance(teacher, Head):
        checks.head("teacher", teacher, like=student.hidden)
    else:
        teacher = _given_teacher("teacher", teacher, terms, student.hidden, student.weight.shape[0])
    checks.chunk_size(chunk_size)
    checks.skip_below(skip_below)
    mixture = _mixture(terms, temperature, cross_entropy, teacher is not None, targets is not None)
    backend = _backend(backend, terms, student.hidden, teacher)
    weights, rows = _rows_that_count(student.hidden, student.weight.shape[0], targets, row_weights, ignore_index)
    return _output(Job(student, teacher, mixture, targets, weights, rows, chunk_size, backend, accurate, False, skip_below))


def _mixture(
    terms: Sequence[Term],
    temperature: float,
    cross_entropy: float,
    has_teacher: bool,
    has_targets: bool,
) -> Mixture:
    checks.mixture(terms, temperature, cross_entropy, has_teacher, has_targets)
    return Mixture(tuple(terms), float(temperature), float(cross_entropy), has_targets)


def _given_teacher(
    name: str, value: Tensor | Logits | TopK | None, terms: Sequence[Term], like: Tensor, classes: int
) -> Logits | TopK | None:
    if isinstance(value, TopK):
        return checks.top_k(name, value, terms, like, classes)
    return None if value is None else checks.logits(name, value, like)


def _backend(name: str, terms: Sequence[Term], like: Tensor, teacher: Head | Logits | TopK | None) -> str:
    """What "auto" comes to on this device; on a CPU it's left to the engine, which decides as it goes."""
    checks.backend(name, terms, like)
    if isinstance(teacher, TopK):
        if name in ("inductor", "triton"):
            raise ValueError(f"backend is {name!r}, which doesn't read a TopK teacher; use 'auto'")
        return "torch"
    if name == "auto" and like.is_cuda:
        fusable = all(isinstance(term.divergence, WithTriton) for term in terms) and like.dtype != torch.float64
        return "triton" if fusable and find_spec("triton") else "torch"
    return name


def _rows_that_count(
    like: Tensor, classes: int, targets: Tensor | None, row_weights: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor | None]:
    """Row weights ``[N]``, 0 where a row doesn't count, and the ids of the rows that do (None for all of them)."""
    counts = torch.ones(like.shape[0], dtype=torch.bool, device=like.device)
    if targets is not None:
        checks.targets(targets, like, classes, ignore_index)
        counts &= targets != ignore_index
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if row_weights is None:
        weights = counts.to(dtype) / counts.sum().clamp(min=1)
    else:
        checks.row_weights(row_weights, like)
        weights = row_weights.detach().to(dtype) * counts
        counts = weights != 0
    rows = counts.nonzero()[:, 0]
    return weights, None if len(rows) == len(counts) else rows


def _output(job: Job) -> MixtureOutput:
    loss, values = job.run()
    return MixtureOutput(loss, dict(zip(job.mixture.labels, values, strict=True)))
