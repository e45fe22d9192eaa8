"""PairDataModule: files of pairs to leak-free splits to batches of similar length."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from rich.progress import track
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler

from lantern_pl.data.batching import EpochShuffle, LengthBucketBatches
from lantern_pl.data.featurize import Example, Featurizer
from lantern_pl.data.loader import ResumableBatches, ResumableLoader
from lantern_pl.data.pair import Pair
from lantern_pl.data.records import fingerprint, normalised, read_pairs
from lantern_pl.data.splits import split_pairs
from lantern_pl.errors import UserError
from lantern_pl.prediction.callback import predict_loader
from lantern_pl.prediction.input import data_files
from lantern_pl.tasks import Task

_JOB_FIT = Task()
_READ_AHEAD = ContextVar("read_ahead", default=True)


@contextmanager
def read_as_it_goes() -> Iterator[None]:
    """Data modules that are made in here don't read their pairs: prediction does so, shard by shard."""
    token = _READ_AHEAD.set(False)
    try:
        yield
    finally:
        _READ_AHEAD.reset(token)


class ExampleDataset(Dataset[Example]):
    """Examples in memory: token ids, and the pair that they came from."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


@dataclass
class Cut:
    """How many pairs of a split `max_length` has shortened."""

    pairs: int = 0
    texts: int = 0
    answers: int = 0


class PairDataModule(LightningDataModule):
    """(candidate, job) pairs from JSONL, Parquet or a `datasets` folder; see `lantern_pl.data.records` for the fields.

    One file is split by job and by candidate together, so that no job and no candidate of the validation or test split was
    seen in training.

    Args:
        path: the pairs to train on; validation and test pairs are split off unless they have files of their own.
        val_path: pairs to validate on, or null to split them off `path`.
        test_path: pairs to test on, or null to split them off `path`.
        val_fraction: share of `path` for validation if there is no val_path.
        test_fraction: share of `path` for the test if there is no test_path.
        split_seed: which jobs and candidates go into which split.
        job_text_field: which field is the job's text: job_text, or reduced_job_text for its requirements alone, as
            `lantern label` writes them.
        task: the question, its levels, and the form of the answer.
        max_length: longest example in tokens. Longer texts are cut, job and candidate alike, never the level.
        batch_size: pairs in a micro-batch, on each device.
        eval_batch_size: the same for validation, test and prediction.
        num_workers: processes that collate batches; 0 does it in the training process.
        shuffle_seed: order of the training pairs; a new one in each epoch.
    """

    def __init__(
        self,
        path: str,
        val_path: str | None = None,
        test_path: str | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        job_text_field: str = "job_text",
        task: Task = _JOB_FIT,
        max_length: int = 512,
        batch_size: int = 4,
        eval_batch_size: int = 8,
        num_workers: int = 0,
        shuffle_seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in {"max_length": max_length, "batch_size": batch_size, "eval_batch_size": eval_batch_size}.items():
            if value < 1:
                raise UserError(f"data.init_args.{name} is {value}: it must be at least 1.")
        self.paths = {"train": path, "val": val_path, "test": test_path}
        self.fractions = (val_fraction, test_fraction)
        self.split_seed = split_seed
        self.task = task
        self.max_length = max_length
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.shuffle_seed = shuffle_seed
        # Read here, not in setup: a bad file is found before any model is loaded.
        self.job_text_field = job_text_field
        self._pairs_of_path: list[Pair] = []
        if _READ_AHEAD.get():
            self._pairs_of_path = read_pairs(path, task, job_text_field)
        else:
            data_files(Path(path))
        self.pairs: dict[str, list[Pair]] = {}
        self.cuts: dict[str, Cut] = {}
        self._examples: dict[str, list[Example]] = {}
        self._featurizer: Featurizer[Any] | None = None

    def setup(self, stage: str) -> None:
        student: Any = self.trainer.lightning_module  # type: ignore[union-attr]
        self._featurizer = student.featurizer(self.task, self.max_length)
        if stage == "predict":
            return
        if not self.pairs:
            self.pairs = self.read_splits()
        for split in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}[stage]:
            if split not in self._examples:
                self._examples[split] = self._encode(split, stage)

    def read_splits(self) -> dict[str, list[Pair]]:
        """The pairs of train, val and test; without a trainer too."""
        val_path, test_path = self.paths["val"], self.paths["test"]
        val_fraction = 0.0 if val_path else self.fractions[0]
        test_fraction = 0.0 if test_path else self.fractions[1]
        splits = split_pairs(self._pairs_of_path, val_fraction, test_fraction, self.split_seed)
        pairs = {"train": list(splits.train), "val": list(splits.val), "test": list(splits.test)}
        for split, path in (("val", val_path), ("test", test_path)):
            if path:
                pairs[split] = read_pairs(path, self.task, self.job_text_field)
                _warn_of_shared(pairs[split], pairs["train"], split, path)
        counts = ", ".join(f"{len(rows)} {split}" for split, rows in pairs.items())
        dropped = f"; {len(splits.dropped)} left out, whose job or candidate is in another split" if splits.dropped else ""
        rank_zero_info(f"Pairs: {counts}{dropped}.")
        return pairs

    def _encode(self, split: str, stage: str) -> list[Example]:
        assert self._featurizer is not None
        pairs = self.pairs[split]
        if not pairs:
            raise UserError(
                f"There are no {split} pairs, and `lantern {stage}` needs some: set data.init_args.{split}_path or "
                f"{split}_fraction."
            )
        # A bar only where there is something to wait for.
        rows = track(pairs, f"Tokenizing {split} pairs") if len(pairs) > 2000 else pairs
        examples = [self._featurizer.encode(pair) for pair in rows]
        cut = Cut(pairs=len(pairs), texts=sum(e.texts_cut for e in examples), answers=sum(e.answer_cut for e in examples))
        self.cuts[split] = cut
        if cut.texts or cut.answers:
            ends = f", and the end of {cut.answers} explanations" if cut.answers else ""
            rank_zero_info(
                f"max_length {self.max_length} cut the texts of {cut.texts} of {cut.pairs} {split} pairs{ends}; "
                "every level is whole."
            )
        return examples

    def train_dataloader(self) -> DataLoader[Example]:
        shuffle = EpochShuffle(len(self._examples["train"]), self.shuffle_seed)
        batches = ResumableBatches(shuffle, self._batches("train", self.batch_size, shuffle))
        return self._dataloader("train", batches, ResumableLoader)

    def val_dataloader(self) -> DataLoader[Example]:
        return self._dataloader("val", self._batches("val", self.eval_batch_size))

    def test_dataloader(self) -> DataLoader[Example]:
        return self._dataloader("test", self._batches("test", self.eval_batch_size))

    def predict_dataloader(self) -> DataLoader[Any]:
        return predict_loader(self)

    def _batches(self, split: str, batch_size: int, order: Sampler[int] | None = None) -> LengthBucketBatches:
        assert self.trainer is not None
        examples = self._examples[split]
        return LengthBucketBatches(
            order or SequentialSampler(examples),
            lengths=[len(example.input_ids) for example in examples],
            batch_size=batch_size,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )

    def _dataloader(
        self, split: str, batches: Sampler[list[int]], kind: type[DataLoader[Any]] = DataLoader
    ) -> DataLoader[Example]:
        assert self._featurizer is not None
        return kind(
            ExampleDataset(self._examples[split]),
            batch_sampler=batches,
            collate_fn=self._featurizer.collate,
            num_workers=self.num_workers,
            # Of its own: else each new pass over the data draws from the generator that dropout draws from.
            generator=torch.Generator(),
        )

    def annotated_examples(self) -> list[Example]:
        """All examples that losses and figures are worked out on."""
        return [example for rows in self._examples.values() for example in rows]

    def fingerprints(self) -> dict[str, Any]:
        """Size and content hash of each split, for the manifest."""
        return {
            split: {"pairs": len(rows), "sha256": fingerprint(rows), **_cut(self.cuts.get(split))}
            for split, rows in self.pairs.items()
            if rows
        }


def _warn_of_shared(pairs: Sequence[Pair], training: Sequence[Pair], split: str, path: str) -> None:
    """Say how many pairs share a job or a candidate with the training pairs: by its text, or else by its id, which files
    that were numbered one by one have in common without meaning anything."""
    texts = set().union(*map(_texts, training))
    jobs, candidates = {pair.job_id for pair in training}, {pair.candidate_id for pair in training}
    same_text, same_id = 0, 0
    for pair in pairs:
        if not texts.isdisjoint(_texts(pair)):
            same_text += 1
        elif pair.job_id in jobs or pair.candidate_id in candidates:
            same_id += 1
    if same_text:
        rank_zero_warn(
            f"{same_text} of {len(pairs)} {split} pairs have a job's or a candidate's text that is also trained on: "
            f"figures on {path} will look better than they are."
        )
    if same_id:
        rank_zero_warn(
            f"{same_id} of {len(pairs)} {split} pairs have a job_id or candidate_id that is also trained on, with "
            f"other texts: if it means the same job or person, figures on {path} will look better than they are."
        )


def _texts(pair: Pair) -> set[tuple[str, str]]:
    return {("job", normalised(pair.job_text)), ("candidate", normalised(pair.candidate_text))}


def _cut(cut: Cut | None) -> dict[str, int]:
    return {} if cut is None else {"texts_cut": cut.texts, "explanations_cut": cut.answers}
