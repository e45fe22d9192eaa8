"""The training loader: its place is an epoch and a number of batches, and depends on nothing else."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, Sampler

from lantern_pl.data.batching import EpochShuffle, LengthBucketBatches


class ResumableBatches(Sampler[list[int]]):
    """Batches of an epoch's order, from any of them on.

    Args:
        shuffle: the order of the examples; Lightning sets its epoch, as this sampler's `sampler`.
        batches: made of that order.
    """

    def __init__(self, shuffle: EpochShuffle, batches: LengthBucketBatches) -> None:
        self.sampler = shuffle
        self.batches = batches
        self._done = 0

    def go_to(self, epoch: int, batches: int) -> None:
        """Begin the next iteration after `batches` batches of `epoch`."""
        self.sampler.set_epoch(epoch)
        self._done = batches

    def __iter__(self) -> Iterator[list[int]]:
        # At the first batch, not before: a loader with workers makes two iterators and uses the second.
        done, self._done = self._done, 0
        yield from islice(self.batches, done, None)

    def __len__(self) -> int:
        return len(self.batches)


class ResumableLoader(DataLoader[Any]):
    """A DataLoader on `ResumableBatches` that Lightning takes back to where a checkpoint was saved.

    torchdata's StatefulDataLoader counts the batches that were fetched, which aren't always those that were trained on;
    `lantern_pl.resume.settle` puts the right place into the checkpoint.
    """

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        assert isinstance(self.batch_sampler, ResumableBatches)
        self.batch_sampler.go_to(state["epoch"], state["batches"])
