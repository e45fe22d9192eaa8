"""What the two students share: the loss over the global batch, the optimizer, and the table of untrained and trained."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lantern_kernels import MixtureOutput, Term
from lantern_kernels.terms import CROSS_ENTROPY
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric
from transformers import get_scheduler

from lantern_pl.data.featurize import Batch, Featurizer
from lantern_pl.errors import UserError
from lantern_pl.resume import go_to_place, settle
from lantern_pl.tasks import Task

# Names of figures that are logged beside the terms.
_TAKEN = {
    *("loss", "tokens_per_s", "learning_rate", "token_accuracy", "rouge_l", "valid_format"),
    *("accuracy", "macro_f1", "quadratic_kappa", "ece"),
}

ScheduleName = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Optimization:
    """How the student's weights are updated: AdamW with a warm-up and a schedule."""

    learning_rate: float = 5e-4
    """Peak learning rate."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay; biases and norms are left alone."""
    warmup: float = 0.1
    """Share of all optimizer steps during which the learning rate rises to its peak."""
    schedule: ScheduleName = "cosine"
    """What follows the warm-up, until the last step: constant, linear or cosine decay to 0."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's running averages."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UserError(f"optimization.learning_rate is {self.learning_rate}: give a number above 0.")
        if not 0 <= self.warmup <= 1:
            raise UserError(f"optimization.warmup is {self.warmup}: give a share of the steps, 0 to 1.")


def check_loss(terms: Sequence[Term], temperature: float, cross_entropy: float) -> None:
    """Raise UserError for a loss that can't be: found here before any weights are loaded."""
    if not terms and cross_entropy == 0:
        raise UserError("The student has nothing to learn: give a mixture, or a cross_entropy weight.")
    if not (math.isfinite(temperature) and temperature > 0):
        raise UserError(f"model.temperature is {temperature}: give a finite number above 0.")
    if not (math.isfinite(cross_entropy) and cross_entropy >= 0):
        raise UserError(f"model.cross_entropy is {cross_entropy}: give a weight of 0 or more.")
    labels = [CROSS_ENTROPY, *(term.label for term in terms)]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UserError(f"model.mixture has several terms called {twice[0]!r}: give each a `label` of its own.")
    if taken := [label for label in labels if label in _TAKEN or not label]:
        raise UserError(f"model.mixture has a term called {taken[0]!r}, a name that other figures have: give it a `label`.")


