"""Counterfactuals: the same pair, its text told of each group in turn. What changes then is due to the group's words alone.

A model is asked about every variant of a pair; a group's shift is its score minus the mean of the other groups' on the same
pair. Two things vary by chance: which candidates the sample has, and which names (or schools, or postcodes) stand for a
group. Both are drawn anew to get the error, so that a name that a model happens to dislike isn't taken for its group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from lantern_pl.audit.answers import Levels, Texts
from lantern_pl.audit.config import AuditConfig
from lantern_pl.audit.findings import Comparison, Table
from lantern_pl.audit.groups import CROSSED
from lantern_pl.audit.intervals import Estimate, Floats, detectable, sign_test_least, t_estimate
from lantern_pl.audit.rates import against_others, named
from lantern_pl.audit.swap_lists import SwapList, variants
from lantern_pl.data.pair import Pair


@dataclass(frozen=True)
class SwapPlan:
    """What to ask for one list: n pairs, each as of the list's G groups.

    candidates [n]: a number for each pair's candidate. words [n, G]: which of a group's words were taken.
    texts: n·G of them, pair by pair.
    """

    swap: SwapList
    candidates: NDArray[np.int64]
    words: NDArray[np.int64]
    texts: Sequence[Texts]

    def by_group(self, values: NDArray) -> NDArray:
        """What was said of `texts` as [n, G]."""
        return values.reshape(self.words.shape)


def plan_swaps(swap: SwapList, pairs: Sequence[Pair], count: int, seed: int) -> SwapPlan:
    """Choose pairs and words. Every word of a group comes up equally often."""
    rng = Random(f"{seed}/{swap.name}")
    chosen = choose_pairs(pairs, count, rng)
    words = np.empty((len(chosen), len(swap.groups)), dtype=np.int64)
    for g, group in enumerate(swap.groups):
        turns = [turn % len(group.words) for turn in range(len(chosen))]
        rng.shuffle(turns)
        words[:, g] = turns
    texts = [
        (pair.job_text, text)
        for pair, row in zip(chosen, words.tolist(), strict=True)
        for text in variants(swap, pair.candidate_text, row, rng.choice(list(swap.insert)))
    ]
    return SwapPlan(swap, number_candidates(chosen), words, texts)


def choose_pairs(pairs: Sequence[Pair], count: int, rng: Random) -> list[Pair]:
    """Up to `count` pairs at random, of as many candidates as possible."""
    shuffled = rng.sample(list(pairs), len(pairs))
    seen: dict[str, int] = {}
    turns = []
    for pair in shuffled:
        seen[pair.candidate_id] = seen.get(pair.candidate_id, 0) + 1
        turns.append(seen[pair.candidate_id])
    return [shuffled[place] for place in sorted(range(len(shuffled)), key=turns.__getitem__)[:count]]


def one_of_each(pairs: Sequence[Pair], count: int, rng: Random) -> list[Pair]:
    """Up to `count` pairs at random, each of another candidate."""
    return choose_pairs(pairs, min(count, len({pair.candidate_id for pair in pairs})), rng)


def number_candidates(pairs: Sequence[Pair]) -> NDArray[np.int64]:
    """[n]: equal numbers for pairs of one candidate."""
    return np.unique([pair.candidate_id for pair in pairs], return_inverse=True)[1].reshape(len(pairs))


def contrasts(swap: SwapList) -> list[tuple[str, str, Sequence[str], Floats]]:
    """(attribute, group, the others, weights [G]) of every comparison: weights · scores is the group's mean score minus
    the others'. For a list with several attributes, each of them and all of them crossed."""
    values = {attribute: [group.values[attribute] for group in swap.groups] for attribute in swap.attributes}
    if len(swap.attributes) > 1:
        values[CROSSED.join(swap.attributes)] = [CROSSED.join(group.values.values()) for group in swap.groups]
    made: list[tuple[str, str, Sequence[str], Floats]] = []
    for attribute, labels in values.items():
        for name, others in against_others(list(dict.fromkeys(labels))):
            mine = np.array([label == name for label in labels])
            made.append((attribute, name, others, np.where(mine, 1 / mine.sum(), -1 / (~mine).sum())))
    return made


def shifts(plan: SwapPlan, scores: Floats, weights: Floats, config: AuditConfig) -> list[Estimate]:
    """One estimate for each row of `weights` [T, G]: weights · scores, from scores [n, G].

    The variance is that of candidates drawn anew, plus what words drawn anew add to it (two-way clusters: Cameron, Gelbach
    and Miller 2011), both by the bootstrap; the interval is Student's, with degrees of freedom by Satterthwaite.
    """
    rng = np.random.default_rng(config.seed)
    centred = scores - scores.mean(1, keepdims=True)
    effects = centred @ weights.T
    values = effects.mean(0)
    units = int(plan.candidates.max()) + 1
    of_candidates = _variance_of_candidates(effects, plan.candidates, units, config.bootstrap, rng)
    added, fewest = _added_by_words(plan, centred, weights, config.bootstrap, rng)
    made = []
    for value, variance, more, words in zip(values, of_candidates, added, fewest, strict=True):
        spread = variance**2 / max(units - 1, 1) + (more**2 / (words - 1) if words > 1 else 0)
        freedom = 0.0 if units < 2 else (variance + more) ** 2 / spread if spread else units - 1.0
        made.append(
            t_estimate(float(value), float(variance + more), freedom, units, config.confidence, sign_test_least(units))
        )
    return made


