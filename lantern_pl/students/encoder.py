"""EncoderStudent: a classifier of the fit level, taught by levels and by distributions over them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lantern_kernels import MixtureOutput, mixture_loss
from torch import Tensor
from torchmetrics import CohenKappa, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassF1Score

from lantern_pl.data.featurize import IGNORE, EncoderBatch, EncoderFeaturizer
from lantern_pl.data.pair import Pair
from lantern_pl.depth_pruning import DepthPruning
from lantern_pl.divergences.contract import WeightedDivergence
from lantern_pl.errors import UserError
from lantern_pl.pair_classifier import (
    PairClassifier,
    Pooling,
    is_classifier,
    load_classifier,
    new_classifier,
    write_classifier,
)
from lantern_pl.plugin_checks import check_divergence, check_teacher, checked_level_probs, wrong_level_probs
from lantern_pl.positions import check_length
from lantern_pl.prediction.answers import encoder_answers
from lantern_pl.prediction.loader import Portion
from lantern_pl.schedules import Scheduled
from lantern_pl.students.faults import spoil
from lantern_pl.students.hidden_states import NAME, HiddenStates, HiddenStateTerm
from lantern_pl.students.student import HIDDEN_WEIGHT, Means, Optimization, Student, check_loss, only_reported
from lantern_pl.tasks import Task
from lantern_pl.teachers.contract import Teacher
from lantern_pl.text import load_tokenizer

_OPTIMIZATION = Optimization(learning_rate=1e-4, weight_decay=0.01)


class EncoderStudent(Student):
    """A classifier of (candidate, job) pairs into ordered fit levels.

    Its loss on a pair is cross_entropy · CE(level) + temperature² · Σ weight · divergence(level distribution, student).
    The distribution comes from the teacher if there is one, else from the annotations (votes or confidence).
    `hidden_states` adds a term of its own.

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
        temperature: softens both distributions in the divergences; cross entropy stays at temperature 1. It, the weights and
            cross_entropy may each be a schedule, such as {start: 2, end: 1}.
        optimization: learning rate and its schedule.
        hidden_states: learn the teacher's hidden states as well, a vector of each pair, which the student has from its own
            by `pooling`; null leaves that out.
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
        cross_entropy: Scheduled = 1.0,
        temperature: Scheduled = 1.0,
        optimization: Optimization = _OPTIMIZATION,
        hidden_states: HiddenStates | None = None,
    ) -> None:
        super().__init__(optimization)
        self.model_name = model
        self.levels = levels or Task().levels
        others = {} if hidden_states is None else {HIDDEN_WEIGHT: hidden_states.weight}
        self.start_numbers(mixture or [], temperature, cross_entropy, others)
        check_loss(self.terms, temperature, cross_entropy, 0.0 if hidden_states is None else hidden_states.weight)
        for weighted in mixture or []:
            if not weighted.divergence.same_tokenizer:
                raise UserError(
                    f"model.mixture holds {weighted.divergence.name!r}, which doesn't tell the levels apart: it's for "
                    "decoders whose teacher has another tokenizer. Choose another divergence."
                )
            check_divergence(weighted.divergence)
        self.layers = layers
        if head_depth < 0:
            raise UserError(f"model.head_depth is {head_depth}: give 0 (a linear head) or more.")
        if teacher is not None:
            check_teacher(teacher)
        if teacher is not None and "level_probs" not in teacher.capabilities and (self.terms or hidden_states is None):
            raise UserError(
                f"The teacher {type(teacher).__name__} gives no level distributions (it can: "
                f"{', '.join(sorted(teacher.capabilities))}); lantern_pl.teachers.hf, without shard: true, "
                "and lantern_pl.teachers.rubric do."
            )
        self.teacher = teacher
        self.hidden_states: HiddenStateTerm | None = None
        if hidden_states is not None:
            self.hidden_states = HiddenStateTerm(hidden_states, teacher, "pair_hidden_states", model, layers)
        self.tokenizer = load_tokenizer(model)
        self._head: dict[str, Any] = {"pooling": pooling, "depth": head_depth, "dropout": dropout}
        self.classifier = self._load().train()
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
        names = [*(term.label for term in self.terms), "cross_entropy"]
        self.means = Means(names if self.hidden_states is None else [*names, NAME])
        # By the pair and not its id: files of validation and test pairs have ids of their own, which may be the same.
        self._level_probs: dict[Pair, Tensor] = {}

    @property
    def kind(self) -> Literal["encoder"]:
        return "encoder"

    @property
    def network(self) -> Any:
        return self.classifier.backbone

    def _load(self) -> PairClassifier:
        """The model as it is before any training."""
        if not is_classifier(self.model_name):
            return new_classifier(self.model_name, self.levels, layers=self.layers, **self._head)
        classifier = load_classifier(self.model_name, self._head["dropout"], self.layers)
        found = (classifier.levels, classifier.pooling, classifier.depth)
        given = (self.levels, self._head["pooling"], self._head["depth"])
        if found != given:
            raise UserError(
                f"{self.model_name!r} is a student with levels, pooling and head_depth {found}, the config says {given}: "
                "set model.init_args to the student's."
            )
        return classifier

    def featurizer(self, task: Task, max_length: int) -> EncoderFeaturizer:
        return EncoderFeaturizer(self.tokenizer, task, max_length)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.task.levels != self.levels:
            raise UserError(
                f"The task's levels are {self.task.levels}, the student's {self.levels}: set model.init_args.levels and "
                "data.init_args.task.levels to the same list."
            )
        max_length = self.trainer.datamodule.max_length  # type: ignore[attr-defined]
        check_length(self.classifier.backbone, self.model_name, "data.init_args.max_length", max_length)
        if stage == "predict":  # which asks no teacher
            return
        if self.teacher is not None:
            self.prepare_teacher(self.teacher, "level_probs", self.tokenizer)
        elif self.terms and stage == "fit":
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            _check_distributions([*data.pairs["train"], *data.pairs["val"]])

    # Loss

    def summed_loss(self, batch: EncoderBatch) -> tuple[MixtureOutput, int]:
        return self._mixture(batch)[0], len(batch.pairs)

    def _mixture(self, batch: EncoderBatch) -> tuple[MixtureOutput, Tensor]:
        """The loss summed over the batch's pairs, and the student's logits [B, K] of them."""
        layers = [] if self.hidden_states is None else self.hidden_states.layers
        logits, states = self.classifier.logits_and_layers(batch.inputs, layers)
        output = self._of_levels(batch, logits)
        if self.hidden_states is not None:
            teacher = self.hidden_states.of_pairs(batch.pairs, self.task, logits.device, look_at_values=not self.training)
            output = self.hidden_states.add(output, states, teacher)
        return output, logits

    def _of_levels(self, batch: EncoderBatch, logits: Tensor) -> MixtureOutput:
        """The loss without the hidden states' term."""
        known, wrong = self._distributions(batch) if self.terms else (None, None)
        levels = batch.levels
        if known is not None:
            # A pair annotated with votes alone: its most frequent level is its label.
            levels = torch.where(levels == IGNORE, known.argmax(-1), levels)
        reported = not self.terms and self.cross_entropy == 0
        output = mixture_loss(
            logits.detach() if reported else logits,
            None if known is None else known.log(),
            self.terms,
            temperature=self.temperature,
            targets=levels,
            cross_entropy=1.0 if reported else self.cross_entropy,
            row_weights=torch.ones(len(logits), device=logits.device),
            logits_before=self.logits_before(logits.shape[-1]),
        )
        output = only_reported(output, logits) if reported else output
        return output if wrong is None else spoil(output, wrong)

    def _distributions(self, batch: EncoderBatch) -> tuple[Tensor, Tensor | None]:
        """The level distribution [B, K] of each pair, from the teacher (asked once for each pair) or the annotations; and
        for which of them [B] the teacher's answer is none, if for any. Outside of training, such an answer is refused."""
        if self.teacher is None:
            _check_distributions(batch.pairs)
            return batch.level_probs, None
        answers: dict[Pair, Tensor] = {}
        new = [pair for pair in batch.pairs if pair not in self._level_probs]
        if new:
            probs = checked_level_probs(self.teacher, new, self.task, look_at_values=not self.training).cpu()
            answers = dict(zip(new, probs, strict=True))
            right = ~wrong_level_probs(probs)
            self._level_probs |= {pair: probs[at] for at, pair in enumerate(new) if right[at]}
        known = torch.stack([answers[pair] if pair in answers else self._level_probs[pair] for pair in batch.pairs])
        wrong = wrong_level_probs(known)
        if not bool(wrong.any()):
            return known.to(batch.levels.device), None
        known[wrong] = 1 / len(self.levels)
        return known.to(batch.levels.device), wrong.to(batch.levels.device)

    def ask_teacher_again(self, batch: EncoderBatch) -> None:
        if self.teacher is not None and self.terms:
            checked_level_probs(self.teacher, batch.pairs, self.task)
        if self.hidden_states is not None:
            self.hidden_states.of_pairs(batch.pairs, self.task, torch.device("cpu"))

    # Evaluation

    @torch.no_grad()
    def update_metrics(self, batch: EncoderBatch) -> None:
        output, logits = self._mixture(batch)
        for name, values in output.terms.items():
            self.means.update(name, values)
        self.figures.update(logits.softmax(-1), batch.levels)

    def finish_metrics(self) -> dict[str, float]:
        figures = {name: float(value) for name, value in self.figures.compute().items()}
        figures |= self.means.finish()
        self.figures.reset()
        return figures

    def predict_step(self, portion: Portion, batch_idx: int) -> list[dict[str, Any]]:
        """One record per pair: its row and ids, the most probable level, the probability of each, and the score."""
        return portion.answered(partial(encoder_answers, self.classifier))

    # Files

    def write(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        classifier = self.classifier
        if weights is not None:
            classifier = self._load()
            own = {k.removeprefix("classifier."): v for k, v in weights.items() if k.startswith("classifier.")}
            classifier.load_state_dict(own)
        write_classifier(classifier, self.tokenizer, folder)

    def describe(self) -> dict[str, Any]:
        return {
            "started_from": self.model_name,
            "layers": None if self.layers is None else asdict(self.layers),
            "levels": self.levels,
            "pooling": self.classifier.pooling,
            "head_depth": self.classifier.depth,
            "loss": {
                **self.describe_loss(),
                NAME: None if self.hidden_states is None else asdict(self.hidden_states.settings),
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
