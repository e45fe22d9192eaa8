"""The order of examples: a shuffle that depends on seed and epoch alone, and batches of examples of similar length."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from random import Random

from torch.utils.data import Sampler

from lantern_pl.errors import UserError


class EpochShuffle(Sampler[int]):
    """The numbers 0..size-1 in an order that is a function of `seed` and the epoch alone.

    It reads no global random state, so a resumed run meets the same order whatever ran before. Lightning calls
    `set_epoch`.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.size))
        Random(f"{self.seed}/{self.epoch}").shuffle(order)
        return iter(order)

    def __len__(self) -> int:
        return self.size


class LengthBucketBatches(Sampler[list[int]]):
    """Batches of examples of similar length, for one rank.

    Within windows of some batches the sampler's order is sorted by length and cut into batches; these come in the
    order in which the sampler drew the first example of each, which is random when the sampler is. So a batch needs
    little padding, and yet each epoch has other batches, in an order that says nothing about their length.

    Over all ranks each example comes exactly once an epoch, in training and in evaluation alike, and each rank has
    the same number of batches. Nothing is repeated to fill up, since a repeated example counts twice in a metric:
    instead batches differ in size by at most one, so whoever averages over batches must weight by their sizes. Sizes
    are at most `batch_size`, with one exception: several ranks at `batch_size=1` get a few batches of two, as a rank
    can't be left without.

    All ranks work the same plan out of the same sampler and take turns in it: in each step they hold neighbours in
    length, so none waits long for another. Use `Trainer(use_distributed_sampler=False)`.

    Args:
        sampler: draws each example once; Lightning calls its `set_epoch`.
        lengths: length of each example, by its index.
        batch_size: the most examples of one batch of one rank.
        rank, world_size: this process, and how many there are.
        bucket_batches: steps in a window. More save padding, fewer mix lengths better.

    Raises:
        UserError: where there are fewer examples than ranks.
    """

    def __init__(
        self,
        sampler: Sampler[int],
        lengths: Sequence[int],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        bucket_batches: int = 16,
    ) -> None:
        if batch_size < 1 or bucket_batches < 1 or not 0 <= rank < world_size:
            raise UserError(
                f"batch_size is {batch_size}, bucket_batches {bucket_batches}, rank {rank} of {world_size}: "
                "sizes must be at least 1, and the rank below the number of processes"
            )
        self.sampler = sampler
        self.lengths = lengths
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.bucket_batches = bucket_batches
        size = len(lengths)
        if 0 < size < world_size:
            raise UserError(
                f"{size} examples can't be shared by {world_size} processes without counting some twice: "
                f"use at most {size} devices, or more data"
            )

    def __len__(self) -> int:
        return self.count(len(self.lengths))

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.sampler)
        for batches in self.steps(order, self.count(len(order)), self.world_size):
            yield batches[self.rank]

    def count(self, size: int) -> int:
        """How many steps so many examples make. Every batch of every rank needs one: this binds only at batch_size 1."""
        return min(-(-size // (self.batch_size * self.world_size)), size // self.world_size)

    def steps(self, order: Sequence[int], count: int, world_size: int = 1) -> Iterator[list[list[int]]]:
        """The batches of all ranks, step by step, that examples in this order make in so many steps. What a step holds of
        them doesn't depend on the number of ranks."""

        def cut(batch: int) -> int:
            """Where a batch begins: batches of all ranks are as equal in size as can be."""
            return batch * len(order) // (count * world_size)

        drawn = {index: place for place, index in enumerate(order)}
        for first in range(0, count, self.bucket_batches):
            last = min(first + self.bucket_batches, count)
            start = cut(first * world_size)
            window = list(order[start : cut(last * world_size)])
            window.sort(key=lambda index: self.lengths[index])  # stable: equals keep the sampler's order
            steps = []
            for step in range(first, last):
                cuts = [cut(step * world_size + rank) - start for rank in range(world_size + 1)]
                steps.append([window[a:b] for a, b in pairwise(cuts)])
            steps.sort(key=lambda batches: drawn[batches[0][0]])
            yield from steps
