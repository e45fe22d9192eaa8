"""How fast an encoder is in torch, ONNX and int8, and what each says, on the same pairs in the same minutes."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from rich.progress import track

from lantern_pl.data.featurize import EncoderFeaturizer
from lantern_pl.data.pair import Pair
from lantern_pl.evaluation.levels import annotated_levels, level_values
from lantern_pl.pair_classifier import PairClassifier
from lantern_pl.tasks import Task

BATCHES = (1, 4, 16, 32)
"""Pairs at once among which torch's best is looked for; ONNX Runtime takes them one by one."""
ROUNDS = 5
_TRIED = 64
"""Pairs that this is tried on."""
Probs = Callable[[Sequence[Pair]], np.ndarray]
Name = TypeVar("Name", str, int)


@dataclass(frozen=True)
class Measured:
    """One form of the model: pairs a second (tokenizing included), and its probabilities [P, K]."""

    pairs_per_second: float
    seconds: float
    probs: np.ndarray


def torch_probs(classifier: PairClassifier, featurizer: EncoderFeaturizer, size: int) -> Probs:
    """The student in torch, by batches of pairs of similar length."""

    @torch.inference_mode()
    def probs(pairs: Sequence[Pair]) -> np.ndarray:
        examples = [featurizer.encode(pair, supervised=False) for pair in pairs]
        found = np.empty((len(pairs), len(classifier.levels)), np.float32)
        by_length = sorted(range(len(examples)), key=lambda row: len(examples[row].input_ids))
        for start in range(0, len(examples), size):
            rows = by_length[start : start + size]
            batch = featurizer.collate([examples[row] for row in rows])
            found[rows] = classifier(batch.inputs).float().softmax(-1).numpy()
        return found

    return probs


def best_batch(classifier: PairClassifier, featurizer: EncoderFeaturizer, pairs: Sequence[Pair]) -> int:
    """The number of pairs at once with which torch is fastest: on a CPU a large batch may lose more by padding than it
    gains."""
    forms = {size: torch_probs(classifier, featurizer, size) for size in BATCHES}
    measured = measure(forms, pairs[:_TRIED], show=False, rounds=2)
    return max(forms, key=lambda size: measured[size].pairs_per_second)


def measure(forms: Mapping[Name, Probs], pairs: Sequence[Pair], show: bool, rounds: int = ROUNDS) -> dict[Name, Measured]:
    """Run all forms in turn, several times: medians, since other processes come and go. The first round doesn't count."""
    seconds: dict[Name, list[float]] = {name: [] for name in forms}
    said: dict[Name, np.ndarray] = {}
    turns = [(number, name) for number in range(rounds + 1) for name in forms]
    for number, name in track(turns, "Measuring", disable=not show):
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
