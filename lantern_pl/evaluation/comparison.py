"""The table and the texts that show what training has changed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.markup import escape
from rich.table import Table

# Figure: what it says, and whether more of it is better. Everything else is a divergence, in nats.
FIGURES = {
    "accuracy": ("share of right levels", True),
    "macro_f1": ("F1, mean over levels", True),
    "quadratic_kappa": ("agreement by distance", True),
    "ece": ("calibration error", False),
    "token_accuracy": ("right next tokens", True),
    "rouge_l": ("generated text, ROUGE-L", True),
    "valid_format": ("generated text readable", True),
    "cross_entropy": ("nats, to the annotation", False),
    "tvd": ("0 to 1, to the teacher", False),
    "hidden_states": ("distance, to the teacher's", False),
}
DIVERGENCE = ("nats, to the teacher", False)


def comparison_table(untrained: Mapping[str, float], now: Mapping[str, float], title: str) -> Table:
    """Figures of the untrained student beside the present ones, with their ratio where less is better; the present ones
    alone where there are no others."""
    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    for name in ("untrained", "trained", "ratio") if untrained else ("value",):
        table.add_column(name, justify="right")
    table.add_column("what it is")
    for name, value in now.items():
        about, more_is_better = FIGURES.get(name, DIVERGENCE)
        before = untrained.get(name)
        ratio = "" if before is None or before <= 0 or more_is_better else f"{value / before:.2f}"
        held_against = ("" if before is None else f"{before:.3f}", f"{value:.3f}", ratio)
        table.add_row(name, *(held_against if untrained else (f"{value:.3f}",)), about)
    return table


def sample_table(sample: Mapping[str, str]) -> Table:
    """One held-out pair's annotation and the answers of teacher, untrained and trained student, side by side."""
    table = Table(title="One held-out pair, answered by each", title_justify="left", show_lines=True)
    names = [name for name in ("annotation", "teacher", "untrained", "trained") if name in sample]
    for name in names:
        table.add_column(name, ratio=1)
    table.add_row(*(escape(sample[name]) for name in names))
    return table


class FinalValidation(Callback):
    """Validates once more where training stops between two validations (max_steps, max_time) or had no step left to make:
    the last figures are then those of the student that is saved."""

    def __init__(self) -> None:
        self.validated_at = -1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:  # whose figures are the untrained student's
            self.validated_at = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.validated_at < trainer.global_step and trainer.enable_validation:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True


class ComparisonTable(Callback):
    """Prints the table after each validation, and at the end of a fit the answers side by side."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        student: Any = pl_module
        if trainer.is_global_zero and not trainer.sanity_checking and student.metrics:
            # Lightning brings the number of steps along for a fit alone.
            steps = trainer.global_step if trainer.state.fn == TrainerFn.FITTING else student.checkpoint_steps
            title = f"Validation {_as_it_is(student)}" if steps is None else f"Validation after {steps} steps"
            console_of(trainer).print(comparison_table(student.untrained_metrics, student.metrics, title))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        student: Any = pl_module
        if trainer.is_global_zero:
            title = "Test" if student.checkpoint_steps is not None else f"Test {_as_it_is(student)}"
            console_of(trainer).print(comparison_table(student.untrained_metrics, student.metrics, title))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        sample = getattr(pl_module, "sample", {})
        if trainer.is_global_zero and "trained" in sample:
            console_of(trainer).print(sample_table(sample))


def _as_it_is(student: Any) -> str:
    return f"of {escape(student.model_name)}, without a checkpoint"


def console_of(trainer: Trainer) -> Console:
    """The console of the progress bar while it is live, so that what is printed doesn't tear it."""
    bar = trainer.progress_bar_callback
    progress = bar.progress if isinstance(bar, RichProgressBar) else None
    return progress.console if progress is not None else Console()


def draw_curves(metrics_csv: Path, picture: Path, untrained: Mapping[str, float]) -> None:
    """Draw the losses of a run over its steps, training as lines and validation as dots from the untrained student on."""
    import csv

    import matplotlib

    matplotlib.use("Agg")  # no display needed
    import matplotlib.pyplot as plt

    if not metrics_csv.exists():  # nothing was logged
        return
    with metrics_csv.open() as file:
        rows = list(csv.DictReader(file))
    not_drawn = {"learning_rate", "tokens_per_s", "loss"}
    names = [c.removeprefix("train/") for c in (rows[0] if rows else {}) if c.startswith("train/")]
    names = [name for name in names if name not in not_drawn]
    if not names:
        return
    figure, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.4), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], names, strict=True):
        for split, style in (("train", {"lw": 1.2}), ("val", {"marker": "o", "ls": "--"})):
            points = [(int(r["step"]) + 1, float(r[f"{split}/{name}"])) for r in rows if r.get(f"{split}/{name}")]
            if split == "val" and name in untrained:
                points.insert(0, (0, untrained[name]))
            if points:
                axis.plot(*zip(*points, strict=True), label={"train": "training", "val": "held out"}[split], **style)
        unit = FIGURES.get(name, DIVERGENCE)[0].split(",")[0]
        axis.set(title=name, xlabel="optimizer step", ylabel=unit, ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(picture, dpi=120)
    plt.close(figure)