class Means(nn.Module):
    """A running mean for each of some names, which may hold any characters (those of an nn.ModuleDict may not)."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self._names = list(names)
        self._means: Any = nn.ModuleList(MeanMetric() for _ in names)

    def update(self, name: str, values: Tensor) -> None:
        self._means[self._names.index(name)].update(values)

    def finish(self) -> dict[str, float]:
        """The means, which start anew."""
        found = {name: float(mean.compute()) for name, mean in zip(self._names, self._means, strict=True)}
        for mean in self._means:
            mean.reset()
        return found


class Student(LightningModule, ABC):
    """A model that is trained to answer like its teacher. Use DecoderStudent or EncoderStudent.

    Gradients are sums over rows (supervised positions or pairs) until the optimizer steps; then they are divided once, by
    the number of rows in the global batch, over all ranks and accumulated micro-batches. A mean of the micro-batches'
    means would give rows of short micro-batches more weight.
    """

    task: Task

    def __init__(self, optimization: Optimization) -> None:
        super().__init__()
        self.optimization = optimization
        self.untrained_metrics: dict[str, float] = {}
        self.metrics: dict[str, float] = {}
        self._window_rows = 0
        self._window_tokens = 0
        self._window_sums: dict[str, Tensor] = {}
        self._window_started = time.perf_counter()

    @property
    @abstractmethod
    def kind(self) -> Literal["decoder", "encoder"]:
        """Which of the two students it is; stands in the manifest."""

    @abstractmethod
    def featurizer(self, task: Task, max_length: int) -> Featurizer:
        """How this student turns pairs into tensors."""

    @abstractmethod
    def summed_loss(self, batch: Any) -> tuple[MixtureOutput, int]:
        """The loss summed over the batch's rows, with its terms by row; and the number of rows."""

    @abstractmethod
    def update_metrics(self, batch: Any) -> None:
        """Take one evaluation batch into account."""

    @abstractmethod
    def finish_metrics(self) -> dict[str, float]:
        """Figures over all that `update_metrics` has seen, over all ranks; starts anew."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write the student as a folder that transformers loads without this package."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the manifest says about how this student was made."""

    def setup(self, stage: str) -> None:
        self.task = self.trainer.datamodule.task  # type: ignore[attr-defined]

    # Training

    def on_train_start(self) -> None:
        go_to_place(self.trainer)
        self._start_window()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # The step that loggers get. It's always that of the optimizer, but for a resumed run, where it can be one off.
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.trainer.global_step

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        output, rows = self.summed_loss(batch)
        self._window_rows += rows
        self._window_tokens += batch.token_count
        sums = {name: values.sum() for name, values in output.terms.items()}
        for name, value in {"loss": output.loss.detach(), **sums}.items():
            self._window_sums[name] = self._window_sums.get(name, torch.zeros_like(value)) + value
        # Lightning divides by the number of micro-batches; the right divisor is known only when the optimizer steps.
        return output.loss * self.trainer.accumulate_grad_batches

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Normalise the gradients over the global batch and log its figures. Runs before gradients are clipped."""
        world = self.trainer.world_size
        local = torch.stack(
            [
                *(value.double() for value in self._window_sums.values()),
                *torch.tensor([self._window_rows, self._window_tokens], dtype=torch.double, device=self.device),
            ]
        )
        total = self.trainer.strategy.reduce(local, reduce_op="sum") if world > 1 else local
        assert isinstance(total, Tensor)
        *sums, rows, tokens = total.tolist()
        # The strategy has averaged the gradients over the ranks: they are sums over rows divided by the world's size.
        factor = world / max(rows, 1)
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        seconds = time.perf_counter() - self._window_started
        figures = {name: value / max(rows, 1) for name, value in zip(self._window_sums, sums, strict=True)}
        figures["tokens_per_s"] = tokens / seconds
        for name, value in figures.items():
            self.log(f"train/{name}", value, prog_bar=True, batch_size=1)
        self.log("train/learning_rate", optimizer.param_groups[0]["lr"], batch_size=1)
        self._start_window()

    def _start_window(self) -> None:
        self._window_rows = self._window_tokens = 0
        self._window_sums = {}
        self._window_started = time.perf_counter()

    def configure_optimizers(self) -> Any:
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": self.optimization.weight_decay},
            {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.optimization.learning_rate,
            betas=self.optimization.betas,
        )
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = round(self.optimization.warmup * steps)
        name = "constant_with_warmup" if self.optimization.schedule == "constant" else self.optimization.schedule
        scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # Evaluation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.update_metrics(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.update_metrics(batch)

    def on_validation_epoch_end(self) -> None:
        figures = self.finish_metrics()
        if self.trainer.sanity_checking:
            # The sanity check runs over the whole validation set (num_sanity_val_steps: -1), before the first step.
            # After a resume it sees trained weights; the checkpoint has brought the true figures along.
            self.untrained_metrics = self.untrained_metrics or figures
            return
        self.metrics = figures
        self._log_all("val", figures)

    def on_test_epoch_end(self) -> None:
        self.metrics = self.finish_metrics()
        self._log_all("test", self.metrics)

    def _log_all(self, split: str, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.log(f"{split}/{name}", value, batch_size=1)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        settle(checkpoint, int(self.trainer.num_training_batches), self.trainer.accumulate_grad_batches)
        checkpoint["untrained_metrics"] = self.untrained_metrics

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As ever, but what is trained must be there under its name and in its shape, also where `strict` is off: a LoRA
        checkpoint lacks the frozen weights."""
        trained = {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}
        missing = [name for name in trained if name not in state_dict]
        other = [name for name in trained if name in state_dict and state_dict[name].shape != trained[name].shape]
        unknown = [name for name in state_dict if name not in self.state_dict()]
        for what, names in (("lacks", missing), ("has another shape of", other), ("also has", unknown)):
            if names:
                raise UserError(
                    f"The checkpoint doesn't fit this student: it {what} {names[0]!r}, and {len(names) - 1} more weights. "
                    "Give the model, layers, levels, pooling, head_depth and lora that it was made with."
                )
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.untrained_metrics = checkpoint.get("untrained_metrics", {})
