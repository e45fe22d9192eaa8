"""What a person sees while a command runs: the progress bar, and quiet libraries."""

import logging
import warnings
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from lantern_pl.model_files import quiet_transformers


class ProgressBar(RichProgressBar):
    """Lightning's rich bar with the loss, every term and the tokens per second, under their short names."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        figures = super().get_metrics(trainer, pl_module)
        figures.pop("v_num", None)
        return {name.removeprefix("train/"): value for name, value in figures.items()}


def quiet_libraries() -> None:
    """Leave out what libraries say that a user can't act on."""
    quiet_transformers()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_advertisement)
    for message in (
        ".*does not have many workers.*",
        ".*'set_vital' is deprecated.*",
        ".*is_gradient_checkpointing` is deprecated.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*Experiment logs directory .* exists and is not empty.*",
        ".*The number of training batches .* is smaller than the logging interval.*",
        ".*recommended to use `self.log.*sync_dist=True.*",  # our figures are over all processes already
    ):
        warnings.filterwarnings("ignore", message)


def _no_advertisement(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not any(noise in text for noise in ("Tip:", "TPU available", "to estimate number of stepping batches"))
