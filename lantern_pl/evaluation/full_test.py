"""`lantern test` after the loss: the saved student, its teacher and a student without one, asked the same and compared.

Each of them is a teacher in the sense of the contract, the student read back from a folder: what is measured is what is
saved.
"""

import random
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from rich.progress import track
from torch import Tensor

from lantern_pl.data.pair import Pair
from lantern_pl.data.pair_data import PairDataModule
from lantern_pl.data.records import fingerprint
from lantern_pl.errors import UserError
from lantern_pl.evaluation import levels
from lantern_pl.evaluation.asking import Written, about, answers_of, level_probs_of
from lantern_pl.evaluation.bootstrap import Bootstrap, Estimate, drawn_of, mean, units_of
from lantern_pl.evaluation.comparison import console_of
from lantern_pl.evaluation.explanation_checks import ExplanationCheck
from lantern_pl.evaluation.explanations import check_all, explanation_statistics
from lantern_pl.evaluation.figure_files import ANSWERS, write_answers, write_figures
from lantern_pl.evaluation.figure_tables import report
from lantern_pl.evaluation.judge import judge
from lantern_pl.evaluation.retention import retention
from lantern_pl.evaluation.settings import Evaluation
from lantern_pl.evaluation.token_divergence import Bar, token_figures
from lantern_pl.plugin_checks import ask, check_teacher
from lantern_pl.run_folder import FIGURES, move_aside
from lantern_pl.students.decoder import DecoderStudent
from lantern_pl.students.student import Student
from lantern_pl.tasks import Task
from lantern_pl.teachers.adapter_off import SharedBaseTeacher
from lantern_pl.teachers.classifier import EncoderTeacher
from lantern_pl.teachers.contract import Assignment, Teacher
from lantern_pl.teachers.local_model import HFTeacher
from lantern_pl.text import template_hash

FORMAT = 1
STUDENT, TEACHER, SFT = "student", "teacher", "sft"


@dataclass
class Asked:
    """What a model has said: level distributions [P, K] of all pairs, and answers, with checks, about those to explain."""

    about: str
    probs: Tensor | None = None
    answers: list[Written] | None = None
    checks: list[ExplanationCheck] = field(default_factory=list)
    figures: dict[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True)
class Others:
    """The models that a student is held against, opened before the test begins, so that a wrong folder is found then."""

    sft: Teacher | None
    encoder: EncoderTeacher | None


def open_others(settings: Evaluation, student: Student, data: PairDataModule) -> Others:
    """Open the folders of the settings. Raises UserError for one that isn't a student of the kind that is needed."""
    for model in (settings.teacher, settings.judge):
        if model is not None:
            check_teacher(model)
    sft = None if settings.sft is None else _read_student(student.kind, _student_folder(settings.sft), data)
    if settings.encoder is None or student.kind == "encoder":
        return Others(sft, None)
    folder = _student_folder(settings.encoder)
    encoder = EncoderTeacher(folder)  # whose texts are as long as it was trained with, and not as a decoder's
    if encoder.classifier.levels != data.task.levels:
        raise UserError(
            f"evaluation.encoder is {settings.encoder!r}, whose levels are {encoder.classifier.levels}; the task's are "
            f"{data.task.levels}. Give an encoder of the same task."
        )
    return Others(sft, encoder)


def _student_folder(path: str) -> str:
    inner = Path(path) / "student"
    return str(inner) if inner.is_dir() else path


def _read_student(kind: str, folder: str, data: PairDataModule) -> Teacher:
    if kind == "encoder":
        return EncoderTeacher(folder, data.max_length)
    student = HFTeacher(folder)
    # Its texts are cut as those of the teacher that it's held against.
    student.accept(Assignment("score_tokens", [], data.task, data.max_length, "", template_hash(student.tokenizer)))
    return student


