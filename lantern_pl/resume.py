"""Where a run stands, told exactly, so that a resumed run goes on with the very next batch.

Lightning's own state says which of its hooks have run, and it restarts after them. That goes wrong where a run was ended
by `max_steps` (in mid-epoch the rest of the epoch is left out, at its end the next epoch is) or interrupted (the batch
that was being trained on is left out). What counts here is which batches of which epoch the weights have seen, and what
the generators of random numbers were going to give for the next one.
"""

import random
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.trainer.connectors.data_connector import _parse_num_batches
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import rank_zero_info

from lantern_pl.data.loader import ResumableBatches, ResumableLoader


class FitLoop(_FitLoop):
    """A fit that has no step left to make ends as any other does, by its last validation: the student that is written then
    has its figures."""

    @classmethod
    def put_into(cls, trainer: Trainer) -> None:
        loop = cls(trainer, trainer.fit_loop.min_epochs, trainer.fit_loop.max_epochs)
        loop.epoch_loop = trainer.fit_loop.epoch_loop
        trainer.fit_loop = loop

    @property
    def skip(self) -> bool:
        return self.max_batches == 0 or self.trainer.limit_train_batches == 0


def settle(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Rewrite the loops' state in a checkpoint that is about to be saved.

    Micro-batches since the last optimizer step are trained on again, since their gradients aren't saved.
    """
    loop = checkpoint["loops"]["fit_loop"]
    epoch = max(0, loop["epoch_progress"]["current"]["ready"] - 1)
    trained = loop["epoch_loop.batch_progress"]
    done, total = trained["current"]["processed"], trained["total"]["processed"]
    batches = int(trainer.num_training_batches)
    loaders = [] if trainer.fit_loop._combined_loader is None else trainer.fit_loop._combined_loader.flattened
    order = next((loader.order for loader in loaders if isinstance(loader, ResumableLoader)), None)
    if done < batches:
        # What the run began with has its steps behind it, also where the number of micro-batches was another then.
        again = min(done % trainer.accumulate_grad_batches, done - (order.begun(epoch) if order else 0))
        done, total = done - again, total - again
    _put(loop, epoch, done, total, batches, order)
    # A validation that was interrupted isn't gone on with: its figures would be of a part of the data.
    validated = loop["epoch_loop.val_loop.batch_progress"]
    for counts in (validated["current"], validated["total"]):
        counts.update(ready=0, started=0, processed=0, completed=0)


def fit_to_batches(checkpoint: dict[str, Any], trainer: Trainer) -> int:
    """Rewrite the loops' state in a checkpoint that a run goes on from where its batches are others than this run's.

    Returns how many more optimizer steps the checkpoint has behind it than this run would have made up to its place.
    """
    loop = checkpoint.get("loops", {}).get("fit_loop")
    places = loop["state_dict"].get("combined_loader") if loop else None
    loader = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
    if not places or not isinstance(loader, ResumableLoader):
        return 0
    place, trained = places[0], loop["epoch_loop.batch_progress"]
    batches = int(_parse_num_batches(RunningStage.TRAINING, len(loader), trainer.limit_train_batches))
    done = loader.order.go_to(place)
    if place["batches"] or place.get("before"):
        _put(loop, place["epoch"], done, trained["total"]["processed"], batches, loader.order)
        if loader.order.changed:
            rank_zero_info(
                "The checkpoint was saved in mid-epoch, with another global batch: the epoch goes on with the "
                f"{len(loader.order.left())} pairs that weren't trained on."
            )
    accumulate = trainer.accumulate_grad_batches
    epochs, done = loop["epoch_progress"]["current"]["processed"], trained["current"]["processed"]
    made: int = checkpoint["global_step"]
    return made - epochs * -(-batches // accumulate) - done // accumulate


def _put(loop: dict[str, Any], epoch: int, done: int, total: int, batches: int, order: ResumableBatches | None) -> None:
    """Have the loops stand where `done` of an epoch's `batches` were trained on, and `total` in all epochs."""
    epochs, trained = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    begun = epoch + 1
    if done >= batches:
        epoch, done = epoch + 1, 0
    for counts in (epochs["current"], epochs["total"]):
        counts.update(ready=begun, started=begun, processed=epoch, completed=epoch)
    for counts, count in ((trained["current"], done), (trained["total"], total)):
        counts.update(ready=count, started=count, processed=count, completed=count)
    trained["is_last_batch"] = False
    if order is not None:
        loop["state_dict"]["combined_loader"] = [order.place(epoch, done)]


def keep_patience(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Have EarlyStopping's patience in a checkpoint be that of this run, which EarlyStopping would take from there."""
    states = checkpoint.get("callbacks", {})
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping) and callback.state_key in states:
            states[callback.state_key]["patience"] = callback.patience


def go_to_place(trainer: Trainer) -> None:
    """Take the training loader to the place that a checkpoint has brought, where Lightning hasn't.

    Lightning does so when it makes the loader. If an optimizer's schedule asks for the number of steps of an epoch, that
    is before the loops' state is restored.
    """
    loop = trainer.fit_loop
    if loop._combined_loader_states_to_load and loop._data_fetcher is not None:
        loop._load_combined_loader_states()
        iter(loop._data_fetcher)


def random_states() -> dict[str, Any]:
    """The states of all generators that training draws from in this process, as plain values and tensors."""
    numpy_state: Any = np.random.get_state(legacy=True)
    name, keys, *rest = numpy_state
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [name, keys.tolist(), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Take the generators back to what `random_states` gave."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def check_random_states(states: dict[str, Any]) -> None:
    """Raise whatever the generators raise of these, and leave them as they are: before a run is gone on with."""
    now = random_states()
    try:
        set_random_states(states)
    finally:
        set_random_states(now)


def of_all_ranks(value: dict[str, Any]) -> list[dict[str, Any]]:
    """One of each rank, in their order."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found
