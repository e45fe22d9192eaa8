"""An exported encoder in ONNX Runtime. Needs onnxruntime, tokenizers and numpy; neither torch nor the rest of lantern-pl's
models is imported."""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lantern_pl.data.plain_texts import plain
from lantern_pl.data.truncation import fit_texts
from lantern_pl.errors import UserError

INTERFACE = "lantern.json"
"""What a caller must know of an exported student: its levels, its longest input, how a pair becomes tokens."""
SUMMARY = "export.json"
"""What was exported: the size and the sha256 of every file, and an encoder's speed and quality in each form."""
ONNX_FOLDER = "onnx"
MODEL, INT8 = "model.onnx", "model_int8.onnx"
FILES = {"onnx": MODEL, "int8": INT8}
"""The file of each form."""
# As `data.featurize.SHORTEST_TEXT`: a text cut shorter than this says nothing.
_SHORTEST_TEXT = 16


class HasTexts(Protocol):
    """A pair, as far as an encoder reads it; `lantern_pl.data.Pair` is one."""

    @property
    def job_text(self) -> str: ...

    @property
    def candidate_text(self) -> str: ...


@dataclass(frozen=True)
class Tokens:
    """One pair as the model takes it. `type_ids` is None for models that don't tell the two texts apart by it; `cut`:
    whether the texts were shortened to fit."""

    input_ids: list[int]
    type_ids: list[int] | None
    cut: bool = False


class OnnxEncoder:
    """Level probabilities of pairs from the folder that `lantern export` has written.

    Each pair goes through the model alone, so that its answer doesn't hang on who else asks: int8 takes the range of its
    activations from all that it computes at once. On a CPU that is also the fastest, since nothing is padded.

    Safe to call from several threads at once: ONNX Runtime's sessions are.

    Args:
        folder: what `lantern export` wrote.
        file: "model.onnx" (fp32) or "model_int8.onnx", in the folder's onnx/.
        threads: how many pairs to compute at the same time, each on one core; 0 takes as many as there are cores.

    Attributes:
        levels: their names, from the worst fit to the best; the columns of what `level_probs` returns.
        max_length: longest input in tokens; longer texts are cut as in training.

    Raises UserError where the folder lacks something, the model isn't the one that was exported, or onnxruntime isn't
    installed.
    """

    def __init__(self, folder: str | Path, file: str = MODEL, threads: int = 0) -> None:
        self.folder = Path(folder)
        about = read_interface(self.folder)
        if about["kind"] != "encoder":
            raise UserError(f"{str(folder)!r} holds a {about['kind']}: only encoders are exported to ONNX.")
        path = onnx_file(self.folder, file)
        self.levels: list[str] = about["levels"]
        self.max_length: int = about["max_length"]
        self._as_pair: bool = about["texts"] == "pair"
        self._tokenizer = _Tokenizer(self.folder / "tokenizer.json")
        self._overhead = len(self._encode("", "").ids)
        self._session = _session(path)
        self._pool = ThreadPoolExecutor(threads or _cores(), thread_name_prefix="onnx")
        self._inputs = {node.name for node in self._session.get_inputs()}

    def level_probs(self, pairs: Sequence[HasTexts]) -> np.ndarray:
        """Probabilities [B, K], float32, of the levels for each pair, in the order of the pairs."""
        return self.from_tokens([self.tokens(pair) for pair in pairs])

    def tokens(self, pair: HasTexts) -> Tokens:
        """A pair as tokens, at most `max_length`: the same ids as `data.featurize.EncoderFeaturizer` makes."""
        budget, cut = self.max_length - self._overhead, False
        if budget < 2 * _SHORTEST_TEXT:
            raise UserError(
                f"max_length in {self.folder / INTERFACE} is {self.max_length}, of which the two texts get {budget} tokens: "
                f"they need {2 * _SHORTEST_TEXT} or more."
            )
        encoded = self._encode(plain(pair.job_text, self._tokenizer), plain(pair.candidate_text, self._tokenizer))
        while len(encoded.ids) > self.max_length:
            job, candidate, cut = fit_texts(pair.job_text, pair.candidate_text, budget, self._tokenizer)  # type: ignore[arg-type]
            encoded = self._encode(job, candidate)
            budget -= max(0, len(encoded.ids) - self.max_length)
        return Tokens(encoded.ids, encoded.type_ids if "token_type_ids" in self._inputs else None, cut)

    def from_tokens(self, rows: Sequence[Tokens]) -> np.ndarray:
        """The same from `tokens`."""
        logits = list(self._pool.map(self._logits, rows))
        return _softmax(np.concatenate(logits)) if logits else np.empty((0, len(self.levels)), np.float32)

    def _encode(self, job: str, candidate: str) -> Any:
        if self._as_pair:
            return self._tokenizer.model.encode(job, candidate)
        return self._tokenizer.model.encode(f"Job:\n{job}\n\nCandidate:\n{candidate}")

    def _logits(self, row: Tokens) -> np.ndarray:
        """[1, K] of one pair."""
        inputs = {"input_ids": np.array([row.input_ids], np.int64)}
        inputs["attention_mask"] = np.ones_like(inputs["input_ids"])
        if "token_type_ids" in self._inputs:
            types = row.type_ids if row.type_ids is not None else [0] * len(row.input_ids)
            inputs["token_type_ids"] = np.array([types], np.int64)
        logits: np.ndarray = self._session.run(None, inputs)[0]
        return logits