class FullTest:
    """One evaluation of a student on test pairs.

    Args:
        student: with its weights and, if it has one, its teacher.
        data: what the pairs are of.
        pairs: the test pairs, or those that the test loop has seen.
        settings, others: what to measure.
        device: where models run.
        bars: whether to show progress.
    """

    def __init__(
        self,
        student: Student,
        data: PairDataModule,
        pairs: Sequence[Pair],
        settings: Evaluation,
        others: Others,
        device: torch.device,
        bars: bool,
    ) -> None:
        self.student = student
        self.data = data
        self.task: Task = data.task
        self.pairs = list(pairs)
        self.settings = settings
        self.others = others
        self.device = device
        self.bars = bars
        self.bootstrap = Bootstrap(settings.bootstrap, settings.seed)
        self.right = levels.annotated_levels(self.pairs, self.task)
        with_text = [pair for pair in self.pairs if pair.level is not None and pair.explanation]
        count = 0
        if isinstance(student, DecoderStudent):
            count = min(settings.explain_pairs, len(with_text))
            self.limit = settings.max_new_tokens or student.max_new_tokens
        # Drawn, since files are sorted by job; in the order of the file, so that samples are of several models alike.
        chosen = sorted(random.Random(settings.seed).sample(range(len(with_text)), count))
        self.explained = [with_text[at] for at in chosen]

    def run(self, folder: Path) -> tuple[dict[str, Any], dict[str, Asked]]:
        """Ask all models and work out the figures: what test.json holds, and what was said. `folder` takes the student's
        weights for that time."""
        began = time.perf_counter()
        asked: dict[str, Asked] = {}
        teacher = (self.settings.teacher or getattr(self.student, "teacher", None)) if self.settings.ask_teacher else None
        if isinstance(teacher, SharedBaseTeacher):
            self.student.to(self.device)  # whose model it is; the trainer has taken it off the device
        if teacher is not None:
            ask(teacher, lambda: teacher.to(self.device))
        with tempfile.TemporaryDirectory(dir=folder, prefix=".student-") as saved:
            self.student.write(Path(saved))
            written = _read_student(self.student.kind, saved, self.data)
            asked[STUDENT] = self._ask(STUDENT, written, teacher)
            source = "" if self.student.checkpoint_steps is not None else ", without a checkpoint"
            asked[STUDENT].about = about(written, f"{folder}, {self.student.kind}{source}")
        if teacher is not None:
            asked[TEACHER] = self._ask(TEACHER, teacher, None)
        if self.others.sft is not None:
            asked[SFT] = self._ask(SFT, self.others.sft, teacher)
        figures = {name: said.figures for name, said in asked.items()}
        found = {
            "format": FORMAT,
            "kind": self.student.kind,
            "levels": self.task.levels,
            "pairs": len(self.pairs),
            "data": {
                "path": self.data.paths["test"] or self.data.paths["train"],
                "sha256": fingerprint(self.pairs),
                "jobs": len({pair.job_id for pair in self.pairs}),
                "drawn": drawn_of(self.pairs),
                "explained": len(self.explained),
            },
            "loss": dict(self.student.metrics),
            "settings": self._settings(),
            "models": {name: self._model(said) for name, said in asked.items()},
            "retention": retention(figures[STUDENT], figures.get(TEACHER), figures.get(SFT)),
            "samples": self._samples(asked),
            "seconds": round(time.perf_counter() - began, 1),
        }
        return found, asked

    def judged(self, asked: Mapping[str, Asked]) -> dict[str, Any] | None:
        """What the judge says of the student's texts and the teacher's, else those of the student without it, else the
        annotations; None without a judge or texts. A judge that can't be asked has `failed`: all else stays."""
        said = asked[STUDENT].answers
        if self.settings.judge is None or not said:
            return None
        other = next((name for name in (TEACHER, SFT) if name in asked and asked[name].answers), None)
        texts = (
            [answer.text for answer in asked[other].answers or []]
            if other is not None
            else [self.task.render_answer(pair.level or "", pair.explanation or "") for pair in self.explained]
        )
        by = {"judge": about(self.settings.judge), "cache_key": self.settings.judge.cache_key()}
        try:
            found = judge(
                self.settings.judge,
                self.explained,
                [answer.text for answer in said],
                texts,
                other or "annotation",
                self.bootstrap,
                self._bar("judge"),
            )
        except UserError as error:
            return {"against": other or "annotation", "failed": str(error), **by}
        return {**found, **by}

    # Asking

    def _ask(self, name: str, model: Teacher, teacher: Teacher | None) -> Asked:
        model = ask(model, lambda: model.to(self.device))
        batch, bar = self.data.eval_batch_size, self._bar(name)
        said = Asked(about(model))
        if "level_probs" in model.capabilities:
            said.probs = level_probs_of(model, self.pairs, self.task, batch, bar)
            bins = self.settings.bins
            said.figures |= levels.level_estimates(said.probs, self.right, bins, self.bootstrap, self._units(self.pairs))
        if self.student.kind == "encoder" or not self.explained:
            return said
        if "annotate" in model.capabilities:
            said.answers = answers_of(model, self.explained, self.task, self.data.max_length, self.limit, batch, bar)
            said.checks = check_all(said.answers, self.explained, self.task)
            statistics = explanation_statistics(said.answers, said.checks, self.explained, self.encoder_levels)
            said.figures |= self.bootstrap.estimates(statistics, self._units(self.explained))
        tokens = token_figures(model, teacher, self.explained, self.task, self.data.max_length, self.device, bar)
        counts = tokens.pop("tokens", None)
        statistics = {figure: mean(values, counts) for figure, values in tokens.items()}
        said.figures |= self.bootstrap.estimates(statistics, self._units(self.explained))
        return said

    @cached_property
    def encoder_levels(self) -> list[str] | None:
        """What the encoder says of the pairs to explain, to hold the levels in the texts against; asked once."""
        if self.others.encoder is None:
            return None
        encoder = self.others.encoder.to(self.device)
        probs = level_probs_of(encoder, self.explained, self.task, self.data.eval_batch_size, self._bar("encoder"))
        return [self.task.levels[best] for best in probs.argmax(-1).tolist()]

    def _units(self, pairs: Sequence[Pair]) -> list[str]:
        return units_of(pairs, drawn_of(self.pairs))

    def _bar(self, name: str) -> Bar:
        def bar(rows: Sequence[Any], what: str) -> Iterable[Any]:
            return track(rows, f"{name}: {what}", disable=not self.bars)

        return bar

    # What is written

    def _settings(self) -> dict[str, Any]:
        settings = self.settings
        values = {name: getattr(settings, name) for name in settings.__dataclass_fields__}
        return {name: value.identity() if isinstance(value, Teacher) else value for name, value in values.items()}

    def _model(self, said: Asked) -> dict[str, Any]:
        found: dict[str, Any] = {
            "about": said.about,
            "figures": {name: figure.as_json() for name, figure in said.figures.items()},
        }
        if said.probs is not None:
            each = levels.of_each_level(said.probs, self.right, self.task.levels, self.bootstrap, self._units(self.pairs))
            found["per_level"] = {
                level: {figure: value.as_json() for figure, value in figures.items()} for level, figures in each.items()
            }
            found["confusion"] = levels.confusion_matrix(said.probs, self.right)
            found["reliability"] = levels.reliability(said.probs, self.right, self.settings.bins)
        return found

    def _samples(self, asked: Mapping[str, Asked]) -> list[dict[str, Any]]:
        shown = (self.explained or self.pairs)[: self.settings.samples]
        rows = {pair.pair_id: row for row, pair in enumerate(self.pairs)}
        return [
            {
                "pair_id": pair.pair_id,
                "job_text": pair.job_text,
                "candidate_text": pair.candidate_text,
                "annotation": {"level": pair.level, "explanation": pair.explanation},
                "answers": {
                    name: text
                    for name, said in asked.items()
                    if (text := self._said(said, rows[pair.pair_id], at if self.explained else None)) is not None
                },
            }
            for at, pair in enumerate(shown)
        ]

    def _said(self, said: Asked, row: int, explained: int | None) -> str | None:
        """A model's answer as a text; its level and how sure it is of it where it writes none."""
        if said.answers is not None and explained is not None:
            return said.answers[explained].text
        if said.probs is None:
            return None
        best = int(said.probs[row].argmax())
        return f"{self.task.levels[best]} ({float(said.probs[row, best]):.2f})"


