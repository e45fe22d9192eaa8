"""The `ensemble` teacher: several teachers answer as one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from lantern_pl.data.pair import Pair
from lantern_pl.errors import UserError
from lantern_pl.signals import Annotation, Hidden, LevelProbs, Logits, TokenBatch, TopK
from lantern_pl.tasks import Task
from lantern_pl.teachers import Teacher
from lantern_teacher_ensemble.mixing import Mixing, log_row_weights, mix
from lantern_teacher_ensemble.token_signals import JoinedHead, are_linear, chunks, reader, values_of

RowWeights = Literal["fixed", "confidence"]


@dataclass
class WeightedTeacher:
    """A teacher and its share of the ensemble."""

    teacher: Teacher
    """The teacher, such as lantern_pl.teachers.hf."""
    weight: float = 1.0
    """Its weight among the teachers; they are divided by their sum."""


class EnsembleTeacher(Teacher):
    """Several teachers whose distributions are mixed into one, which is what the student learns from.

    It can score tokens if all its teachers can and have one tokenizer, and give level distributions if all can. Texts
    can't be mixed: annotations are the first teacher's alone, and there are none if it can't.

    Args:
        teachers: the teachers and their weights, one or more.
        mixing: arithmetic (the mean of the probabilities: what any teacher deems possible) or geometric (the mean of their
            logarithms, normalised: what all teachers deem possible).
        row_weights: fixed (the given weights everywhere) or confidence (in each row, a weight is multiplied by
            exp(−entropy / confidence_temperature) of the teacher's own distribution there, and they are normalised again).
        confidence_temperature: in nats; the lower, the more the surest teacher of a row has its way. Only for confidence.
        tokens: whether to mix next-token distributions. With false, teachers of different tokenizers can be mixed, for
            their level distributions.
    """

    lantern_api = 1

    def __init__(
        self,
        teachers: list[WeightedTeacher],
        mixing: Mixing = "arithmetic",
        row_weights: RowWeights = "fixed",
        confidence_temperature: float = 1.0,
        tokens: bool = True,
    ) -> None:
        _check_settings(teachers, mixing, row_weights, confidence_temperature)
        self.teachers = [weighted.teacher for weighted in teachers]
        total = sum(weighted.weight for weighted in teachers)
        self.shares = [weighted.weight / total for weighted in teachers]
        self.mixing = mixing
        self.temperature = confidence_temperature if row_weights == "confidence" else None
        self.capabilities = _capabilities(self.teachers, tokens)
        # What others than these ask for a mixture isn't known.
        self.price = (0.0, 0.0) if all(teacher.price == (0.0, 0.0) for teacher in self.teachers) else None
        self.tokenizer = self.teachers[0].tokenizer
        if "score_tokens" in self.capabilities:
            _check_tokens(self.teachers, or_levels="level_probs" in self.capabilities)
            self.tokenizer_fingerprint = self.teachers[0].tokenizer_fingerprint
            self.vocab_size = max(teacher.vocab_size or 0 for teacher in self.teachers)
        self._joined_head = JoinedHead(self.shares)

    def identity(self) -> dict[str, Any]:
        return {
            "teachers": [
                {"class": type(teacher).__name__, "share": share, "identity": teacher.identity()}
                for teacher, share in zip(self.teachers, self.shares, strict=True)
            ],
            "mixing": self.mixing,
            "row_weights": "fixed" if self.temperature is None else f"confidence at {self.temperature!r} nats",
        }

    def to(self, device: torch.device) -> Self:
        for teacher in self.teachers:
            teacher.to(device)
        self._joined_head = JoinedHead(self.shares)
        return self

    @torch.no_grad()
    def score_tokens(self, batch: TokenBatch) -> Hidden | Logits | TopK:
        """`Hidden` for a geometric mixture that is linear (see `JoinedHead`), else `Logits` [N, V] in float32."""
        if "score_tokens" not in self.capabilities:
            return super().score_tokens(batch)
        signals = [self._whole(index, teacher.score_tokens(batch)) for index, teacher in enumerate(self.teachers)]
        if self.mixing == "geometric" and self.temperature is None and are_linear(signals):
            return self._joined_head.join(signals)
        assert self.vocab_size is not None
        readers = [reader(signal, self.vocab_size) for signal in signals]
        values = values_of(signals[0])
        mixed = values.new_empty((len(values), self.vocab_size), dtype=torch.float32)
        # A student that trains in mixed precision asks under autocast, which would round the logits to bfloat16.
        with torch.autocast(values.device.type, enabled=False):
            for rows in chunks(len(values)):
                mixed[rows] = self._mix([read(rows) for read in readers])
        return Logits(mixed)

    @torch.no_grad()
    def level_probs(self, pairs: Sequence[Pair], task: Task) -> LevelProbs:
        if "level_probs" not in self.capabilities:
            return super().level_probs(pairs, task)
        found = [teacher.level_probs(pairs, task).probs for teacher in self.teachers]
        # Rules answer on the CPU, models on their device.
        mixed = self._mix([probs.to(found[0].device, torch.float32).log() for probs in found])
        return LevelProbs(mixed.softmax(-1))

    def annotate(self, pairs: Sequence[Pair], task: Task) -> list[Annotation]:
        """The first teacher's annotations."""
        if "annotate" not in self.capabilities:
            return super().annotate(pairs, task)
        return self.teachers[0].annotate(pairs, task)

    def _mix(self, log_probs: Sequence[Tensor]) -> Tensor:
        return mix(log_probs, log_row_weights(log_probs, self.shares, self.temperature), self.mixing)

    def _whole(self, index: int, signal: Hidden | Logits | TopK) -> Hidden | Logits:
        if isinstance(signal, TopK):
            raise UserError(
                f"{_name(index, self.teachers[index])} answers with its most probable tokens alone, which can't be mixed, "
                "without having declared its top_k: leave it out, and tell its author."
            )
        return signal


def _check_settings(
    teachers: Sequence[WeightedTeacher],
    mixing: Mixing,
    row_weights: RowWeights,
    confidence_temperature: float,
) -> None:
    if not teachers:
        raise UserError("teachers is empty: give the ensemble at least one teacher, such as lantern_pl.teachers.hf.")
    for index, weighted in enumerate(teachers):
        if not _is_positive(weighted.weight):
            raise UserError(
                f"The weight of {_name(index, weighted.teacher)} is {weighted.weight!r}: give a finite number above 0, or "
                "leave the teacher out."
            )
    for name, value, known in (("mixing", mixing, get_args(Mixing)), ("row_weights", row_weights, get_args(RowWeights))):
        if value not in known:
            raise UserError(f"{name} is {value!r}: give {' or '.join(known)}.")
    if not _is_positive(confidence_temperature):
        raise UserError(f"confidence_temperature is {confidence_temperature!r}: give a finite number of nats above 0.")


def _is_positive(number: float) -> bool:
    return math.isfinite(number) and number > 0


def _capabilities(teachers: Sequence[Teacher], tokens: bool) -> frozenset[str]:
    mixable = {"level_probs", "score_tokens"} if tokens else {"level_probs"}
    able = mixable.intersection(*(teacher.capabilities for teacher in teachers))
    able |= teachers[0].capabilities & {"annotate"}
    if not able:
        each = "; ".join(
            f"{_name(index, teacher)}: {', '.join(sorted(teacher.capabilities)) or 'nothing'}"
            for index, teacher in enumerate(teachers)
        )
        raise UserError(
            f"There is nothing that all teachers of the ensemble can{'' if tokens else ' while tokens is false'}. They can: "
            f"{each}. Give teachers that all have score_tokens, for a decoder student, or all level_probs, for an encoder."
        )
    return frozenset(able)


def _check_tokens(teachers: Sequence[Teacher], or_levels: bool) -> None:
    """Raise UserError unless the teachers' next-token distributions can be mixed."""
    levels_alone = ", or set tokens: false to mix their level distributions alone" if or_levels else ""
    first = teachers[0]
    for index, teacher in enumerate(teachers):
        if teacher.top_k is not None:
            raise UserError(
                f"{_name(index, teacher)} names only {teacher.top_k} tokens per position (its top_k), and what it thinks of "
                "the others' tokens isn't known: it can't be mixed with them. Replace it by a teacher that knows the whole "
                f"vocabulary, such as lantern_pl.teachers.hf{levels_alone}."
            )
        if teacher.tokenizer_fingerprint != first.tokenizer_fingerprint:
            raise UserError(
                f"{_name(0, first)} and {_name(index, teacher)} have different tokenizers, with the fingerprints "
                f"{first.tokenizer_fingerprint} and {teacher.tokenizer_fingerprint}: their token ids stand for different "
                f"texts, so their next-token distributions can't be mixed. Choose teachers of one family{levels_alone}."
            )


def _name(index: int, teacher: Teacher) -> str:
    """A teacher as the config's list and its class name it: two of one class are told apart by their places."""
    return f"teachers[{index}] ({type(teacher).__name__})"
