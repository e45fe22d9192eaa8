"""Predictions by the workers of a Ray cluster: each answers whole shards, and this process keeps them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import IterableDataset

from lantern_pl.errors import UserError
from lantern_pl.prediction.answers import Answer
from lantern_pl.prediction.loader import Portion, ShardBatches
from lantern_pl.scale.cluster import connected
from lantern_pl.scale.settings import RaySettings
from lantern_pl.tasks import Task


@dataclass(frozen=True)
class AnsweredShard(Portion):
    """All of a shard, which a worker has answered."""

    answers: Sequence[Answer] = ()

    def answered(self, answers: Callable[[Any], list[Answer]]) -> list[Answer]:
        return list(self.answers)


class AnsweredShards(IterableDataset[Portion]):
    """The shards of some batches, in the order in which workers have answered them.

    Args:
        trainer: whose student is asked, in whose precision.
        data: of that trainer.
        batches: what a single process would answer.
        settings: of the cluster.
    """

    def __init__(self, trainer: Trainer, data: Any, batches: ShardBatches, settings: RaySettings) -> None:
        if trainer.world_size > 1:
            raise UserError(
                f"prediction.engine ray shares the shards out among its workers, and the trainer has {trainer.world_size} "
                "devices: give trainer.devices: 1, and ray.workers."
            )
        self.trainer = trainer
        self.data = data
        self.batches = batches
        self.settings = settings

    def __len__(self) -> int:
        # Known, so that Lightning takes each as it comes, and doesn't wait for one more first.
        return len(self.batches.shards)

    def __iter__(self) -> Iterator[Portion]:
        if not self.batches.shards:
            return
        student = self.trainer.lightning_module
        accelerator = "auto" if self.settings.gpus_per_worker else "cpu"
        make = partial(
            ShardAnswers, student.to("cpu"), self.data.task, self.data.max_length, self.batches,
            str(self.trainer.precision), accelerator,
        )  # fmt: skip
        shards = iter(self.batches.shards)

        def take() -> tuple[str, int] | None:
            shard = next(shards, None)
            return None if shard is None else (str(shard), shard)

        with connected(self.settings) as cluster:
            for shard, (answers, rejects) in cluster.results(make, take):
                yield AnsweredShard(int(shard), [], None, rejects, answers=answers)


class ShardAnswers:
    """What a worker does: it answers as the trainer of a single process would."""

    def __init__(
        self, student: Any, task: Task, max_length: int, batches: ShardBatches, precision: str, accelerator: str
    ) -> None:
        from lantern_pl.progress import quiet_libraries

        quiet_libraries()
        self.student = student
        self.data = _ShardData(task, max_length)
        self.batches = batches
        kept: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        self.trainer = Trainer(
            accelerator=accelerator, devices=1, precision=precision, enable_progress_bar=False, **kept  # type: ignore[arg-type]
        )  # fmt: skip

    def __call__(self, shard: int) -> tuple[list[Answer], list[dict[str, Any]]]:
        """The answers to a shard's rows, and the rows that were left out."""
        self.data.portions = _Portions(self.batches, shard)
        answers: Any = self.trainer.predict(self.student, datamodule=self.data)
        return [answer for portion in answers for answer in portion], self.data.portions.rejects


class _ShardData(LightningDataModule):
    """What students ask their trainer's data for."""

    portions: "_Portions"

    def __init__(self, task: Task, max_length: int) -> None:
        super().__init__()
        self.task = task
        self.max_length = max_length

    def predict_dataloader(self) -> "_Portions":
        return self.portions


class _Portions:
    """The portions of one shard; notes the rows that were left out."""

    def __init__(self, batches: ShardBatches, shard: int) -> None:
        self._batches = ShardBatches(
            batches.source, [shard], batches.featurizer, batches.job_text_field, batches.batch_size, batches.on_bad_row
        )
        self.rejects: list[dict[str, Any]] = []

    def __iter__(self) -> Iterator[Portion]:
        for portion in self._batches:
            self.rejects += portion.rejects
            yield portion
