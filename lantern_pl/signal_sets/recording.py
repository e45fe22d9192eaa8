"""Asks a teacher about pairs, and makes the arrays of a shard of what it says."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from lantern_pl.data.featurize import DecoderFeaturizer, Example
from lantern_pl.data.pair import Pair
from lantern_pl.errors import UserError
from lantern_pl.plugin_checks import ask, checked_level_probs, checked_signal
from lantern_pl.plugins import origin
from lantern_pl.signal_sets.formats import Format
from lantern_pl.signal_sets.keys import KEY_BYTES, example_key, pair_key
from lantern_pl.signal_sets.shards import ENTRY_ENDS, EXAMPLE_KEYS, LEVEL_PROBS, PAIR_KEYS, ROW_ENDS
from lantern_pl.signals import Hidden, Logits, TopK
from lantern_pl.tasks import Task
from lantern_pl.teachers import Teacher

_CPU = torch.device("cpu")
T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """A pair, and what is to be kept about it: what is there already for the same texts isn't asked for again."""

    pair: Pair
    example: Example | None
    wants_levels: bool

    @property
    def length(self) -> int:
        """In tokens, about."""
        return len(self.example.input_ids) if self.example else 1


@dataclass
class ShardArrays:
    """The arrays of a shard, and how many of everything they hold."""

    arrays: dict[str, Tensor]
    examples: int = 0
    tokens: int = 0
    pairs: int = 0


def plan(pairs: Sequence[Pair], examples: Sequence[Example] | None, levels: bool) -> list[Item]:
    """What to ask, pairs of the same job together, in an order that depends on the data alone and not on theirs: an
    interrupted run goes on with the shards that are left."""
    order = sorted(range(len(pairs)), key=lambda index: (pairs[index].job_id, pairs[index].pair_id, pair_key(pairs[index])))
    known: set[bytes] = set()

    def is_new(key: bytes) -> bool:
        before = len(known)
        known.add(key)
        return len(known) > before

    items = []
    for index in order:
        example = examples[index] if examples is not None else None
        if example is not None and not is_new(b"e" + example_key(example.input_ids, example.answer_start)):
            example = None
        wants_levels = levels and is_new(b"p" + pair_key(pairs[index]))
        if example is not None or wants_levels:
            items.append(Item(pairs[index], example, wants_levels))
    return items


