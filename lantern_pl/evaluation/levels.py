"""Figures of level distributions against the annotated levels.

The figures are those of torchmetrics, where it has them. Their resamples are worked out for all at once, from each pair's
weight in each of them.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_auroc,
    multiclass_calibration_error,
    multiclass_cohen_kappa,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from lantern_pl.data.pair import Pair
from lantern_pl.errors import UserError
from lantern_pl.evaluation.bootstrap import Bootstrap, Estimate, Floats, Statistic, mean, ratio
from lantern_pl.tasks import Task

Ints = NDArray[np.int64]


def annotated_levels(pairs: Sequence[Pair], task: Task) -> Tensor:
    """Index [P] of each pair's level; of a pair with votes alone, of the most frequent one. Raises UserError for neither."""
    found = []
    for pair in pairs:
        if pair.level is None and pair.level_probs is None:
            raise UserError(f"Pair {pair.pair_id!r} has no level: what is right isn't known. Annotate the pairs first.")
        probs = pair.level_probs or ()
        found.append(task.levels.index(pair.level) if pair.level is not None else probs.index(max(probs)))
    return torch.tensor(found, dtype=torch.long)


def level_values(probs: Tensor, right: Tensor, bins: int) -> dict[str, float]:
    """The figures of level probabilities [P, K] for annotated levels [P], P > 0; NaN where one isn't defined.

    auroc: one level against the rest, mean over the levels for which there are pairs of both kinds. ece: mean distance of
    confidence and accuracy over equal bins of the top level's probability. brier: Σ (p − y)² over levels, 0 to 2, mean over
    pairs.
    """
    levels, chosen = probs.shape[1], probs.argmax(-1)
    return {
        "accuracy": float(multiclass_accuracy(chosen, right, levels, average="micro")),
        "macro_f1": float(multiclass_f1_score(chosen, right, levels, average="macro")),
        "quadratic_kappa": float(multiclass_cohen_kappa(chosen, right, levels, weights="quadratic")),
        "auroc": _auroc(probs, right),
        "ece": float(multiclass_calibration_error(probs.clamp(0, 1), right, levels, n_bins=bins, norm="l1")),
        "brier": float(_brier(probs, right).mean()),
    }


def _auroc(probs: Tensor, right: Tensor) -> float:
    present = right.bincount(minlength=probs.shape[1])
    # torchmetrics has 0 for a level that no pair or every pair has: there's nothing to tell apart, and it's left out.
    told_apart = (present > 0) & (present < len(right))
    if not told_apart.any():
        return float("nan")
    return float(_quiet_auroc(probs, right)[told_apart].mean())


def _quiet_auroc(probs: Tensor, right: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the levels that are left out
        found: Any = multiclass_auroc(probs.double(), right, probs.shape[1], average="none")
    return torch.as_tensor(found)


def _brier(probs: Tensor, right: Tensor) -> Tensor:
    """[P]"""
    probs = probs.double()
    return (probs - torch.nn.functional.one_hot(right, probs.shape[1])).square().sum(-1)


def level_statistics(probs: Tensor, right: Tensor, bins: int) -> dict[str, Statistic]:
    """The same figures as functions of the pairs' weights."""
    levels, everything = probs.shape[1], np.ones(len(right), bool)
    chosen = probs.argmax(-1)
    cells = np.eye(levels**2)[(right * levels + chosen).numpy()]

    def confusion(weights: Floats) -> Floats:
        """[R, K, K], rows annotated"""
        return (weights @ cells).reshape(-1, levels, levels)

    scores, truth = probs.double().numpy(), right.numpy()
    return {
        "accuracy": mean((chosen == right).double().numpy()),
        "macro_f1": Statistic(lambda weights: macro_f1_of(confusion(weights)), everything),
        "quadratic_kappa": Statistic(lambda weights: quadratic_kappa_of(confusion(weights)), everything),
        "auroc": Statistic(lambda weights: auroc_of(scores, truth, weights), everything),
        "ece": _ece_statistic(probs, chosen == right, bins),
        "brier": mean(_brier(probs, right).numpy()),
    }


def macro_f1_of(confusion: Floats) -> Floats:
    """[R] of confusion matrices [R, K, K]; a level that is neither annotated nor chosen is left out."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    f1 = ratio(2 * hits, confusion.sum(1) + confusion.sum(2))
    return ratio(np.nansum(f1, 1), np.isfinite(f1).sum(1).astype(np.float64))


def quadratic_kappa_of(confusion: Floats) -> Floats:
    """[R] of confusion matrices [R, K, K]: Cohen's kappa with squared distances; NaN where one level is all there is."""
    at = np.arange(confusion.shape[1])
    distances = (at[:, None] - at) ** 2.0
    annotated, chosen = confusion.sum(2), confusion.sum(1)
    apart = (confusion * distances).sum((1, 2))
    by_chance = ratio(np.einsum("rj,jk,rk->r", annotated, distances, chosen), annotated.sum(1))
    return 1 - ratio(apart, by_chance)


def auroc_of(scores: Floats, truth: Ints, weights: Floats) -> Floats:
    """[R] of scores [P, K], levels [P] and weights [R, P]: the mean over levels of P(score of one > score of another), ties
    for a half; levels without pairs of both kinds in a sample are left out of it."""
    of_levels = []
    for level in range(scores.shape[1]):
        order = np.argsort(scores[:, level], kind="stable")
        ordered = scores[order, level]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])  # of equal scores
        is_one = truth[order] == level
        ones = np.add.reduceat(weights[:, order] * is_one, starts, axis=1)
        others = np.add.reduceat(weights[:, order] * ~is_one, starts, axis=1)
        below = others.cumsum(1) - others
        of_levels.append(ratio((ones * (below + others / 2)).sum(1), ones.sum(1) * others.sum(1)))
    table = np.stack(of_levels)
    return ratio(np.nansum(table, 0), np.isfinite(table).sum(0).astype(np.float64))


