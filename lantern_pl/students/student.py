"""What the two students share: the loss over the global batch, the optimizer, and the table of untrained and trained."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lantern_kernels import MixtureOutput, Term
from lantern_kernels.terms import CROSS_ENTROPY
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torchmetrics import MeanMetric
from transformers import get_scheduler

from lantern_pl.data.featurize import Batch, Featurizer
from lantern_pl.divergences.contract import WeightedDivergence
from lantern_pl.errors import UserError
from lantern_pl.fsdp2 import FSDP2, check_strategy, whole_weights
from lantern_pl.plugin_checks import ask
from lantern_pl.resume import (
    check_random_states,
    fit_to_batches,
    go_to_place,
    keep_patience,
    of_all_ranks,
    random_states,
    set_random_states,
    settle,
)
from lantern_pl.schedules import Progress, Schedule, Scheduled, extremes, first, last, value_at
from lantern_pl.sharding import shard_student
from lantern_pl.students.faults import OnFault, Watch, gradients_are_finite
from lantern_pl.students.hidden_states import NAME as HIDDEN_STATES
from lantern_pl.students.hidden_states import HiddenStateTerm
from lantern_pl.tasks import Task
from lantern_pl.teachers.contract import Assignment, Teacher
from lantern_pl.text import template_hash

# Names of figures that are logged beside the terms.
_TAKEN = {
    *("loss", "tokens_per_s", "learning_rate", "skipped_steps"),
    *("token_accuracy", "rouge_l", "valid_format", "hidden_states", "cross_entropy_to_samples"),
    *("accuracy", "macro_f1", "quadratic_kappa", "ece"),
    *("temperature", "on_policy_fraction"),
}
# What the names of scheduled weights and of terms on the student's own texts begin with.
_WEIGHT, ON_POLICY = "weight_", "on_policy_"
HIDDEN_WEIGHT = _WEIGHT + HIDDEN_STATES
_RANDOM = "random_states"

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
    not_finite: OnFault = "stop"
    """What to do where the loss or its gradient is NaN or infinite: stop, and say which term of which pairs, or skip that
    step, which is counted as train/skipped_steps."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UserError(f"optimization.learning_rate is {self.learning_rate}: give a number above 0.")
        if not 0 <= self.warmup <= 1:
            raise UserError(f"optimization.warmup is {self.warmup}: give a share of the steps, 0 to 1.")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UserError(f"optimization.weight_decay is {self.weight_decay}: give a finite number of 0 or more.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimization.betas is {list(self.betas)}: give two numbers from 0 up, below 1.")


def check_loss(
    terms: Sequence[Term], temperature: Scheduled, cross_entropy: Scheduled, hidden_states: Scheduled = 0.0
) -> None:
    """Raise UserError for a loss of these terms and weights that can't be: found before any weights are loaded."""
    (coldest, hottest), (least, most) = extremes(temperature), extremes(cross_entropy)
    if not terms and most == 0 and extremes(hidden_states)[1] == 0:
        raise UserError("The student has nothing to learn: give a mixture, or a cross_entropy weight.")
    if not (math.isfinite(hottest) and coldest > 0):
        raise UserError(f"model.temperature is {temperature}: give a finite number above 0.")
    if not (math.isfinite(most) and least >= 0):
        raise UserError(f"model.cross_entropy is {cross_entropy}: give a weight of 0 or more.")
    labels = [CROSS_ENTROPY, *(term.label for term in terms)]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UserError(f"model.mixture has several terms called {twice[0]!r}: give each a `label` of its own.")
    if taken := [label for label in labels if label in _TAKEN or label.startswith((_WEIGHT, ON_POLICY)) or not label]:
        raise UserError(f"model.mixture has a term called {taken[0]!r}, a name that other figures have: give it a `label`.")


def only_reported(output: MixtureOutput, *tensors: Tensor | None) -> MixtureOutput:
    """The output with a loss of 0, whose gradient in these tensors is zeros: DDP wants one of every parameter."""
    nothing = torch.stack([0.0 * tensor.sum().float() for tensor in tensors if tensor is not None]).sum()
    return MixtureOutput(nothing, output.terms)