class SeenPairs(Callback):
    """The pairs that the test loop has seen: all of the test split, unless trainer.limit_test_batches says fewer."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._seen |= {pair.pair_id for pair in batch.pairs}

    def of(self, data: PairDataModule, ranks: int) -> list[Pair]:
        """Them, in the order of the data; with several ranks, of which each has seen its share, all of the split."""
        return [pair for pair in data.pairs["test"] if ranks > 1 or pair.pair_id in self._seen]


def test_fully(
    trainer: Trainer,
    student: Student,
    data: PairDataModule,
    settings: Evaluation,
    others: Others,
    seen: SeenPairs,
    run: Path,
) -> None:
    """Measure, print, and write test.json and the answers into the run's folder. Earlier ones are moved aside."""
    pairs = seen.of(data, trainer.world_size)
    bars = trainer.progress_bar_callback is not None
    test = FullTest(student, data, pairs, settings, others, trainer.strategy.root_device, bars)
    run.mkdir(parents=True, exist_ok=True)
    found, asked = test.run(run)
    # The judge comes last, once what others have said is safe: it may be far away, and may fail.
    write_answers(test.pairs, test.right.tolist(), test.explained, asked, data.task, _new(run / ANSWERS))
    if verdict := test.judged(asked):
        found["judge"] = verdict
    write_figures(found, _new(run / FIGURES))
    console_of(trainer).print(report(found))
    rank_zero_info(f"The figures are in {run / FIGURES}, the answers in {run / ANSWERS}.")


def _new(path: Path) -> Path:
    if path.exists():
        move_aside(path)
    return path
