"""Where a run stands, told exactly, so that a resumed run goes on with the very next batch.

Lightning's own state says which of its hooks have run, and it restarts after them. That goes wrong where a run was ended
by `max_steps` (in mid-epoch the rest of the epoch is left out, at its end the next epoch is) or interrupted (the batch
that was being trained on is left out). What counts here is how many batches of which epoch the weights have seen, and
what the generators of random numbers were going to give for the next one.
"""

import random
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Trainer


def settle(checkpoint: dict[str, Any], batches: int, accumulate: int) -> None:
    """Rewrite the loops' state in a checkpoint that is about to be saved.

    Args:
        checkpoint: what Lightning is going to save.
        batches: how many an epoch has.
        accumulate: micro-batches for each optimizer step. Those since the last step are trained on again, since their
            gradients aren't saved.
    """
    loop = checkpoint["loops"]["fit_loop"]
    epochs, trained = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    epoch = max(0, epochs["current"]["ready"] - 1)
    done, total = trained["current"]["processed"], trained["total"]["processed"]
    if done < batches:
        begun, done, total = epoch + 1, done - done % accumulate, total - done % accumulate
    else:
        begun, epoch, done = epoch + 1, epoch + 1, 0
    for counts in (epochs["current"], epochs["total"]):
        counts.update(ready=begun, started=begun, processed=epoch, completed=epoch)
    for counts, count in ((trained["current"], done), (trained["total"], total)):
        counts.update(ready=count, started=count, processed=count, completed=count)
    trained["is_last_batch"] = False
    # A validation that was interrupted isn't gone on with: its figures would be of a part of the data.
    validated = loop["epoch_loop.val_loop.batch_progress"]
    for counts in (validated["current"], validated["total"]):
        counts.update(ready=0, started=0, processed=0, completed=0)
    if "combined_loader" in loop["state_dict"]:
        loop["state_dict"]["combined_loader"] = [{"epoch": epoch, "batches": done}]


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
