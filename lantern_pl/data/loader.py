"""The training loader: its place is an epoch and what was trained on of it, and depends on nothing else."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, Sampler

from lantern_pl.data.batching import EpochShuffle, LengthBucketBatches


class ResumableBatches(Sampler[list[int]]):
    """Batches of an epoch's order, from any of them on.

    A run may go on with another global batch than it stopped with. Which examples were trained on follows from the epoch's
    order and how many steps it was cut into, so the rest of that epoch is made of all others: none is left out and none
    comes twice, but for a last few that are fewer than the processes.

    A place is a dict: so many `batches` of an `epoch` that was cut into `of` of them. If `before` lists more such pairs of
    numbers, each is of what those before it had left, and `batches` of what all of them had.

    Args:
        shuffle: the order of the examples; Lightning sets its epoch, as this sampler's `sampler`.
        batches: made of that order.
    """

    def __init__(self, shuffle: EpochShuffle, batches: LengthBucketBatches) -> None:
        self.sampler = shuffle
        self.batches = batches
        self._epoch = 0
        self._before: list[list[int]] = []
        self._first = self._done = 0

    def go_to(self, place: Mapping[str, Any]) -> int:
        """Begin an epoch where `place` is; returns at which batch that is, in an epoch of as many as there are now."""
        self._epoch, self._done, self._before = place["epoch"], place["batches"], list(place.get("before", []))
        self.sampler.set_epoch(self._epoch)
        now = self.batches.count(len(self.left()))
        of = place.get("of", now)  # of a checkpoint that doesn't tell: as many as now
        if self._done and of != now:
            self._before.append([self._done, of])
            self._done = 0
        self._first = len(self) - self.batches.count(len(self.left()))
        return self.begun(self._epoch)

    def begun(self, epoch: int) -> int:
        """At which batch of an epoch `go_to` has begun, or will; 0 for any other."""
        return self._first + self._done if epoch == self._epoch else 0

    def place(self, epoch: int, batches: int) -> dict[str, Any]:
        """What `go_to` takes, after so many batches of an epoch, counted as `go_to` does."""
        before, first = (self._before, self._first) if epoch == self._epoch else ([], 0)
        return {"epoch": epoch, "batches": batches - first, "of": len(self) - first, "before": before}

    @property
    def changed(self) -> bool:
        """Whether `go_to` was given a place within an epoch that was cut into other batches."""
        return bool(self._before) and self._done == 0

    def left(self) -> list[int]:
        """The epoch's examples in their order, without those that other batches have held."""
        order = list(self.sampler)
        for batches, of in self._before if self.sampler.epoch == self._epoch else ():
            steps = self.batches.steps(order, min(of, len(order)))
            held = {index for (batch,) in islice(steps, batches) for index in batch}
            order = [index for index in order if index not in held]
        return order

    def __iter__(self) -> Iterator[list[int]]:
        # At the first batch, not before: a loader with workers makes two iterators and uses the second.
        order = self.left()
        steps = self.batches.steps(order, self.batches.count(len(order)), self.batches.world_size)
        for ranks in islice(steps, self._done if self.sampler.epoch == self._epoch else 0, None):
            yield ranks[self.batches.rank]

    def __len__(self) -> int:
        return len(self.batches)


class ResumableLoader(DataLoader[Any]):
    """A DataLoader on `ResumableBatches` that Lightning takes back to where a checkpoint was saved.

    torchdata's StatefulDataLoader counts the batches that were fetched, which aren't always those that were trained on;
    `lantern_pl.resume.settle` puts the right place into the checkpoint.
    """

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order.go_to(state)

    @property
    def order(self) -> ResumableBatches:
        assert isinstance(self.batch_sampler, ResumableBatches)
        return self.batch_sampler
