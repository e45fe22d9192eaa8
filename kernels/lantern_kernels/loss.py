"""Mixture losses from logits, or from hidden states and output embeddings without ever making N×V logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lantern_kernels.heads import Head, Logits
from lantern_kernels.operator import run_as_operator
from lantern_kernels.prepare import Options, prepare
from lantern_kernels.terms import CROSS_ENTROPY, Term
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
    process_group: dist.ProcessGroup | None = None,
    logits_before: int | None = None,
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
        process_group: The ranks over which the vocabulary is sharded: each has all N rows and a share of the columns,
            in the order of the ranks, as wide for the student as for the teacher; targets and a `TopK`, which each has
            in full, hold ids of the whole vocabulary. Every rank gets the same loss, and the gradient of its own
            columns (of hidden states: the whole). Ranks tell each other the widths of their shares once a call; per
            chunk of rows there is one all-gather of scalars, and one all-reduce if there are other terms than KL and
            reverse KL against full logits. Runs on the ``torch`` backend.
        logits_before: How many of the student's logits went through this mixture before, by which ``auto`` tells on a
            CPU whether compiling pays. By default what this process has counted; a training run that counts for itself,
            and goes on counting after a resume, gets the same bits as without the interruption.

    Returns:
        The loss, differentiable once in `student_logits`, and the terms' values per row. The cross entropy is among
        them if there are targets. A row that doesn't count (weight 0, or an ignored target) isn't read: its gradient
        is exactly 0 even if its logits are NaN. If none counts, the loss is 0 with a gradient of zeros.

    Raises:
        ValueError: Before any work, naming the argument, its value and what was expected. On a GPU, to look at the values
            within a tensor would mean to wait for it: there a wrong one is a device-side assertion.
    """
    student = student_logits if isinstance(student_logits, Logits) else Logits(student_logits)
    options = Options(
        temperature,
        cross_entropy,
        ignore_index,
        backend,
        accurate,
        in_place,
        process_group=process_group,
        logits_before=logits_before,
    )
    return _loss(student, teacher_logits, terms, targets, row_weights, options)


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
    process_group: dist.ProcessGroup | None = None,
    logits_before: int | None = None,
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
        chunk_size: Rows per chunk. By default so many that both sides' logits take 128 MiB on a CPU, 1 GiB on an
            accelerator, yet at least 128 and 1024: 1.2 GB at a vocabulary of 151,936.
        skip_below: τ ≥ 0. Vocabulary entries whose gradient ∂loss/∂logit is at most τ times the chunk's largest row
            weight, in every row of a chunk, are left out of the gradients' two products. Student and teacher both
            think little of most entries, so τ = 2⁻¹² leaves out five of six and makes the whole faster than its dense
            products (cut cross entropy, arXiv 2411.09009, does so). With w the largest row weight, the gradient of a
            row's hidden state is off by at most τ·w·Σ‖W_j‖ over what was left out, that of W_j by at most τ·Σ w·‖hᵢ‖;
            the loss and the bias' gradient are exact. 0 leaves nothing out.

    Returns:
        As `mixture_loss`.

    Raises:
        ValueError: Before any work, naming the argument, its value and what was expected. On a GPU, to look at the values
            within a tensor would mean to wait for it: there a wrong one is a device-side assertion.
    """
    options = Options(
        temperature,
        cross_entropy,
        ignore_index,
        backend,
        accurate,
        chunk_size=chunk_size,
        skip_below=skip_below,
        process_group=process_group,
        logits_before=logits_before,
    )
    return _loss(student, teacher, terms, targets, row_weights, options)


def _loss(
    student: Head | Logits,
    teacher: Head | Logits | TopK | Tensor | None,
    terms: Sequence[Term],
    targets: Tensor | None,
    row_weights: Tensor | None,
    options: Options,
) -> MixtureOutput:
    if teacher is not None and not isinstance(teacher, Head | Logits | TopK):
        teacher = Logits(teacher)
    # What happens here looks at values and at the machine; torch.compile sees it as one operator.
    run = run_as_operator if torch.compiler.is_compiling() else run_job
    loss, values = run(student, teacher, terms, targets, row_weights, options)
    labels = [term.label for term in terms] + ([CROSS_ENTROPY] if targets is not None else [])
    return MixtureOutput(loss, {label: values[k] for k, label in enumerate(labels)})


def run_job(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Loss and values of what `prepare` takes."""
    return prepare(*arguments).run()
