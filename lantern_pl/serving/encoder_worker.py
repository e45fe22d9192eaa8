"""The encoder in a worker process: batches of tokenized pairs to probabilities of levels."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from litserve import LitAPI

from lantern_pl.serving.config import EncoderFormat
from lantern_pl.serving.errors import place_of
from lantern_pl.serving.workers import BatchLoop, start_worker

Row = tuple[list[int], list[int] | None]
"""One pair: its token ids, and its token types where the model has them."""
Probs = Callable[[Sequence[Row]], list[list[float]]]

# Rows go through the model together if none is longer than this times the shortest: computing padding takes as long as
# computing texts.
_STRETCH = 1.25
# On a GPU few rows take about as long as one, so that padding costs less than splitting does.
_LEAST_ROWS = {"cpu": 1, "cuda": 16}
FAILED = "failed"
"""What comes back in place of probabilities where the model couldn't be run on a row."""


class EncoderWorker(LitAPI):
    """Answers /fit.

    A batch can't fail because of one of its rows: texts were checked and tokenized before they came here, and where the
    model fails on several rows, it is run on each alone.
    """

    def __init__(self, folder: str, form: EncoderFormat, threads: int, max_batch_size: int, batch_timeout: float) -> None:
        super().__init__(max_batch_size=max_batch_size, batch_timeout=batch_timeout, api_path="/fit", loop=BatchLoop())
        self.folder = folder
        self.form = form
        self.threads = threads

    def setup(self, device: str) -> None:
        start_worker()
        load = _torch_model if self.form == "torch" else _onnx_model
        self.probs = load(self.folder, self.form, device, self.threads)

    def predict(self, rows: Sequence[Row]) -> list[tuple[list[float] | str, int]]:
        """Probabilities of each row, or `FAILED`, with the number of rows that came together."""
        return [(answer, len(rows)) for answer in self._run(rows)]

    def _run(self, rows: Sequence[Row]) -> list[Any]:
        try:
            return self.probs(rows)
        except Exception as error:
            print(f"/fit: {place_of(error)}, on {len(rows)} pairs", file=sys.stderr, flush=True)
            return [FAILED] if len(rows) == 1 else [self._run([row])[0] for row in rows]


def groups_by_length(lengths: Sequence[int], least: int) -> list[list[int]]:
    """Row numbers in groups of similar lengths, each of at least `least` rows but for the last."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not groups or (lengths[row] > _STRETCH * lengths[groups[-1][0]] and len(groups[-1]) >= least):
            groups.append([])
        groups[-1].append(row)
    return groups


def _torch_model(folder: str, form: str, device: str, threads: int) -> Probs:
    import torch

    from lantern_pl.data.featurize import EncoderFeaturizer, Example
    from lantern_pl.data.pair import Pair
    from lantern_pl.pair_classifier import load_classifier
    from lantern_pl.tasks import Task
    from lantern_pl.text import load_tokenizer

    if threads:
        torch.set_num_threads(threads)
    classifier = load_classifier(folder).requires_grad_(False).eval().to(device)
    featurizer = EncoderFeaturizer(load_tokenizer(folder), Task(levels=classifier.levels), 0)
    nobody = Pair("", "", "", "", "")
    least = _LEAST_ROWS[device.partition(":")[0]]

    @torch.inference_mode()
    def probs(rows: Sequence[Row]) -> list[list[float]]:
        examples = [Example(nobody, ids, len(ids), token_type_ids=types) for ids, types in rows]
        found = torch.empty(len(rows), len(classifier.levels))
        for group in groups_by_length([len(ids) for ids, _ in rows], least):
            batch = featurizer.collate([examples[row] for row in group]).to(torch.device(device))
            found[group] = classifier(batch.inputs).float().softmax(-1).cpu()
        return found.tolist()

    return probs


def _onnx_model(folder: str, form: str, device: str, threads: int) -> Probs:
    from lantern_pl.export.onnx_runtime import FILES, OnnxEncoder, Tokens

    encoder = OnnxEncoder(folder, FILES[form], threads)
    return lambda rows: encoder.from_tokens([Tokens(*row) for row in rows]).tolist()
