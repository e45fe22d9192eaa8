"""Whether a teacher can teach a decoder student what its config asks for; found before any weights are loaded."""

from collections.abc import Sequence

from lantern_kernels import MixtureOutput, Term
from lantern_kernels.divergences import KL

from lantern_pl.divergences.contract import Divergence, PointwiseDivergence
from lantern_pl.errors import UserError
from lantern_pl.schedules import Scheduled, extremes
from lantern_pl.signals import Hidden, Logits, TopK
from lantern_pl.teachers.contract import Teacher

TO_SAMPLES = "cross_entropy_to_samples"


def has_other_tokenizer(
    teacher: Teacher, student: str, fingerprint: str, divergences: Sequence[Divergence], tied: bool
) -> bool:
    """Whether the tokens of teacher and student mean other texts. Raises UserError where that can't be bridged.

    tied: whether the loss compares token by token apart from the divergences.
    """
    if teacher.tokenizer_fingerprint == fingerprint:
        return False
    comparing = [divergence.name for divergence in divergences if divergence.same_tokenizer]
    comparing += ["hidden_states"] * tied
    if not comparing and divergences and teacher.tokenizer is not None:
        return True
    if comparing:
        why = f"{comparing[0]!r} compares them token by token"
    elif not divergences:
        why = "the mixture is empty"
    else:
        why = "that teacher gives no tokenizer to align them by"
    raise UserError(
        f"Teacher and student have different tokenizers: the teacher's fingerprint is {teacher.tokenizer_fingerprint}, that "
        f"of the student {student!r} is {fingerprint}. Their token ids stand for different texts, and {why}. Choose a "
        "student of the teacher's family, or divergences that align tokens by themselves (`lantern plugins show uld`)."
    )


def check_on_policy(teacher: Teacher | None, divergences: Sequence[Divergence], other_tokenizer: bool) -> None:
    """Raise UserError where the teacher has nothing to say about texts that the student writes."""
    if teacher is None:
        raise UserError("model.on_policy needs a teacher that scores the student's texts: give model.teacher.")
    why = None
    if teacher.recorded:
        why = (
            "the teacher knows recorded examples alone, and can't say anything about new texts: choose a teacher that "
            "scores them, such as lantern_pl.teachers.hf"
        )
    elif other_tokenizer:
        why = "teacher and student have different tokenizers: choose a student of the teacher's family"
    elif not divergences:
        why = "the mixture is empty, and on the student's own texts there is nothing else to learn: give one"
    if why:
        raise UserError(f"model.on_policy can't be: {why}, or leave on_policy out.")


def check_partial_signals(teacher: Teacher, divergences: Sequence[Divergence], temperature: Scheduled) -> None:
    """Raise UserError where the loss needs more of the teacher's distribution than it tells."""
    others = [divergence.name for divergence in divergences if not isinstance(divergence, KL)]
    if teacher.sampled and others:
        raise UserError(
            "The signals are samples of the teacher's distribution, which serve the forward KL alone, and the mixture holds "
            f"{others[0]!r}: give kl, or signals of mode top_k."
        )
    if teacher.top_k is None:
        return
    general = [divergence.name for divergence in divergences if not isinstance(divergence, PointwiseDivergence)]
    if general:
        what = f"{general[0]!r} needs all of them"
    elif extremes(temperature) != (teacher.temperature, teacher.temperature):
        what = (
            f"it does so at temperature {teacher.temperature}, where model.temperature is {temperature} and probabilities "
            "of the others can't be softened"
        )
    else:
        return
    raise UserError(
        f"The teacher {type(teacher).__name__} names only the {teacher.top_k} most probable tokens, and {what}: give "
        f"model.temperature {teacher.temperature:g} and pointwise divergences, or a teacher with the whole vocabulary."
    )


def to_samples(output: MixtureOutput, terms: Sequence[Term], samples: Hidden | Logits | TopK) -> MixtureOutput:
    """The output with the cross entropy to the samples, as `TO_SAMPLES`, in place of its terms, which are forward KLs.

    The KL to the frequencies of a few draws is no estimate of that to the distribution: it's about a nat or two where
    student and teacher are equal. With the frequencies' own entropy it's their cross entropy, an unbiased estimate of
    H(teacher) + KL. The loss keeps its value: the difference has no gradient.
    """
    assert isinstance(samples, TopK)
    divergences = {term.label for term in terms}
    kl = next(values for name, values in output.terms.items() if name in divergences)
    # −inf for a token that pads the row: 0 · −inf is 0 here.
    entropy = -(samples.log_probs.exp() * samples.log_probs.clamp_min(-1e30)).sum(-1)
    others = {name: values for name, values in output.terms.items() if name not in divergences}
    return MixtureOutput(output.loss, {TO_SAMPLES: kl + entropy, **others})


def check_vocabulary(teacher: Teacher, student: str, columns: int) -> None:
    """Raise UserError where the teacher may name tokens for which the student has no logits."""
    if teacher.top_k is not None and (teacher.vocab_size or 0) > columns:
        raise UserError(
            f"The teacher {type(teacher).__name__} names tokens of a vocabulary of {teacher.vocab_size}, the student "
            f"{student!r} has logits for {columns}: record the signals anew (`lantern cache` keeps those of the tokenizer's "
            "own vocabulary alone), or choose a student with as many."
        )
