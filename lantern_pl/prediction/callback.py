"""Predictions: keeps what a student answers in `trainer.predict`, shard by shard."""

import hashlib
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_info
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.progress import TimeRemainingColumn as TimeLeft
from rich.text import Text
from torch import nn

from lantern_pl.errors import UserError
from lantern_pl.prediction.answers import Answer
from lantern_pl.prediction.folder import REJECTS, PredictionFolder, schema, table_of
from lantern_pl.prediction.input import Input, scan
from lantern_pl.prediction.loader import Portion, ShardBatches, shard_loader, share
from lantern_pl.prediction.settings import PredictionSettings
from lantern_pl.stopping import Stopped
from lantern_pl.text import fingerprint, template_hash

_HASHING_IS_SLOW = 1 << 30
"""Bytes of input above which a bar shows how far its reading through has come."""


class Predictions(Callback):
    """Writes the answers of `trainer.predict` into a folder, and leaves out what is there already.

    Args:
        settings: what is written where.
        folder: where, if the settings don't say.
        show: whether to show a progress bar.
    """

    def __init__(self, settings: PredictionSettings, folder: Path, show: bool = True) -> None:
        self.settings = settings
        self.path = Path(settings.out) if settings.out is not None else folder
        self.show = show
        self.folder: PredictionFolder | None = None
        self._bar: Progress | None = None
        self._answers: dict[int, list[Answer]] = defaultdict(list)
        self._rejects: dict[int, list[dict[str, Any]]] = defaultdict(list)
        self._answered = 0
        self._began = 0.0

    def left(self, trainer: Trainer, student: Any, data: Any, source: Input) -> list[int]:
        """The shards that aren't answered yet. Opens the folder. Raises UserError where it holds something else."""
        if trainer.limit_predict_batches != 1.0:
            raise UserError("trainer.limit_predict_batches would cut a shard apart: give --prediction.limit, in rows.")
        bounds = [source.bounds(shard) for shard in range(len(source.starts))]
        made_from = _made_from(trainer, student, data, source) if trainer.is_global_zero else {}
        self.folder = PredictionFolder(self.path, str(source.path), made_from, bounds)
        self._columns = schema(student.kind, data.task.levels)
        left, damaged = _by_first(trainer, self.folder.open)
        for said in damaged:
            rank_zero_info(said)
        if len(left) < len(bounds):
            rank_zero_info(f"{len(bounds) - len(left)} of {len(bounds)} shards are in {self.path} already.")
        own = share(left, trainer.global_rank, trainer.world_size)
        self._own_rows = sum(last - first for first, last in (bounds[shard] for shard in own))
        return left

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            # Between batches or in one: only whole shards count. Lightning, which goes on at SIGTERM, isn't asked, and puts
            # back what was there before.
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # a shell ignores SIGINT for its jobs in the background
                    signal.signal(number, _stop)
        self._began = time.perf_counter()
        self._answered = 0
        if self.show and trainer.is_global_zero:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeLeft())
            self._bar = Progress(*columns, speed_estimate_period=60)
            others = f" (on 1 of {trainer.world_size} devices)" if trainer.world_size > 1 else ""
            self._task = self._bar.add_task(f"Answering pairs{others}", total=self._own_rows)
            self._bar.start()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Portion,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert self.folder is not None
        shard = batch.shard
        answers, rejects = self._answers[shard], self._rejects[shard]
        answers += outputs
        rejects += batch.rejects
        first, last = self.folder.bounds[shard]
        if len(answers) + len(rejects) == last - first:
            self.folder.add(trainer.global_rank, shard, table_of(answers, self._columns), rejects)
            del self._answers[shard], self._rejects[shard]
        self._answered += len(outputs)
        if self._bar is not None:
            self._bar.advance(self._task, len(outputs) + len(batch.rejects))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.folder is not None
        self._stop_bar()
        trainer.strategy.barrier()
        seconds = time.perf_counter() - self._began
        count = trainer.strategy.reduce(torch.tensor(self._answered, device=pl_module.device), reduce_op="sum")
        if trainer.is_global_zero:
            total, rejected = self.folder.finish()
            speed = f", {int(count) / seconds:.1f} pairs/s" if int(count) else ""
            out = f" {rejected} rows were left out: see {REJECTS} there." if rejected else ""
            rank_zero_info(f"{total} answers are in {self.path} ({len(self.folder.bounds)} shards{speed}).{out}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop_bar()
        if isinstance(exception, Stopped):
            rank_zero_info(f"Stopped. Whole shards in {self.path} stay: the same command goes on from there.")
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            launcher.kill(signal.SIGTERM)  # the other processes, which would wait for this one

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def predict_loader(data: Any) -> Any:
    """What a PairDataModule's trainer predicts from: all of its input, or what the trainer's Predictions lacks."""
    trainer = data.trainer
    student = trainer.lightning_module
    keeper = next((callback for callback in trainer.callbacks if isinstance(callback, Predictions)), None)
    settings = PredictionSettings() if keeper is None else keeper.settings
    source = _by_first(trainer, lambda: _scan(Path(data.paths["train"]), settings, keeper is not None and keeper.show))
    left = list(range(len(source.starts))) if keeper is None else keeper.left(trainer, student, data, source)
    batches = ShardBatches(
        source,
        share(left, trainer.global_rank, trainer.world_size),
        student.featurizer(data.task, data.max_length),
        data.job_text_field,
        data.eval_batch_size,
        settings.on_bad_row,
    )
    if settings.engine == "ray":
        from lantern_pl.prediction.on_ray import AnsweredShards

        return shard_loader(AnsweredShards(trainer, data, batches, settings.ray), num_workers=0)
    return shard_loader(batches, data.num_workers)


def _scan(path: Path, settings: PredictionSettings, show: bool) -> Input:
    parts = path.rglob("*") if path.is_dir() else [path]
    size = sum(part.stat().st_size for part in parts if part.is_file())
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeLeft())
    with Progress(*columns, disable=not (show and size > _HASHING_IS_SLOW)) as bar:
        task = bar.add_task("Reading through the pairs", total=size)
        return scan(path, settings.shard_rows, settings.limit, lambda read: bar.advance(task, read))