class Recorder:
    """Turns items into shards.

    Args:
        teacher: who is asked.
        task: the question.
        featurizer: of the teacher's tokens; None where no token signals are wanted.
        form: how these are stored; None likewise.
        levels: whether level distributions are wanted.
        seed: of what is drawn.
        batch_size: items at once.
        device: where the teacher is.
    """

    def __init__(
        self,
        teacher: Teacher,
        task: Task,
        featurizer: DecoderFeaturizer | None,
        form: Format | None,
        levels: bool,
        seed: int,
        batch_size: int,
        device: torch.device = _CPU,
    ) -> None:
        self._teacher = teacher
        self._task = task
        self._featurizer = featurizer
        self._form = form
        self._levels_wanted = levels
        self._seed = seed
        self._batch_size = batch_size
        self._device = device
        self._teacher_was_checked = False

    def shard(self, items: Sequence[Item]) -> Iterator[tuple[int, ShardArrays | None]]:
        """Yields after each batch how many items it had; with the last, the whole shard."""
        tokens: list[_Recorded] = []
        levels: list[tuple[bytes, Tensor]] = []
        for start in range(0, len(items), self._batch_size):
            batch = items[start : start + self._batch_size]
            tokens += self._tokens([item.example for item in batch if item.example is not None])
            levels += self._levels([item.pair for item in batch if item.wants_levels])
            is_last = start + self._batch_size >= len(items)
            yield len(batch), self._joined(tokens, levels) if is_last else None

    @torch.no_grad()
    def _tokens(self, examples: Sequence[Example]) -> Iterator["_Recorded"]:
        if not examples or self._form is None or self._featurizer is None:
            return
        batch = self._featurizer.collate(examples).to(self._device)
        # To look at a head's every weight each time would take longer than all the rest.
        look = not self._teacher_was_checked
        signal = checked_signal(self._teacher, batch.tokens, len(batch.targets), look_at_values=look)
        self._teacher_was_checked = True
        ends = list(itertools.accumulate(len(example.input_ids) - example.answer_start for example in examples))
        rows = list(itertools.pairwise([0, *ends]))
        keys = [example_key(example.input_ids, example.answer_start) for example in examples]
        if any(array.per_entry for array in self._form.arrays().values()):
            parts = [signal.at(torch.arange(*bounds)) for bounds in rows]
            arrays = [self._encoded(part, key, [example]) for part, key, example in zip(parts, keys, examples, strict=True)]
        else:  # all at once: larger products are faster
            whole = self._encoded(signal, keys[0], examples)
            arrays = [{name: array[start:end] for name, array in whole.items()} for start, end in rows]
        for key, stored, (start, end) in zip(keys, arrays, rows, strict=True):
            yield _Recorded(key, stored, end - start)

    def _encoded(self, signal: Hidden | Logits | TopK, key: bytes, examples: Sequence[Example]) -> dict[str, Tensor]:
        assert self._form is not None
        seed = (int.from_bytes(key[:7], "little") + self._seed) % 2**63
        try:
            return self._form.encode(signal, seed)
        except UserError as error:
            about = ", ".join(repr(example.pair.pair_id) for example in examples)
            raise UserError(f"The teacher {origin(self._teacher)} gives {error}; it was about {about}.") from error

    def _levels(self, pairs: Sequence[Pair]) -> Iterator[tuple[bytes, Tensor]]:
        if pairs:
            probs = checked_level_probs(self._teacher, pairs, self._task).float().cpu()
            yield from zip(map(pair_key, pairs), probs, strict=True)

    def _joined(self, tokens: Sequence["_Recorded"], levels: Sequence[tuple[bytes, Tensor]]) -> ShardArrays:
        shard = ShardArrays({}, examples=len(tokens), tokens=sum(part.rows for part in tokens), pairs=len(levels))
        if self._form is not None:
            shard.arrays[EXAMPLE_KEYS] = _keys([part.key for part in tokens])
            shard.arrays[ROW_ENDS] = _ends([part.rows for part in tokens])
            for name, array in self._form.arrays().items():
                empty = torch.empty(0, *array.shape, dtype=array.dtype)
                shard.arrays[name] = torch.cat([empty, *(part.arrays[name] for part in tokens)])
                if array.per_entry:
                    shard.arrays[ENTRY_ENDS] = _ends([len(part.arrays[name]) for part in tokens])
        if self._levels_wanted:
            shard.arrays[PAIR_KEYS] = _keys([key for key, _ in levels])
            empty = torch.empty(0, len(self._task.levels))
            shard.arrays[LEVEL_PROBS] = torch.cat([empty, *(probs[None] for _, probs in levels)])
        return shard


def ready(teacher: Teacher) -> torch.device:
    """Where the teacher now is, loaded."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ask(teacher, lambda: teacher.to(device))
    return device


class ThisProcess:
    """Records with the teacher in this process."""

    def __init__(self, teacher: Teacher) -> None:
        self.device = ready(teacher)

    def once(self, work: Callable[[torch.device], T]) -> T:
        """What needs the loaded teacher, given its device."""
        return work(self.device)

    def record(
        self, make: Callable[[torch.device], Recorder], shards: Mapping[int, Sequence[Item]]
    ) -> Iterator[tuple[int, int, ShardArrays | None]]:
        """Yields after each batch the number of its shard and how many items it had; with a shard's last, all of it."""
        recorder = make(self.device)
        for number, items in shards.items():
            for done, made in recorder.shard(items):
                yield number, done, made


@dataclass(frozen=True)
class _Recorded:
    """The signal of one example: its key, its arrays, and its number of rows."""

    key: bytes
    arrays: dict[str, Tensor]
    rows: int


def _keys(keys: Sequence[bytes]) -> Tensor:
    return torch.tensor([list(key) for key in keys], dtype=torch.uint8).reshape(len(keys), KEY_BYTES)


def _ends(counts: Sequence[int]) -> Tensor:
    return torch.tensor(counts, dtype=torch.int64).cumsum(0)
