"""The `encoder` teacher: an encoder student of an earlier stage gives level distributions to the next."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lantern_pl.data.featurize import EncoderFeaturizer
from lantern_pl.data.pair import Pair
from lantern_pl.errors import UserError
from lantern_pl.model_files import training_of, weights_identity
from lantern_pl.pair_classifier import is_classifier, load_classifier
from lantern_pl.positions import check_length
from lantern_pl.signals import LevelProbs
from lantern_pl.tasks import Task
from lantern_pl.teachers.contract import Teacher
from lantern_pl.text import load_tokenizer


class EncoderTeacher(Teacher):
    """A saved encoder student as the teacher of another encoder.

    Args:
        model: folder of the student.
        max_length: longest input in tokens; longer texts are cut as in training. null is what the student was trained with.
    """

    lantern_api = 1
    capabilities = frozenset({"level_probs", "pair_hidden_states"})
    price = (0.0, 0.0)
    tokenizer: PreTrainedTokenizerBase

    def __init__(self, model: str, max_length: int | None = None) -> None:
        if not is_classifier(model):
            raise UserError(f"{model!r} is not the folder of an encoder student: give one, or use lantern_pl.teachers.hf.")
        self.model_name = model
        if max_length is None:
            training = training_of(model)
            max_length = 512 if training is None else training.max_length
        self.max_length = max_length
        self.tokenizer = load_tokenizer(model)
        self.classifier = load_classifier(model).requires_grad_(False).eval()
        check_length(self.classifier.backbone, model, "The encoder teacher's max_length", max_length)
        sizes = self.classifier.backbone.config.get_text_config()
        self.hidden_size, self.hidden_layers = int(sizes.hidden_size), int(sizes.num_hidden_layers)

    def identity(self) -> dict[str, Any]:
        return {"model": self.model_name, "weights": weights_identity(self.model_name), "max_length": self.max_length}

    def to(self, device: torch.device) -> Self:
        self.classifier.to(device)
        return self

    @torch.no_grad()
    def level_probs(self, pairs: Sequence[Pair], task: Task) -> LevelProbs:
        if task.levels != self.classifier.levels:
            raise UserError(f"The teacher {self.model_name!r} knows the levels {self.classifier.levels}, not {task.levels}.")
        return LevelProbs(self.classifier(self._inputs(pairs, task)).softmax(-1))

    @torch.no_grad()
    def pair_hidden_states(self, pairs: Sequence[Pair], task: Task, layers: Sequence[int]) -> list[Tensor]:
        """Those of each layer, pooled as the last layer's are for its levels."""
        return self.classifier.logits_and_layers(self._inputs(pairs, task), layers)[1]

    def _inputs(self, pairs: Sequence[Pair], task: Task) -> dict[str, Tensor]:
        featurizer = EncoderFeaturizer(self.tokenizer, task, self.max_length)
        batch = featurizer.collate([featurizer.encode(pair, supervised=False) for pair in pairs])
        return batch.to(next(self.classifier.parameters()).device).inputs
