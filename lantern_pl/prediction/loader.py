"""Batches of pairs of similar length, shard by shard, with the rows that they come from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lantern_pl.data.featurize import Batch, Example, Featurizer
from lantern_pl.data.records import ALIASES, pair_of
from lantern_pl.data.row_files import BadRow
from lantern_pl.errors import UserError
from lantern_pl.prediction.answers import Answer
from lantern_pl.prediction.input import Input, ShardReader

_TEXTS_AND_IDS = ("pair_id", "job_id", "candidate_id", "candidate_text")
_MAX_SHOWN = 5


@dataclass(frozen=True)
class Portion:
    """Some rows of one shard: a batch of them, or None where none is left to answer.

    rows: the place of each pair among the input's rows. rejects: rows of the shard that aren't pairs, with the reasons;
    problem: why the run can't go on.
    """

    shard: int
    rows: Sequence[int]
    batch: Batch | None
    rejects: list[dict[str, Any]] = field(default_factory=list)
    problem: str | None = None

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        return self if self.batch is None else replace(self, batch=self.batch.to(device, non_blocking))

    def answered(self, answers: Callable[[Any], list[Answer]]) -> list[Answer]:
        """A record of each row. Raises UserError where the run can't go on."""
        if self.problem is not None:
            # Said here: what a loader's worker process raises reaches a user with the traceback in it.
            raise UserError(self.problem)
        if self.batch is None:
            return []
        return [
            {"row": row, "pair_id": pair.pair_id, "job_id": pair.job_id, "candidate_id": pair.candidate_id, **answer}
            for row, pair, answer in zip(self.rows, self.batch.pairs, answers(self.batch), strict=True)
        ]


class ShardBatches(IterableDataset[Portion]):
    """The portions of some shards. Annotations aren't read: an answer can't depend on them.

    Args:
        source: the input.
        shards: which of its shards; several worker processes share them out.
        featurizer: of the student.
        job_text_field: which field is the job's text.
        batch_size: pairs of a batch. Batches are made of a shard's rows in the order of their length: they depend on the
            shard alone, so that answers don't depend on which other shards were done before, or by whom.
        on_bad_row: whether rows that aren't pairs end the run.
    """

    def __init__(
        self,
        source: Input,
        shards: Sequence[int],
        featurizer: Featurizer[Any],
        job_text_field: str,
        batch_size: int,
        on_bad_row: Literal["stop", "skip"],
    ) -> None:
        self.source = source
        self.shards = shards
        self.featurizer = featurizer
        self.job_text_field = job_text_field
        self.batch_size = batch_size
        self.on_bad_row = on_bad_row
        own = {*_TEXTS_AND_IDS, job_text_field}
        self.fields = own | {alias for name, alias in ALIASES.items() if name in own}

    def __iter__(self) -> Iterator[Portion]:
        worker = get_worker_info()
        shards = self.shards if worker is None else share(self.shards, worker.id, worker.num_workers)
        reader = ShardReader(self.source, self.fields)
        for shard in shards:
            yield from self._portions(shard, reader)

    def _portions(self, shard: int, reader: ShardReader) -> Iterator[Portion]:
        examples, rejects = self._examples(shard, reader)
        if rejects and self.on_bad_row == "stop":
            yield Portion(shard, [], None, problem=_problem(rejects))
            return
        # The longest first: what is too much for the memory shows at once.
        examples.sort(key=lambda example: -len(example[1].input_ids))
        for start in range(0, len(examples), self.batch_size):
            rows, batch = zip(*examples[start : start + self.batch_size], strict=True)
            yield Portion(shard, rows, self.featurizer.collate(batch), rejects if start == 0 else [])
        if not examples:
            yield Portion(shard, [], None, rejects)

    def _examples(self, shard: int, reader: ShardReader) -> tuple[list[tuple[int, Example]], list[dict[str, Any]]]:
        examples, rejects = [], []
        first, _ = self.source.bounds(shard)
        for row, (place, value) in enumerate(reader.rows(shard), start=first):
            try:
                if isinstance(value, BadRow):
                    raise value
                if isinstance(value, dict):
                    value = {name: each for name, each in value.items() if name in self.fields}
                pair = pair_of(value, self.featurizer.task, self.job_text_field)
            except BadRow as error:
                rejects.append({"place": place, "row": row, "reason": str(error)})
                continue
            examples.append((row, self.featurizer.encode(pair, supervised=False)))
        return examples, rejects


def shard_loader(batches: IterableDataset[Portion], num_workers: int) -> DataLoader[Portion]:
    """The portions as Lightning wants them."""
    return DataLoader(batches, batch_size=None, num_workers=num_workers, collate_fn=_as_it_is)  # type: ignore[arg-type]


def share(shards: Sequence[int], number: int, count: int) -> Sequence[int]:
    """The part of the shards for one of `count`: neighbours, which are read without a gap."""
    return shards[number * len(shards) // count : (number + 1) * len(shards) // count]


def _as_it_is(portion: Portion) -> Portion:
    return portion


def _problem(rejects: Sequence[dict[str, Any]]) -> str:
    shown = "\n  ".join(f"{reject['place']}: {reject['reason']}" for reject in rejects[:_MAX_SHOWN])
    more = f"\n  and {len(rejects) - _MAX_SHOWN} more" if len(rejects) > _MAX_SHOWN else ""
    return (
        f"{len(rejects)} of the rows can't be read:\n  {shown}{more}\nPut them right, or leave them out by "
        "--prediction.on_bad_row skip, which notes them. What was answered before stays."
    )
