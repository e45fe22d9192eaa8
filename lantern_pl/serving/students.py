"""The students to serve, as their folders describe them, and how a pair becomes what a model takes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lantern_pl.data.featurize import DecoderFeaturizer, EncoderFeaturizer, Example
from lantern_pl.data.pair import Pair
from lantern_pl.data.truncation import fit_texts
from lantern_pl.errors import UserError
from lantern_pl.export.onnx_runtime import FILES, INTERFACE, onnx_file, read_interface
from lantern_pl.model_files import locate, read_manifest, weights_identity
from lantern_pl.tasks import Task
from lantern_pl.text import chat_prompt, load_tokenizer

# Tokens that cut texts may take more within the prompt than on their own.
_SLACK = 8


@dataclass(frozen=True)
class Student:
    """What the folder of a student says. `name`: its weights, with the format that runs them."""

    folder: str
    name: str
    task: Task
    max_length: int


def read_student(folder: str, kind: str, form: str = "torch") -> Student:
    """Read the folder of an encoder or decoder student. Raises UserError if it isn't one."""
    about = _interface(folder) or {}
    manifest = read_manifest(folder) or {}
    found = about.get("kind") or manifest.get("kind")
    if found is None:
        raise UserError(
            f"{folder!r} isn't a student's folder: it has neither manifest.json nor lantern.json. Give RUN/student of a run "
            "of `lantern fit`, or what `lantern export` wrote."
        )
    if found != kind:
        raise UserError(f"{folder!r} holds a student of kind {found!r}, not {kind!r}: give it as --{found}.")
    weights = weights_identity(folder)
    if form != "torch":
        onnx_file(Path(locate(folder)), FILES[form], weights)  # said now, and not by the process that would load it
    try:
        task = Task(**{**manifest.get("task", {}), **about.get("task", {})})
    except TypeError as error:
        raise UserError(f"{folder!r} holds a task that isn't known here ({error}): is it of a later release?") from error
    length = about.get("max_length") or manifest.get("data", {}).get("max_length")
    if not isinstance(length, int):
        raise UserError(f"{folder!r} doesn't say its max_length, in manifest.json under data or in lantern.json.")
    name = weights.removeprefix("sha256 ")
    return Student(folder, name if form == "torch" else f"{name}/{form}", task, length)


def _interface(folder: str) -> dict[str, Any] | None:
    path = Path(locate(folder))
    return read_interface(path) if (path / INTERFACE).is_file() else None


class EncoderInput:
    """Tokenizes pairs for an encoder, as in training."""

    def __init__(self, student: Student) -> None:
        self._featurizer = EncoderFeaturizer(load_tokenizer(student.folder), student.task, student.max_length)

    def __call__(self, pair: Pair) -> Example:
        return self._featurizer.encode(pair, supervised=False)


@dataclass(frozen=True)
class Prompt:
    """What a decoder is asked: the prompt's ids, the texts as they stand in it, and whether they were cut."""

    ids: list[int]
    text: str
    job_text: str
    candidate_text: str
    texts_cut: bool


class DecoderInput:
    """Puts pairs into the prompt of a decoder, cut to its length."""

    def __init__(self, student: Student) -> None:
        self._tokenizer = load_tokenizer(student.folder)
        self._task = student.task
        # Raises UserError where the length leaves no room for texts.
        overhead = len(DecoderFeaturizer(self._tokenizer, student.task, student.max_length).encode(_EMPTY, False).input_ids)
        self._budget = student.max_length - overhead - _SLACK

    def __call__(self, pair: Pair) -> Prompt:
        job, candidate, cut = fit_texts(pair.job_text, pair.candidate_text, self._budget, self._tokenizer)
        text = chat_prompt(self._tokenizer, self._task.render_prompt(job, candidate))
        return Prompt(self._tokenizer.encode(text, add_special_tokens=False), text, job, candidate, cut)


_EMPTY = Pair("", "", "", "", "")
