"""How fast an encoder is in torch, ONNX and int8, and what each says, on the same batches in the same minutes."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.progress import track

from lantern_pl.data.featurize import EncoderFeaturizer
from lantern_pl.data.pair import Pair
from lantern_pl.evaluation.levels import annotated_levels, level_values
from lantern_pl.export.onnx_runtime import OnnxEncoder
from lantern_pl.pair_classifier import PairClassifier
from lantern_pl.tasks import Task

BATCH = 32
ROUNDS = 5
Probs = Callable[[Sequence[Pair]], np.ndarray]


@dataclass(frozen=True)
class Measured:
    """One form of the model: pairs a second (tokenizing included), and its probabilities [P, K]."""

    pairs_per_second: float
    seconds: float
    probs: np.ndarray


def torch_probs(classifier: PairClassifier, featurizer: EncoderFeaturizer) -> Probs:
    """The student in torch, as `OnnxEncoder.level_probs` runs it: batches of pairs of similar length."""

    @torch.inference_mode()
    def probs(pairs: Sequence[Pair]) -> np.ndarray:
        examples = [featurizer.encode(pair, supervised=False) for pair in pairs]
        found = np.empty((len(pairs), len(classifier.levels)), np.float32)
        by_length = sorted(range(len(examples)), key=lambda row: len(examples[row].input_ids))
        for start in range(0, len(examples), BATCH):
            rows = by_length[start : start + BATCH]
            batch = featurizer.collate([examples[row] for row in rows])
            found[rows] = classifier(batch.inputs).float().softmax(-1).numpy()
        return found

    return probs


def onnx_probs(encoder: OnnxEncoder) -> Probs:
    """The same of an ONNX model."""
    return lambda pairs: encoder.level_probs(pairs, BATCH)


def measure(forms: Mapping[str, Probs], pairs: Sequence[Pair], show: bool) -> dict[str, Measured]:
    """Run all forms in turn, several times: medians, since other processes come and go. The first round doesn't count."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    said: dict[str, np.ndarray] = {}
    rounds = [(number, name) for number in range(ROUNDS + 1) for name in forms]
    for number, name in track(rounds, "Measuring", disable=not show):
        started = time.perf_counter()
        said[name] = forms[name](pairs)
        if number:
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    return {name: Measured(len(pairs) / median, median, said[name]) for name, median in medians.items()}


def quality(measured: Mapping[str, Measured], pairs: Sequence[Pair], task: Task) -> dict[str, dict[str, float]]:
    """Of each form: macro F1, accuracy and quadratic kappa where the pairs are annotated, and how often it says the same
    level as torch."""
    annotated = all(pair.level is not None or pair.level_probs is not None for pair in pairs)
    found: dict[str, dict[str, float]] = {}
    for name, each in measured.items():
        found[name] = {"same_level": float((each.probs.argmax(-1) == measured["torch"].probs.argmax(-1)).mean())}
        if annotated:
            values = level_values(torch.from_numpy(each.probs), annotated_levels(pairs, task), bins=10)
            found[name] |= {figure: values[figure] for figure in ("macro_f1", "accuracy", "quadratic_kappa")}
    return found
