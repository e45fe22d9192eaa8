"""The `shared_base` teacher: the model that a LoRA student adapts, without the student's adapters. One copy in memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from lantern_pl.data.pair import Pair
from lantern_pl.errors import UserError
from lantern_pl.signals import Annotation, Hidden, LevelProbs, TokenBatch
from lantern_pl.tasks import Task
from lantern_pl.teachers.local_model import HFTeacher

_TEACHER = "teacher"


class SharedBaseTeacher(HFTeacher):
    """The student's own base model as its teacher, for a student with `lora`: its adapters are off while it answers.

    Its weights are the student's frozen ones, so there's no second model in memory. With an adapter of its own it is a
    fine-tuned teacher on the same base.

    Args:
        model: the student's `model`, the very same.
        adapter: folder of a PEFT adapter that makes the teacher of the base, or null for the base as it is.
        max_new_tokens: length limit of the explanations that it writes.
    """

    lantern_api = 1
    capabilities = frozenset({"annotate", "level_probs", "score_tokens", "token_hidden_states"})

    def __init__(self, model: str, adapter: str | None = None, max_new_tokens: int = 96) -> None:
        super().__init__(model, adapter, dtype="float32", max_new_tokens=max_new_tokens)
        self._student: Any = None

    def attach(self, student: Any, model: str) -> None:
        """Take the student's adapted model (peft.PeftModel) as the one to answer with. Raises UserError unless its base is
        the teacher's."""
        if model != self.model_name:
            raise UserError(
                f"The teacher shared_base is {self.model_name!r}, and the student starts from {model!r}: give both the "
                "same, or take the teacher lantern_pl.teachers.hf, which loads its own."
            )
        if self.adapter is not None:
            was_training = student.training
            try:
                student.load_adapter(self.adapter, adapter_name=_TEACHER, is_trainable=False)
            except (ValueError, RuntimeError, OSError) as error:
                raise UserError(f"The teacher's adapter {self.adapter!r} doesn't fit its model: {error}") from error
            student.train(was_training)  # loading puts all of it into eval mode, and the student's dropout would be off
            _freeze(student)
        self._student = student

    @property
    def lm(self) -> Any:
        """The shared model, as it is at the moment: the student's adapters are on unless `_alone` has switched them off."""
        if self._student is None:
            raise UserError(
                "The teacher shared_base has no model of its own: it's for a DecoderStudent with lora. Elsewhere take "
                "lantern_pl.teachers.hf."
            )
        return self._student

    def to(self, device: torch.device) -> Self:
        return self  # the student moves its model

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The teacher answers: in eval mode, without the student's adapters. Afterwards all is as it was, dropout too."""
        lm = self.lm
        modes = [(module, module.training) for module in lm.modules()]
        trained = [parameter for parameter in lm.parameters() if parameter.requires_grad]
        active = lm.active_adapter
        lm.eval()
        try:
            if self.adapter is None:
                with lm.disable_adapter():
                    yield
            else:
                lm.set_adapter(_TEACHER)
                yield
        finally:
            if self.adapter is not None:
                lm.set_adapter(active)
                _freeze(lm)
            for module, training in modes:
                module.training = training
            for parameter in trained:
                parameter.requires_grad_(True)

    def score_tokens(self, batch: TokenBatch) -> Hidden:
        with self._alone():
            return super().score_tokens(batch)

    def token_hidden_states(self, batch: TokenBatch, layers: Sequence[int]) -> list[Tensor]:
        with self._alone():
            return super().token_hidden_states(batch, layers)

    def annotate(self, pairs: Sequence[Pair], task: Task) -> list[Annotation]:
        with self._alone():
            return super().annotate(pairs, task)

    def level_probs(self, pairs: Sequence[Pair], task: Task) -> LevelProbs:
        with self._alone():
            return super().level_probs(pairs, task)


def _freeze(lm: nn.Module) -> None:
    """The teacher's adapter never learns: peft lets an adapter learn when it is made active."""
    for name, parameter in lm.named_parameters():
        if f".{_TEACHER}." in name:
            parameter.requires_grad_(False)