def _by_first(trainer: Trainer, work: Callable[[], Any]) -> Any:
    """What the first process works out, in all of them; also where that is a UserError."""
    made: Any = None
    if trainer.is_global_zero:
        try:
            made = work()
        except UserError as error:
            made = error
    made = trainer.strategy.broadcast(made)
    if isinstance(made, UserError):
        if trainer.is_global_zero:
            raise made
        raise SystemExit(2)  # it's said once
    return made


def _made_from(trainer: Trainer, student: Any, data: Any, source: Input) -> dict[str, Any]:
    """All that answers depend on, as JSON values."""
    return {
        "input": {"rows": source.rows, "bytes": sum(file.bytes for file in source.files), "sha256": source.sha256},
        "student": {
            "kind": student.kind,
            "weights": weights_digest(student.lm if student.kind == "decoder" else student.classifier),
            "tokenizer": fingerprint(student.tokenizer),
            "chat_template": template_hash(student.tokenizer),
        },
        "task": asdict(data.task),
        "settings": {
            "job_text_field": data.job_text_field,
            "max_length": data.max_length,
            "max_new_tokens": student.max_new_tokens if student.kind == "decoder" else None,
            "batch_size": data.eval_batch_size,
            "shard_rows": source.shard_rows,
            "precision": str(trainer.precision),
        },
    }


@torch.no_grad()
def weights_digest(module: nn.Module) -> str:
    """What tells a model's weights from others: a hash of their names and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return f"sha256 {digest.hexdigest()[:16]}"


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if not task.speed else f"{task.speed:.1f} rows/s")
