"""Figures of explanations against the annotations, the texts and an encoder's levels."""

import re
from collections.abc import Sequence

import numpy as np
from torchmetrics.functional.text import rouge_score

from lantern_pl.data.pair import Pair
from lantern_pl.evaluation.asking import Written
from lantern_pl.evaluation.bootstrap import Floats, Statistic, mean, ratio
from lantern_pl.evaluation.explanation_checks import ExplanationCheck, check_explanation
from lantern_pl.tasks import Task
from lantern_pl.tasks.reading import Vocabulary, read_job
from lantern_pl.tasks.rubric import Rubric

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_NONE = float("nan")


def rouge(texts: Sequence[str], references: Sequence[str]) -> dict[str, Floats]:
    """F-measures [P] of ROUGE-1, -2 and -L (torchmetrics, without a stemmer) of each text."""
    keys = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}
    scores = [
        rouge_score(text, reference, rouge_keys=tuple(keys)) for text, reference in zip(texts, references, strict=True)
    ]
    return {name: np.array([float(score[f"{key}_fmeasure"]) for score in scores]) for key, name in keys.items()}


def check_all(answers: Sequence[Written], pairs: Sequence[Pair], task: Task) -> list[ExplanationCheck]:
    """Each answer, checked."""
    return [
        check_explanation(answer.text, pair.job_text, pair.candidate_text, task)
        for answer, pair in zip(answers, pairs, strict=True)
    ]


def explanation_statistics(
    answers: Sequence[Written],
    checks: Sequence[ExplanationCheck],
    pairs: Sequence[Pair],
    encoder_levels: Sequence[str] | None,
) -> dict[str, Statistic]:
    """The figures as functions of the pairs' weights; each is a mean over the answers that it applies to, but for
    distinct_1 and distinct_2.

    rouge_1, rouge_2, rouge_l: of the explanation, or of the whole answer where it can't be read, to the annotated one.
    valid_format: share of answers with the task's form. ended: that the model ended itself. level_right: whose level is the
    annotated one, and level_consistent: the encoder's, of those with the form. quoting: share of answers that quote, and
    evidence_verbatim: mean share of an answer's quotes that stand in one of the texts. skills_named: share of the job's
    skills, as the rubric reads them, that the explanation names. words, tokens: length. distinct_1, distinct_2: different
    words, and pairs of neighbouring words, over all of them together.
    """
    texts = [check.explanation or answer.text for check, answer in zip(checks, answers, strict=True)]
    explained = [pair.explanation or "" for pair in pairs]
    values = rouge(texts, explained)
    values["valid_format"] = _numbers([check.valid_format for check in checks])
    values["ended"] = _numbers([answer.ended for answer in answers])
    values["level_right"] = _same([check.level for check in checks], [pair.level for pair in pairs])
    if encoder_levels is not None:
        values["level_consistent"] = _same([check.level for check in checks], encoder_levels)
    values["quoting"] = _numbers([bool(check.quotes) for check in checks])
    values["evidence_verbatim"] = _numbers([check.verbatim for check in checks])
    vocabulary = Rubric().vocabulary
    values["skills_named"] = _numbers(
        [skills_named(text, pair.job_text, vocabulary) for text, pair in zip(texts, pairs, strict=True)]
    )
    words = [_WORD.findall(text.lower()) for text in texts]
    values["words"] = _numbers([len(found) for found in words])
    values["tokens"] = _numbers([answer.tokens for answer in answers])
    # What applies to no answer, such as the tokens of a model that doesn't say, isn't a figure.
    known = {name: column for name, column in values.items() if np.isfinite(column).any()}
    statistics = {name: mean(column) for name, column in known.items()}
    for size in (1, 2):
        statistics[f"distinct_{size}"] = distinct([_ngrams(found, size) for found in words])
    return statistics


def skills_named(text: str, job_text: str, vocabulary: Vocabulary) -> float | None:
    """Share of the skills that the job asks which the text names, by any of their spellings; None where it asks none."""
    asked = {found.name for found in read_job(job_text, vocabulary) if found.kind in ("must", "nice")}
    named = {name for name, _ in vocabulary.find(text, (0, len(text)))}
    lower = text.lower()
    return sum(name in named or name.lower() in lower for name in asked) / len(asked) if asked else None


def distinct(ngrams: Sequence[Sequence[object]]) -> Statistic:
    """Different n-grams over all n-grams of the texts together.

    A resample holds texts twice, and so fewer different ones: its interval is moved back by what that takes on average.
    """
    names = {gram: at for at, gram in enumerate(dict.fromkeys(gram for text in ngrams for gram in text))}
    holds = np.zeros((len(ngrams), len(names)), dtype=np.float32)
    for row, text in enumerate(ngrams):
        holds[row, [names[gram] for gram in text]] = 1
    sizes = np.array([len(text) for text in ngrams], dtype=np.float64)

    def of(weights: Floats) -> Floats:
        # In parts: a row of all n-grams for each resample would be gigabytes.
        parts = np.array_split(weights.astype(np.float32), max(1, len(weights) // 64))
        different = np.concatenate([(part @ holds > 0).sum(1) for part in parts])
        return ratio(different.astype(np.float64), weights @ sizes)

    return Statistic(of, np.ones(len(ngrams), bool), recentre=True)


def _ngrams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[at:] for at in range(size)), strict=False))


def _numbers(values: Sequence[float | bool | None]) -> Floats:
    return np.array([_NONE if value is None else float(value) for value in values])


def _same(said: Sequence[str | None], expected: Sequence[str | None]) -> Floats:
    """1 or 0 for each, NaN where one of them is missing."""
    pairs = zip(said, expected, strict=True)
    return np.array([_NONE if one is None or other is None else float(one == other) for one, other in pairs])
