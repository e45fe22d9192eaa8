"""Learning a teacher's hidden states beside its answers: one more term of a student's loss, without attention maps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from lantern_kernels import MixtureOutput
from torch import Tensor, nn

from lantern_pl.data.pair import Pair
from lantern_pl.depth_pruning import DepthPruning
from lantern_pl.errors import UserError
from lantern_pl.model_files import load_config
from lantern_pl.plugin_checks import check_hidden_layers, checked_pair_hidden_states, checked_token_hidden_states
from lantern_pl.schedules import Scheduled, extremes, first
from lantern_pl.signals import TokenBatch
from lantern_pl.tasks import Task
from lantern_pl.teachers.contract import Teacher

NAME = "hidden_states"
"""What the term is called among the others."""


@dataclass(frozen=True)
class HiddenStates:
    """Learn the teacher's hidden states through a linear map, as TinyBERT does (arXiv 1909.10351).

    For an encoder the teacher is asked once about each pair; for a decoder the teacher lantern_pl.teachers.hf runs once a
    step for them and its logits, and another may run once more.
    """

    layers: list[tuple[int, int]] = field(default_factory=lambda: [(-1, -1)])
    """Pairs of a layer of the student and the teacher's that it learns from, counted as transformers counts hidden_states:
    0 is the embeddings' output, 1 the first layer's, -1 the last layer's."""
    weight: Scheduled = 1.0
    """The term's weight in the loss, or a schedule of it."""
    distance: Literal["mse", "cosine"] = "mse"
    """The mean squared difference over the teacher's width, or 1 - cosine; the mean over the pairs of layers."""
    project: bool = True
    """Learn a map from the student's width to the teacher's for each pair of layers. Without, the widths must be equal."""

    def __post_init__(self) -> None:
        least, most = extremes(self.weight)
        if not (math.isfinite(most) and least >= 0):
            raise UserError(f"model.hidden_states.weight is {self.weight}: give a finite weight of 0 or more.")
        if not self.layers:
            raise UserError("model.hidden_states.layers is empty: give pairs of a student's and a teacher's layer.")


class HiddenStateTerm(nn.Module):
    """The term of the loss, with the projections: they learn with the student and are no part of what it exports.

    Args:
        settings: layers, weight and distance.
        teacher: whose hidden states to learn.
        capability: what the teacher is asked for, `token_hidden_states` or `pair_hidden_states`.
        model: what the student starts from.
        pruning: which of that model's layers it keeps.

    Raises UserError where the teacher can't give them, or where a layer isn't there. No weights are loaded for that.
    """

    def __init__(
        self, settings: HiddenStates, teacher: Teacher | None, capability: str, model: str, pruning: DepthPruning | None
    ) -> None:
        super().__init__()
        if teacher is None:
            raise UserError("model.hidden_states needs a teacher: give model.teacher, or leave hidden_states out.")
        if capability not in teacher.capabilities:
            raise UserError(
                f"The teacher {type(teacher).__name__} gives no {capability} (it can: "
                f"{', '.join(sorted(teacher.capabilities))}), which model.hidden_states needs: choose another teacher, such "
                "as lantern_pl.teachers.hf, or leave hidden_states out."
            )
        check_hidden_layers(teacher)
        config = load_config(model).get_text_config()
        total = config.num_hidden_layers
        width, their_width = config.hidden_size, teacher.hidden_size
        self.layers, self.teacher_layers = ([pair[side] for pair in settings.layers] for side in (0, 1))
        _check_layers("student", self.layers, total if pruning is None else len(pruning.indices(total)))
        _check_layers("teacher", self.teacher_layers, teacher.hidden_layers or 0)
        if not settings.project and width != their_width:
            raise UserError(
                f"model.hidden_states.project is false, but the student's hidden states are {width} wide and the teacher's "
                f"{their_width}: set it to true."
            )
        self.settings = settings
        self.weight = first(settings.weight)
        self._teacher = teacher
        self._was_checked = False
        self._of_pairs: dict[Pair, list[Tensor]] = {}
        # Of hidden states with unit variance they make such ones.
        self.projections = nn.ParameterList(
            nn.init.normal_(torch.empty(their_width or 0, width), std=width**-0.5)
            for _ in (settings.layers if settings.project else [])
        )

    def of_tokens(self, batch: TokenBatch, rows: int, look_at_values: bool = False) -> list[Tensor]:
        """The teacher's hidden states [rows, d] at the batch's positions, a tensor for each pair of layers. Their values are
        looked at the first time, and when asked to."""
        look = look_at_values or not self._was_checked
        self._was_checked = True
        return checked_token_hidden_states(self._teacher, batch, rows, self.teacher_layers, look_at_values=look)

    def of_pairs(self, pairs: Sequence[Pair], task: Task, device: torch.device, look_at_values: bool = True) -> list[Tensor]:
        """The teacher's hidden states [B, d] of pairs, a tensor for each pair of layers. It's asked once for each pair, but
        for those whose answer isn't finite, which is refused with `look_at_values`."""
        new = [pair for pair in pairs if pair not in self._of_pairs]
        answers: dict[Pair, list[Tensor]] = {}
        if new:
            states = checked_pair_hidden_states(self._teacher, new, task, self.teacher_layers, look_at_values)
            rows = zip(*(layer.cpu() for layer in states), strict=True)
            answers = {pair: list(row) for pair, row in zip(new, rows, strict=True)}
            self._of_pairs |= {pair: row for pair, row in answers.items() if all(layer.isfinite().all() for layer in row)}
        found = (answers[pair] if pair in answers else self._of_pairs[pair] for pair in pairs)
        by_layer = zip(*found, strict=True)
        return [torch.stack(rows).to(device) for rows in by_layer]

    def add(self, output: MixtureOutput, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> MixtureOutput:
        """The loss with this term, summed over the rows as the others are.

        Args:
            output: the loss without it, of N rows.
            student: hidden states [N, d] of the student, a tensor for each pair of layers.
            teacher: the teacher's [N, d'], likewise. They get no gradient.
        """
        with torch.autocast(student[0].device.type, enabled=False):
            rows = torch.stack([self._distance(*both) for both in zip(self._projected(student), teacher, strict=True)])
            values = rows.mean(0)
            loss = output.loss + self.weight * values.sum()
        return MixtureOutput(loss, {**output.terms, NAME: values.detach()})

    def _projected(self, student: Sequence[Tensor]) -> list[Tensor]:
        if not self.settings.project:
            return [states.float() for states in student]
        return [
            nn.functional.linear(states.float(), weight.float())
            for states, weight in zip(student, self.projections, strict=True)
        ]

    def _distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of each row, [N]."""
        target = teacher.detach().float()
        if self.settings.distance == "cosine":
            return 1 - nn.functional.cosine_similarity(student, target, dim=-1)
        return (student - target).square().mean(-1)


def _check_layers(whose: str, layers: Sequence[int], count: int) -> None:
    for layer in layers:
        if not -count - 1 <= layer <= count:
            raise UserError(
                f"model.hidden_states.layers names layer {layer} of the {whose}, which has {count} layers: give 0 (the "
                f"embeddings' output) to {count}, or -1 (the last layer) to {-count - 1}."
            )