class _Tokenizer:
    """A tokenizer.json with as much of transformers' interface as `fit_texts` asks for."""

    is_fast = True

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        self.model = Tokenizer.from_file(str(path))
        self.model.no_truncation()
        self.model.no_padding()

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        tokens: dict[int, Any] = self.model.get_added_tokens_decoder()
        return tokens

    def __call__(self, text: str, add_special_tokens: bool, **_: Any) -> dict[str, Any]:
        return {"offset_mapping": self.model.encode(text, add_special_tokens=add_special_tokens).offsets}


def read_interface(folder: Path) -> dict[str, Any]:
    """The lantern.json of an exported student. Raises UserError if there is none."""
    return _read(folder, INTERFACE)


def onnx_file(folder: Path, file: str, weights: str | None = None) -> Path:
    """An ONNX model of an exported encoder, by its name.

    Raises UserError where there is none, its sha256 isn't the one in export.json, or `weights`, which tell the student from
    others, aren't: `lantern serve` names the model by them.
    """
    path = folder / ONNX_FOLDER / file
    if not path.is_file():
        found = sorted(p.name for p in path.parent.glob("*.onnx"))
        raise UserError(
            f"{str(folder)!r} has no {ONNX_FOLDER}/{file}; it has: {', '.join(found) or 'no ONNX file'}. Give an encoder's "
            "folder that `lantern export` wrote with ONNX."
        )
    if (folder / SUMMARY).is_file():  # which an export writes last, once it has measured its models
        with path.open("rb") as model:
            digest = hashlib.file_digest(model, "sha256").hexdigest()
        summary = _read(folder, SUMMARY)
        listed = summary.get("files", {}).get(f"{ONNX_FOLDER}/{file}", {}).get("sha256")
        if digest != listed or weights not in (None, summary.get("weights")):
            raise UserError(
                f"{path} or the student's weights aren't those that {folder / SUMMARY} lists: they were changed. Export it "
                "anew."
            )
    return path


def _read(folder: Path, name: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{str(folder)!r} has no {name}: give a folder that `lantern export RUN --out {folder}` wrote."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"can't read {folder / name}: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{folder / name} isn't what `lantern export` writes: export it anew.")
    return found


def _cores() -> int:
    """That this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _session(path: Path) -> Any:
    """A session whose runs take one thread each: several short runs side by side waste less than one on several cores."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError('ONNX models run in onnxruntime, which isn\'t installed: pip install "lantern-pl[onnx]"') from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    probs: np.ndarray = shifted / shifted.sum(-1, keepdims=True)
    return probs
