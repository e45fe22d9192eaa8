"""Answers and texts of a sample with the quotes marked: the same colour and number in the answer and where it stands."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from lantern_pl.evaluation.explanation_checks import ExplanationCheck, check_explanation
from lantern_pl.labelling.review.quotes import find_quote, plain
from lantern_pl.labelling.review.view import escaped
from lantern_pl.report.files import Sample
from lantern_pl.tasks import Task

COLORS = 8
"""How many colours quotes have before the first comes again; their numbers go on."""
ANNOTATION = "annotation"
_STOPS = ".,;:!?…"


@dataclass(frozen=True)
class Marked:
    """An answer as the page shows it. right: whether its level is the annotated one, None where one isn't known."""

    name: str
    level: str | None
    right: bool | None
    readable: bool
    html: Markup
    quotes: int
    found: int


@dataclass(frozen=True)
class Shown:
    """A sample as the page shows it."""

    pair_id: str
    level: str | None
    job: Markup
    candidate: Markup
    answers: list[Marked]


def show(sample: Sample, names: Sequence[str], task: Task) -> Shown:
    """A sample with the answers of the given models, in that order, and the annotation before them."""
    answers: dict[str, str] = {}
    if sample.annotation.explanation:
        answers[ANNOTATION] = sample.annotation.explanation
    answers |= {name: text for name in names if (text := sample.answers.get(name)) is not None}
    checks = {name: check_explanation(text, sample.job_text, sample.candidate_text, task) for name, text in answers.items()}
    numbers: dict[tuple[str, str], int] = {}
    for check in checks.values():
        for quote in check.quotes:
            if quote.found_in:
                numbers.setdefault((quote.found_in, _bare(quote.text)), len(numbers) + 1)
    return Shown(
        pair_id=sample.pair_id,
        level=sample.annotation.level,
        job=_text(sample.job_text, {words: n for (where, words), n in numbers.items() if where == "job"}),
        candidate=_text(sample.candidate_text, {words: n for (where, words), n in numbers.items() if where == "candidate"}),
        answers=[
            _answer(name, answers[name], check, numbers, sample.annotation.level, task) for name, check in checks.items()
        ],
    )


def _bare(quote: str) -> str:
    return " ".join(plain(quote).rstrip(_STOPS).split()) or quote


def _answer(
    name: str, text: str, check: ExplanationCheck, numbers: Mapping[tuple[str, str], int], annotated: str | None, task: Task
) -> Marked:
    level = annotated if name == ANNOTATION else check.level or _bare_level(text, task)
    shown = check.explanation or text
    parts, at = [], 0
    for quote in check.quotes:
        start = shown.find(quote.text, at)
        if start < 0:
            continue
        parts.append(escaped(shown[at:start]))
        at = start + len(quote.text)
        words = escaped(quote.text)
        if quote.found_in:
            number = [numbers[quote.found_in, _bare(quote.text)]]
            parts.append(_mark(words, number, number))
        else:
            parts.append(f'<span class="not-found" title="stands in neither text">{words}</span>')
    parts.append(escaped(shown[at:]))
    return Marked(
        name=name,
        level=level,
        right=None if name == ANNOTATION or level is None or annotated is None else level == annotated,
        readable=name == ANNOTATION or check.valid_format or level is not None,
        html=Markup("".join(parts)),
        quotes=len(check.quotes),
        found=sum(quote.found_in is not None for quote in check.quotes),
    )


def _bare_level(text: str, task: Task) -> str | None:
    """The level of an answer that is nothing but a level and how sure of it the model is, as encoders' are."""
    match = re.fullmatch(rf"({'|'.join(map(re.escape, task.levels))})(?: \([01]\.\d+\))?", text.strip())
    return match[1] if match else None


def _text(text: str, quotes: Mapping[str, int]) -> Markup:
    """A text with the quotes marked that stand in it; where they overlap, each piece bears all their numbers."""
    text = plain(text)
    spans = {number: span for words, number in quotes.items() if (span := find_quote(text, words))}
    edges = sorted({0, len(text), *(edge for span in spans.values() for edge in span)})
    parts: list[str] = []
    for start, end in pairwise(edges):
        inside = [number for number, span in spans.items() if span[0] <= start and end <= span[1]]
        piece = escaped(text[start:end])
        # A quote in several pieces has its number at its end.
        parts.append(_mark(piece, inside, [number for number in inside if spans[number][1] == end]) if inside else piece)
    return Markup("".join(parts))


def _mark(escaped_words: str, numbers: Sequence[int], shown: Sequence[int]) -> str:
    color = (numbers[0] - 1) % COLORS + 1
    number = f"<sup>{','.join(map(str, shown))}</sup>" if shown else ""
    return f'<mark class="q{color}" data-quotes="{",".join(map(str, numbers))}">{escaped_words}{number}</mark>'
