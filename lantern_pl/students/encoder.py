"""EncoderStudent: a classifier of the fit level, taught by levels and by distributions over them."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lantern_kernels import MixtureOutput, Term, mixture_loss
from torch import Tensor
from torchmetrics import CohenKappa, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassF1Score

from lantern_pl.data.featurize import IGNORE, EncoderBatch, EncoderFeaturizer
from lantern_pl.data.pair import Pair
from lantern_pl.depth_pruning import DepthPruning
from lantern_pl.divergences.contract import WeightedDivergence
from lantern_pl.errors import UserError
from lantern_pl.pair_classifier import Pooling, is_classifier, load_classifier, new_classifier, write_classifier
from lantern_pl.plugin_checks import ask, check_divergence, check_teacher, checked_level_probs
from lantern_pl.students.student import Means, Optimization, Student, check_loss
from lantern_pl.tasks import Task
from lantern_pl.teachers.contract import Teacher
from lantern_pl.text import load_tokenizer

_OPTIMIZATION = Optimization(learning_rate=1e-4, weight_decay=0.01)


class EncoderStudent(Student):
    """A classifier of (candidate, job) pairs into ordered fit levels.

    Its loss on a pair is cross_entropy · CE(level) + temperature² · Σ weight · divergence(level distribution, student).
    The distribution comes from the teacher if there is one, else from the annotations (votes or confidence).

    Args:
        model: what the backbone starts from: embedded:minilm-l6, embedded:smollm2-135m, a folder (such as an earlier
            stage's student), or a name on the model hub. Encoders and decoders both do.
        levels: names of the fit levels, ordered from the worst to the best; the task's must be the same.
        pooling: which hidden states the head sees: the first token's (cls), the mean, or the last token's.
        head_depth: hidden layers of the MLP head, each as wide as the backbone.
        dropout: dropout before each layer of the head.
        layers: keep only some of the backbone's layers (depth pruning); null keeps all.
        teacher: whose level distribution to learn from, such as lantern_pl.teachers.hf; null takes the annotations'.
        mixture: divergences to that distribution and their weights; empty trains on the levels alone.
        cross_entropy: weight of the cross entropy on the annotated level.
        temperature: softens both distributions in the divergences; cross entropy stays at temperature 1.
        optimization: learning rate and its schedule.
    """

    def __init__(
        self,
        model: str,
        levels: list[str] | None = None,
        pooling: Pooling = "cls",
        head_depth: int = 1,
        dropout: float = 0.1,
        layers: DepthPruning | None = None,
        teacher: Teacher | None = None,
        mixture: list[WeightedDivergence] | None = None,
        cross_entropy: float = 1.0,
        temperature: float = 1.0,
        optimization: Optimization = _OPTIMIZATION,
    ) -> None:
        super().__init__(optimization)
        self.model_name = model
        self.levels = levels or Task().levels
        self.terms: list[Term] = [weighted.term() for weighted in mixture or []]
        check_loss(self.terms, temperature, cross_entropy)
        for weighted in mixture or []:
            if not weighted.divergence.same_tokenizer:
                raise UserError(
                    f"model.mixture holds {weighted.divergence.name!r}, which doesn't tell the levels apart: it's for "
                    "decoders whose teacher has another tokenizer. Choose another divergence."
                )
            check_divergence(weighted.divergence)
        self.cross_entropy = cross_entropy
        self.temperature = temperature
        self.layers = layers
        if head_depth < 0:
            raise UserError(f"model.head_depth is {head_depth}: give 0 (a linear head) or more.")
        if teacher is not None:
            check_teacher(teacher)
        if teacher is not None and "level_probs" not in teacher.capabilities:
            raise UserError(
                f"The teacher {type(teacher).__name__} gives no level distributions (it can: "
                f"{', '.join(sorted(teacher.capabilities))}); lantern_pl.teachers.hf and lantern_pl.teachers.rubric do."
            )
        self.teacher = teacher
        self.tokenizer = load_tokenizer(model)
        if is_classifier(model):
            self.classifier = load_classifier(model, dropout)
            found = (self.classifier.levels, self.classifier.pooling, self.classifier.depth)
            if found != (self.levels, pooling, head_depth):
                raise UserError(
                    f"{model!r} is a student with levels, pooling and head_depth {found}, the config says "
                    f"{(self.levels, pooling, head_depth)}: set model.init_args to the student's."
                )
        else:
            self.classifier = new_classifier(model, self.levels, pooling, head_depth, dropout, layers)
        self.classifier.train()
        count = len(self.levels)
        self.figures = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(count, average="micro", ignore_index=IGNORE),
                "macro_f1": MulticlassF1Score(count, average="macro", ignore_index=IGNORE),
                "quadratic_kappa": CohenKappa(
                    task="multiclass", num_classes=count, weights="quadratic", ignore_index=IGNORE
                ),
                "ece": MulticlassCalibrationError(count, n_bins=10, ignore_index=IGNORE),
            },
            compute_groups=False,
        )
        self.means = Means([*(term.label for term in self.terms), "cross_entropy"])
        self._level_probs: dict[str, Tensor] = {}

    @property
    def kind(self) -> Literal["encoder"]:
        return "encoder"

    def featurizer(self, task: Task, max_length: int) -> EncoderFeaturizer:
        return EncoderFeaturizer(self.tokenizer, task, max_length)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.task.levels != self.levels:
            raise UserError(
                f"The task's levels are {self.task.levels}, the student's {self.levels}: set model.init_args.levels and "
                "data.init_args.task.levels to the same list."
            )
        if self.teacher is not None:
            ask(self.teacher, partial(self.teacher.to, self.trainer.strategy.root_device))
        elif self.terms and stage == "fit":
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            _check_distributions([*data.pairs["train"], *data.pairs["val"]])

    # Loss

    def summed_loss(self, batch: EncoderBatch) -> tuple[MixtureOutput, int]:
        return self._mixture(batch, self.classifier(batch.inputs)), len(batch.pairs)

    def _mixture(self, batch: EncoderBatch, logits: Tensor) -> MixtureOutput:
        """The loss summed over the batch's pairs."""
        known = self._distributions(batch) if self.terms else None
        levels = batch.levels
        if known is not None:
            # A pair annotated with votes alone: its most frequent level is its label.
            levels = torch.where(levels == IGNORE, known.argmax(-1), levels)
        return mixture_loss(
            logits,
            None if known is None else known.log(),
            self.terms,
            temperature=self.temperature,
            targets=levels,
            cross_entropy=self.cross_entropy,
            row_weights=torch.ones(len(logits), device=logits.device),
        )

    def _distributions(self, batch: EncoderBatch) -> Tensor:
        """The level distribution [B, K] of each pair, from the teacher (asked once for each pair) or the annotations."""
        if self.teacher is None:
            _check_distributions(batch.pairs)
            return batch.level_probs
        new = [pair for pair in batch.pairs if pair.pair_id not in self._level_probs]
        if new:
            probs = checked_level_probs(self.teacher, new, self.task).cpu()
            self._level_probs |= {pair.pair_id: row for pair, row in zip(new, probs, strict=True)}
        return torch.stack([self._level_probs[pair.pair_id] for pair in batch.pairs]).to(batch.levels.device)

    # Evaluation

    @torch.no_grad()
    def update_metrics(self, batch: EncoderBatch) -> None:
        logits = self.classifier(batch.inputs)
        for name, values in self._mixture(batch, logits).terms.items():
            self.means.update(name, values)
        self.figures.update(logits.softmax(-1), batch.levels)

    def finish_metrics(self) -> dict[str, float]:
        figures = {name: float(value) for name, value in self.figures.compute().items()}
        figures |= self.means.finish()
        self.figures.reset()
        return figures

    def predict_step(self, batch: EncoderBatch, batch_idx: int) -> list[dict[str, Any]]:
        """One record per pair: its id, the most probable level, and the probability of each."""
        probs = self.classifier(batch.inputs).softmax(-1).tolist()
        return [
            {
                "pair_id": pair.pair_id,
                "level": self.levels[max(range(len(row)), key=row.__getitem__)],
                "level_probs": dict(zip(self.levels, row, strict=True)),
            }
            for pair, row in zip(batch.pairs, probs, strict=True)
        ]

    # Files

    def write(self, folder: Path) -> None:
        write_classifier(self.classifier, self.tokenizer, folder)

    def describe(self) -> dict[str, Any]:
        return {
            "started_from": self.model_name,
            "layers": None if self.layers is None else asdict(self.layers),
            "levels": self.levels,
            "pooling": self.classifier.pooling,
            "head_depth": self.classifier.depth,
            "loss": {
                "cross_entropy": self.cross_entropy,
                "temperature": self.temperature,
                "mixture": {term.label: term.weight for term in self.terms},
            },
            "parameters": sum(parameter.numel() for parameter in self.classifier.parameters()),
        }


def _check_distributions(pairs: Sequence[Pair]) -> None:
    for pair in pairs:
        if pair.level_probs is None:
            raise UserError(
                f"Pair {pair.pair_id!r} has neither votes nor confidence, so there is no level distribution to learn from: "
                "give model.teacher, add them to the data, or leave model.mixture empty."
            )
