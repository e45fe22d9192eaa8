"""Training over all pairs of a file once, with nothing of Lightning's around it."""

from typing import Any

from lightning.pytorch import Callback, Trainer

from lantern_pl.data.pair_data import PairDataModule
from lantern_pl.students import Student


def train_one_epoch(student: Student, pairs: str, batch_size: int, keep: Callback, **options: Any) -> Trainer:
    """`options` are the trainer's; all pairs are trained on."""
    data = PairDataModule(pairs, val_path=pairs, test_path=pairs, max_length=320, batch_size=batch_size)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[keep],
        **options,
    )
    trainer.fit(student, data)
    return trainer