def _variance_of_candidates(
    effects: Floats, candidates: NDArray[np.int64], units: int, draws: int, rng: np.random.Generator
) -> Floats:
    """The variance [T] of the means of effects [n, T], candidates drawn anew with all of their pairs."""
    sums = np.stack([np.bincount(candidates, column, minlength=units) for column in effects.T], -1)
    sizes = np.bincount(candidates, minlength=units)
    times = rng.multinomial(units, np.full(units, 1 / units), size=draws)
    means = (times @ sums) / (times @ sizes)[:, None]
    return means.var(0) * units / max(units - 1, 1)


def _added_by_words(
    plan: SwapPlan, centred: Floats, weights: Floats, draws: int, rng: np.random.Generator
) -> tuple[Floats, NDArray[np.int64]]:
    """What words drawn anew add to the variance [T], and the fewest words [T] that stood for a group of the comparison.

    A group with one word is that word: nothing is drawn then.
    """
    n, groups = centred.shape
    means, own, counts = np.zeros((draws, groups)), np.zeros(groups), np.zeros(groups, dtype=np.int64)
    for g in range(groups):
        _, word = np.unique(plan.words[:, g], return_inverse=True)
        sizes = np.bincount(word)
        counts[g] = len(sizes)
        if counts[g] < 2:
            continue
        sums = np.bincount(word, centred[:, g])
        times = rng.multinomial(counts[g], np.full(counts[g], 1 / counts[g]), size=draws)
        drawn = (times @ sums) / (times @ sizes)
        means[:, g] = (drawn - centred[:, g].mean()) * np.sqrt(counts[g] / (counts[g] - 1))
        # Pairs differ anyway, and so do words' means for that: this part belongs to the candidates.
        own[g] = ((centred[:, g] - centred[:, g].mean()) ** 2).sum() / n**2
    added = np.maximum((means @ weights.T).var(0) - weights**2 @ own, 0)
    fewest = [min(counts[(row != 0) & (counts > 1)], default=0) for row in weights]
    return added, np.array(fewest)


def swap_comparisons(model: str, plan: SwapPlan, found: Levels, config: AuditConfig) -> list[Comparison]:
    """One model's shift for each group of the list."""
    made = []
    planned = contrasts(plan.swap)
    estimates = shifts(plan, plan.by_group(found.score), np.stack([each[-1] for each in planned]), config)
    for (attribute, name, others, _), estimate in zip(planned, estimates, strict=True):
        direction = "lower" if estimate.value < 0 else "higher"
        sentence = (
            f"{name}: score {abs(estimate.value):.3f} {direction} than {named(others)} on the same {len(plan.words)} texts"
        )
        about = f"{model}, {varied(plan.swap, attribute)}"
        key = (model, plan.swap.name, attribute, name)
        made.append(Comparison("shift", about, sentence, estimate, config.min_effect, key))
    return made


def swap_table(
    model: str, asked: Sequence[tuple[SwapPlan, Levels]], comparisons: Sequence[Comparison], tests: int, config: AuditConfig
) -> Table:
    """One model's shifts, of scores and of selections, and how often a level hangs on the group at all."""
    by_key = {each.key: each for each in comparisons}
    rows: list[list[str | float | None]] = []
    for plan, found in asked:
        selected = plan.by_group(found.selected(config.selected_index)).astype(float)
        level = plan.by_group(found.level)
        for attribute, name, _, weights in contrasts(plan.swap):
            each = by_key[model, plan.swap.name, attribute, name]
            shift = each.estimate
            flips = level[:, weights > 0].mean(1) != level[:, weights < 0].mean(1)
            least = detectable(shift.error, (1 - config.confidence) / tests)
            of_levels = float((selected @ weights).mean()), float(flips.mean())
            rows.append(
                [varied(plan.swap, attribute), name, shift.value, shift.low, shift.high, each.adjusted, *of_levels, least]
            )
    pairs = ", ".join(f"{plan.swap.name} {len(plan.words)}" for plan, _ in asked)
    return Table(
        f"{model}: swapped texts, a group's score minus the others' on the same pairs",
        ["list", "group", "shift", "low", "high", "p", "selected", "flips", "detectable"],
        rows,
        f"Pairs: {pairs}. Scores are 0 to 1. p: corrected for all {tests} comparisons of the audit (Holm). selected: change "
        "of the share that is selected. flips: share of pairs whose level for the group differs from the others'. "
        "detectable: the shift that would be found with a probability of 80 %. "
        f"Threshold of concern: {config.min_effect:g}.",
    )


def varied(swap: SwapList, attribute: str) -> str:
    return f"{swap.name}: {attribute}" if len(swap.attributes) > 1 else swap.name
