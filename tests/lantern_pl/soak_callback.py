"""Notes memory and open files of a run, every few steps."""

import json
import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from lantern_pl.serving.load import MemorySampler


class Notes(Callback):
    """Args:
    path: a JSON line each time is added to this file.
    every: so many steps.
    """

    def __init__(self, path: str, every: int) -> None:
        self.path, self.every = path, every

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step % self.every == 0:
            sampler = MemorySampler(os.getpid())
            sampler.sample()
            handles = len(list(Path("/proc/self/fd").iterdir()))
            line = {"step": trainer.global_step, "megabytes": sampler.megabytes[0], "handles": handles}
            with Path(self.path).open("a") as file:
                file.write(json.dumps(line) + "\n")
