"""Recording by the workers of a Ray cluster: each records whole shards, and the process of the command writes them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from safetensors.torch import load, save

from lantern_pl.scale.cluster import Cluster
from lantern_pl.signal_sets.recording import Item, Recorder, ShardArrays, ready
from lantern_pl.teachers import Teacher

T = TypeVar("T")


class Workers:
    """Records with the teacher in each of the workers: what `recording.ThisProcess` does alone."""

    def __init__(self, teacher: Teacher, cluster: Cluster) -> None:
        self.teacher = teacher
        self.cluster = cluster

    def once(self, work: Callable[[torch.device], T]) -> T:
        """What needs the loaded teacher, given its device. It's pickled with the teacher, which stays the same object."""
        made: T = self.cluster.once(partial(_with_teacher, self.teacher, work))
        return made

    def record(
        self, make: Callable[[torch.device], Recorder], shards: Mapping[int, Sequence[Item]]
    ) -> Iterator[tuple[int, int, ShardArrays | None]]:
        """Yields the number of each shard, how many items it had, and all of it, as they come."""
        left = iter(shards.items())

        def take() -> tuple[str, Sequence[Item]] | None:
            number, items = next(left, (None, ()))
            return None if number is None else (str(number), items)

        for number, (content, made) in self.cluster.results(partial(_recording, self.teacher, make), take):
            yield int(number), len(shards[int(number)]), replace(made, arrays=load(content))


def _with_teacher(teacher: Teacher, work: Callable[[torch.device], T]) -> T:
    from lantern_pl.model_files import quiet_transformers

    quiet_transformers()
    return work(ready(teacher))


def _recording(
    teacher: Teacher, make: Callable[[torch.device], Recorder]
) -> Callable[[Sequence[Item]], tuple[bytes, ShardArrays]]:
    return partial(_whole_shard, _with_teacher(teacher, make))


def _whole_shard(recorder: Recorder, items: Sequence[Item]) -> tuple[bytes, ShardArrays]:
    """The arrays as safetensors, since torch doesn't read its own pickles of unsigned integers, and all else."""
    *_, (_, made) = recorder.shard(items)
    assert made is not None  # with a shard's last batch
    arrays = {name: array.contiguous() for name, array in made.arrays.items()}
    return save(arrays), replace(made, arrays={})