def _ece_statistic(probs: Tensor, hit: Tensor, bins: int) -> Statistic:
    confidence, place = _binned(probs, bins)
    within = np.eye(bins + 1)[place]
    gaps = within * (hit.double().numpy() - confidence)[:, None]
    everything = np.ones(len(confidence), bool)
    return Statistic(lambda weights: ratio(np.abs(weights @ gaps).sum(1), weights.sum(1)), everything, upward=True)


def _binned(probs: Tensor, bins: int) -> tuple[Floats, Ints]:
    """The top level's probability [P] and the index of its bin; torchmetrics gives a probability of just 1 a bin of its
    own."""
    confidence = probs.clamp(0, 1).max(-1).values
    edges = torch.linspace(0, 1, bins + 1, dtype=confidence.dtype)
    return confidence.double().numpy(), (torch.bucketize(confidence, edges, right=True) - 1).numpy()


def level_estimates(
    probs: Tensor, right: Tensor, bins: int, bootstrap: Bootstrap, units: Sequence[object]
) -> dict[str, Estimate]:
    """The figures with their intervals; `units` [P] names what each pair is drawn with."""
    return bootstrap.estimates(level_statistics(probs, right, bins), units, level_values(probs, right, bins))


def of_each_level(
    probs: Tensor, right: Tensor, levels: Sequence[str], bootstrap: Bootstrap, units: Sequence[object]
) -> dict[str, dict[str, Estimate]]:
    """Precision and recall of each level; None of what was never chosen, or never annotated."""
    chosen, count = probs.argmax(-1), len(levels)
    values = {
        "precision": multiclass_precision(chosen, right, count, average="none"),
        "recall": multiclass_recall(chosen, right, count, average="none"),
    }
    hits = (chosen == right).double()
    found: dict[str, dict[str, Estimate]] = {}
    for level, name in enumerate(levels):
        # Each is the share of hits among those that were given the level, by the model or by the annotator.
        statistics = {
            figure: mean(torch.where(given == level, hits, torch.nan).numpy())
            for figure, given in (("precision", chosen), ("recall", right))
        }
        known = {
            figure: float(values[figure][level]) if statistics[figure].known.any() else float("nan") for figure in statistics
        }
        found[name] = bootstrap.estimates(statistics, units, known)
    return found


def confusion_matrix(probs: Tensor, right: Tensor) -> list[list[int]]:
    """Counts, rows annotated, columns chosen."""
    matrix: list[list[int]] = multiclass_confusion_matrix(probs.argmax(-1), right, probs.shape[1]).tolist()
    return matrix


def reliability(probs: Tensor, right: Tensor, bins: int) -> list[dict[str, Any]]:
    """Equal bins of the top level's probability: how many pairs, how sure the model is of them, how often it's right."""
    confidence, place = _binned(probs, bins)
    place = place.clip(max=bins - 1)
    hit = (probs.argmax(-1) == right).double().numpy()
    rows = []
    for at in range(bins):
        within = place == at
        some = bool(within.any())
        rows.append(
            {
                "low": at / bins,
                "high": (at + 1) / bins,
                "count": int(within.sum()),
                "confidence": float(confidence[within].mean()) if some else None,
                "accuracy": float(hit[within].mean()) if some else None,
            }
        )
    return rows
