"""Ctrl-C and SIGTERM: a fit ends after the batch at hand, is saved, and says by its exit code that it was stopped."""

import os
import signal
import sys
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info


class Stopped(SystemExit):
    """A signal has ended a fit. Its code is what shells and schedulers take for that: 130 for SIGINT, 143 for SIGTERM."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class StopBetweenBatches(Callback):
    """Ends a fit between two batches once SIGINT or SIGTERM has come; the run's checkpoint is saved as after any exception.

    A KeyboardInterrupt in the middle of an optimizer step would leave weights of which some are of the next step, and
    these would be saved. A second SIGINT stops at once, and nothing is saved then. Lightning, which ends by SIGTERM with
    exit code 0, isn't asked.

    Args:
        how_to_go_on: the command for that, for a person to read.
    """

    def __init__(self, how_to_go_on: str) -> None:
        self.how_to_go_on = how_to_go_on
        self.received = 0

    # The first of these two is when Lightning has just put its own handlers in place; it takes back all of them itself.

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._handle()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._handle()

    def _handle(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # a shell ignores SIGINT for its jobs in the background
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == self.received == signal.SIGINT:
            # No clean-up, which may be what takes so long. Checkpoints are written whole or not at all.
            sys.stderr.write("\nStopped at once.\n")
            os._exit(128 + number)
        if not self.received:
            again = " Ctrl-C again stops at once, without saving." if number == signal.SIGINT else ""
            rank_zero_info(f"Stopping after this batch, to save the run.{again}\nTo go on: {self.how_to_go_on}")
        self.received = number

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._stop(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        # All ranks after the same batch, or those that go on would wait for the others for ever.
        if trainer.world_size > 1:
            anywhere = trainer.strategy.reduce_boolean_decision(bool(self.received), all=False)
            self.received = self.received or (signal.SIGTERM if anywhere else 0)
        if self.received:
            raise Stopped(self.received)