class Means(nn.Module):
    """A running mean for each of some names, which may hold any characters (those of an nn.ModuleDict may not)."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self._names = list(names)
        # A row that isn't a number belongs to the mean: left out, the others would look better than the whole is.
        self._means: Any = nn.ModuleList(MeanMetric(nan_strategy="disable") for _ in names)

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
    hidden_states: HiddenStateTerm | None

    def __init__(self, optimization: Optimization) -> None:
        super().__init__()
        self.optimization = optimization
        self.untrained_metrics: dict[str, float] = {}
        self.metrics: dict[str, float] = {}
        self.checkpoint_steps: int | None = None
        self._window_rows = 0
        self._window_tokens = 0
        self._window_sums: dict[str, Tensor] = {}
        self._window_counts: dict[str, int] = {}
        self._window_started = time.perf_counter()
        self._logged_terms: dict[str, None] = {}
        self._window_random = random_states()
        self._watch = Watch()
        self.skipped_steps = 0
        self._rows_trained = 0.0
        self._random_to_set: dict[str, Any] | None = None
        self._own_groups: list[dict[str, Any]] = []
        self._steps_ahead = 0
        self.terms: list[Term] = []
        self.hidden_states = None
        self.numbers: dict[str, Scheduled] = {}

    def start_numbers(
        self,
        mixture: Sequence[WeightedDivergence],
        temperature: Scheduled,
        cross_entropy: Scheduled,
        others: Mapping[str, Scheduled],
    ) -> None:
        """Take the numbers of the loss, scheduled or not, by the names that they are logged under."""
        self.terms = [weighted.term() for weighted in mixture]
        weights = {_WEIGHT + term.label: weighted.weight for term, weighted in zip(self.terms, mixture, strict=True)}
        self.numbers = {"temperature": temperature, _WEIGHT + CROSS_ENTROPY: cross_entropy, **weights, **others}
        self._set_numbers(first)

    def _set_numbers(self, choose: Callable[[Scheduled], float]) -> None:
        self.current = {name: choose(number) for name, number in self.numbers.items()}
        self.temperature = self.current["temperature"]
        self.cross_entropy = self.current[_WEIGHT + CROSS_ENTROPY]
        for term in self.terms:
            term.weight = self.current[_WEIGHT + term.label]
        if self.hidden_states is not None:
            self.hidden_states.weight = self.current[HIDDEN_WEIGHT]

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

    @property
    @abstractmethod
    def network(self) -> Any:
        """The transformers model that is trained, with its adapters if it has some."""

    @abstractmethod
    def write(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the student as a folder that transformers loads without this package.

        weights: those of `whole_weights`, where the student's own are sharded.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the manifest says about how this student was made."""

    forwards: tuple[str, ...] = ("summed_loss", "update_metrics")
    """Names of the methods in which the student's weights are used while it's trained."""

    def setup(self, stage: str) -> None:
        check_strategy(self.trainer.strategy)
        self.task = self.trainer.datamodule.task  # type: ignore[attr-defined]

    def configure_model(self) -> None:
        """Shard the student for a fit with the strategy `fsdp2`. Elsewhere each process has it whole."""
        strategy = self.trainer.strategy
        if isinstance(strategy, FSDP2) and self.trainer.state.fn == TrainerFn.FITTING and not isinstance(self, FSDPModule):
            shard_student(self, self.network, strategy.device_mesh["data_parallel"], self.forwards)

    def whole_weights(self) -> dict[str, Tensor] | None:
        """For `write`, on the first process, where the student is sharded, else None. All processes must ask."""
        return whole_weights(self, keep=self.trainer.is_global_zero) if isinstance(self, FSDPModule) else None

    def prepare_teacher(self, teacher: Teacher, capability: str, tokenizer: Any) -> None:
        """Bring the teacher to the device, and tell it what it's going to be asked."""
        # In a fit all processes ask about as many batches, which is what a sharded teacher needs.
        place = teacher.spread if self.trainer.state.fn == TrainerFn.FITTING else teacher.to
        ask(teacher, partial(place, self.trainer.strategy.root_device))
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        examples = data.annotated_examples()
        template = template_hash(tokenizer)
        paths = ", ".join(path for path in data.paths.values() if path)
        work = Assignment(capability, examples, self.task, data.max_length, paths, template)
        ask(teacher, partial(teacher.accept, work))

    def describe_loss(self) -> dict[str, Any]:
        """The numbers of the loss, for the manifest."""
        plain = {name: asdict(n) if isinstance(n, Schedule) else n for name, n in self.numbers.items()}
        return {
            "cross_entropy": plain[_WEIGHT + CROSS_ENTROPY],
            "temperature": plain["temperature"],
            "mixture": {term.label: plain[_WEIGHT + term.label] for term in self.terms},
        }

    def logits_before(self, vocabulary: int) -> int | None:
        """How many logits a rank had at the optimizer steps before this one, over the whole run, resumes included.

        The loss is compiled from a number on, which changes its last bits: a resumed run is to do so at the same step.
        """
        return int(self._rows_trained) * vocabulary if self.training else None

    # Training

    def on_train_start(self) -> None:
        go_to_place(self.trainer)
        self._take_own_optimization()
        self._start_window()
        for name, number in self.numbers.items():
            if isinstance(number, Schedule) and number.stands_still(self._progress()):
                rank_zero_warn(
                    f"{name} goes from {number.start} to {number.end} by epochs, of which this fit has one: it stays at "
                    f"{number.start} in training. Give unit: step, or more epochs."
                )

    def _take_own_optimization(self) -> None:
        """A checkpoint has brought the optimizer's numbers along with its averages: this run's win over them.

        Where they are the same, so is the learning rate, to the last bit: it's worked out as the schedule does at each step.
        """
        for setup in self.trainer.lr_scheduler_configs:
            scheduler: Any = setup.scheduler
            # Some strategies have the checkpoint read only after the schedule was made.
            scheduler.lr_lambdas = self._rate(scheduler.optimizer).lr_lambdas
            scheduler.base_lrs = [group["initial_lr"] for group in self._own_groups]
            groups = scheduler.optimizer.param_groups
            for group, own, share in zip(groups, self._own_groups, scheduler.lr_lambdas, strict=True):
                group |= own | {"lr": own["initial_lr"] * share(scheduler.last_epoch)}
            scheduler._last_lr = [group["lr"] for group in groups]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # The step that loggers get. It's always that of the optimizer, but for a resumed run, where it can be one off.
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.trainer.global_step
        self._set_numbers(partial(value_at, progress=self._progress()))
        if self._random_to_set is not None:
            # Not before the first batch: what is made ready for a fit draws numbers, too.
            set_random_states(self._random_to_set)
            self._random_to_set = None
        if self._window_rows == 0:
            self._window_random = random_states()

    def _progress(self) -> Progress:
        steps, in_epoch = max(self._steps(), 1), max(self._steps_in_epoch(), 1)
        # Not max_epochs: max_steps may end the fit before.
        epochs = -(-(steps - self._steps_ahead) // in_epoch)
        return Progress(self.trainer.global_step, steps, self.trainer.current_epoch, epochs)

    def _steps(self) -> int:
        """How many optimizer steps the fit has in all, with those before a resume as they were made."""
        trainer = self.trainer
        steps = trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise UserError(
                "trainer.max_steps and trainer.max_epochs are both -1, and the learning rate's warm-up and schedule need an "
                "end: give one of them. trainer.max_time may still end the fit before."
            )
        if self._steps_ahead and trainer.max_epochs != -1:
            steps = self._steps_in_epoch() * (trainer.max_epochs or 1) + self._steps_ahead
            steps = steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)
        return int(steps)

    def _steps_in_epoch(self) -> int:
        return -(-int(self.trainer.num_training_batches) // self.trainer.accumulate_grad_batches)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        output, rows = self.summed_loss(batch)
        self._watch.see(batch, output)
        self._window_rows += rows
        self._window_tokens += batch.token_count
        sums = {name: values.sum() for name, values in output.terms.items()}
        for name, value in {"loss": output.loss.detach(), **sums}.items():
            self._window_sums[name] = self._window_sums.get(name, torch.zeros_like(value)) + value
            self._window_counts[name] = self._window_counts.get(name, 0) + rows
        # Lightning divides by the number of micro-batches; the right divisor is known only when the optimizer steps.
        return output.loss * self.trainer.accumulate_grad_batches

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Normalise the gradients over the global batch and log its figures. Runs before gradients are clipped."""
        world = self.trainer.world_size
        counts = [*self._window_counts.values(), self._window_rows, self._window_tokens]
        local = torch.stack(
            [
                *(value.double() for value in self._window_sums.values()),
                *torch.tensor(counts, dtype=torch.double, device=self.device),
            ]
        )
        total = self.trainer.strategy.reduce(local, reduce_op="sum") if world > 1 else local
        assert isinstance(total, Tensor)
        *figures_, rows, tokens = total.tolist()
        names = list(self._window_sums)
        sums, counts = figures_[: len(names)], figures_[len(names) :]
        self._rows_trained += rows / world
        # The strategy has averaged the gradients over the ranks: they are sums over rows divided by the world's size.
        factor = world / max(rows, 1)
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        self._check_finite(sums[names.index("loss")])
        seconds = time.perf_counter() - self._window_started
        # A term on the student's own texts has only their rows.
        figures = {name: value / max(count, 1) for name, value, count in zip(names, sums, counts, strict=True)}
        figures["tokens_per_s"] = tokens / seconds
        # What isn't logged again would keep its value of an earlier step: nan says that this one has no such rows.
        self._logged_terms |= dict.fromkeys(names)
        figures = dict.fromkeys(self._logged_terms, math.nan) | figures
        figures |= {name: self.current[name] for name, number in self.numbers.items() if isinstance(number, Schedule)}
        if self.optimization.not_finite == "skip":
            figures["skipped_steps"] = self.skipped_steps
        for name, value in figures.items():
            self.log(f"train/{name}", value, prog_bar=True, batch_size=1)
        self.log("train/learning_rate", optimizer.param_groups[0]["lr"], batch_size=1)
        self._start_window()

    def _check_finite(self, loss: float) -> None:
        """Stop or skip a step whose loss, summed over all ranks, or whose gradient isn't finite."""
        # A scaler of half-precision gradients meets infinite ones as a matter of course, and leaves out their steps.
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if math.isfinite(loss) and (scaled or gradients_are_finite(self.parameters())):
            return
        parameters, world = self.named_parameters(), self.trainer.world_size
        fault = self._watch.fault(self.trainer.global_step, self.ask_teacher_again, parameters, world)
        if self.optimization.not_finite == "stop":
            raise UserError(
                f"{fault} No weight was changed by it. A lower learning rate or trainer.gradient_clip_val often helps; "
                "optimization.not_finite: skip leaves such steps out."
            )
        rank_zero_warn(f"{fault} The step was left out.")
        self.skipped_steps += 1
        for parameter in self.parameters():
            parameter.grad = None  # which optimizers leave alone; zeros would still move weights by their momentum

    def ask_teacher_again(self, batch: Any) -> None:
        """Ask the teacher about a batch, and look at every value of its answer. Raises UserError where it isn't right."""

    def _start_window(self) -> None:
        self._watch.clear()
        self._window_rows = self._window_tokens = 0
        self._window_sums = {}
        self._window_counts = {}
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
        scheduler = self._rate(optimizer)
        configured = ("initial_lr", "weight_decay", "betas")
        self._own_groups = [{key: group[key] for key in configured} for group in optimizer.param_groups]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _rate(self, optimizer: torch.optim.Optimizer) -> Any:
        """The learning rate's schedule over the whole fit."""
        steps = self._steps()
        warmup = round(self.optimization.warmup * steps)
        name = "constant_with_warmup" if self.optimization.schedule == "constant" else self.optimization.schedule
        return get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)

    # Evaluation

    def on_validation_start(self) -> None:
        self._validation_started = time.perf_counter()

    def on_validation_end(self) -> None:
        # A validation between two steps isn't time that the next one takes.
        self._window_started += time.perf_counter() - self._validation_started

    def on_validation_epoch_start(self) -> None:
        # At the values that stand in the end, so that figures of different epochs can be compared.
        self._set_numbers(last)

    def on_test_epoch_start(self) -> None:
        self._set_numbers(last)

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
        settle(checkpoint, self.trainer)
        checkpoint["untrained_metrics"] = self.untrained_metrics
        checkpoint["skipped_steps"] = self.skipped_steps
        checkpoint["rows_trained"] = self._rows_trained
        # Micro-batches since the last optimizer step are trained on again, by the same random numbers.
        checkpoint[_RANDOM] = of_all_ranks(self._window_random if self._window_rows else random_states())

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
                    "Give the model, layers, levels, pooling, head_depth, hidden_states and lora that it was made with."
                )
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.checkpoint_steps = checkpoint.get("global_step")
        self.untrained_metrics = checkpoint.get("untrained_metrics", {})
        self.skipped_steps = checkpoint.get("skipped_steps", 0)
        self._rows_trained = checkpoint.get("rows_trained", 0.0)
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._steps_ahead = fit_to_batches(checkpoint, self.trainer)
            keep_patience(checkpoint, self.trainer)
        states = checkpoint.get(_RANDOM, [])
        if len(states) == self.trainer.world_size:
            self._random_to_set = states[self.trainer.global_rank]
            check_random_states(self._random_to_set)
        elif self.trainer.state.fn == TrainerFn.FITTING:
            rank_zero_warn(
                f"The checkpoint has the random numbers' state of {len(states)} processes, and there are "
                f"{self.trainer.world_size} now: dropout will differ from that of a run without an interruption."
            )
