"""What can be checked of an explanation without a model: its form, and whether its quotes stand in the texts. Torch-free."""

import re
from dataclasses import dataclass
from typing import Literal

from lantern_pl.labelling.answers import is_verbatim
from lantern_pl.tasks import Task

# Straight, curly, low, angle and corner marks, and those of code. A single mark within a word is an apostrophe: it neither
# opens nor closes.
_QUOTES = re.compile(
    r'"(?P<straight>[^"\n]*)"'
    r"|“(?P<curly>[^“”\n]*)”"
    r"|„(?P<low>[^„“”\n]*)[“”]"
    r"|‚(?P<low_single>[^‚‘’\n]*)[‘’](?!\w)"
    r"|«(?P<angle>[^«»\n]*)»"
    r"|»(?P<angle_inward>[^«»\n]*)«"
    r"|‹(?P<angle_single>[^‹›\n]*)›"
    r"|›(?P<angle_single_inward>[^‹›\n]*)‹"
    r"|「(?P<corner>[^「」\n]*)」"
    r"|『(?P<corner_double>[^『』\n]*)』"
    r"|＂(?P<wide>[^＂\n]*)＂"
    r"|`+(?P<code>[^`\n]+)`+"
    r"|(?<!\w)'(?P<single>[^\s'](?:[^'\n]|(?<=\w)'(?=\w))*?)(?<!\s)'(?!\w)"
    r"|(?<!\w)‘(?P<curly_single>[^\s‘’](?:[^‘’\n]|(?<=\w)’(?=\w))*?)(?<!\s)’(?!\w)"
)
# What a sentence may have put inside the marks, as American typography does: it isn't the quoted text's.
_STOPS = ".,;:!?…。、，！？"

CLOSING = "\"”“»«›‹」』＂`'’‘"
"""Marks that may end a quote."""
_ELISION = re.compile(r"(?i)(?<!\w)['’‘](?=(?:\d\ds?|t[iw]as|tis|till?|em|cause|bout|n)(?!\w))")


@dataclass(frozen=True)
class Quote:
    """A passage within quotation marks: its text, and which text it stands in word by word; the candidate's comes first."""

    text: str
    found_in: Literal["candidate", "job"] | None


@dataclass(frozen=True)
class ExplanationCheck:
    """One answer of a model, checked.

    valid_format: whether it has the task's form, so that level and explanation could be read; they are None otherwise.
    quotes: all passages within quotation marks, in order; of a text without the form, those of the whole text.
    """

    valid_format: bool
    level: str | None
    explanation: str | None
    quotes: tuple[Quote, ...]

    @property
    def verbatim(self) -> float | None:
        """Share of the quotes that stand in one of the two texts; None where nothing is quoted."""
        return sum(quote.found_in is not None for quote in self.quotes) / len(self.quotes) if self.quotes else None


def check_explanation(text: str, job_text: str, candidate_text: str, task: Task) -> ExplanationCheck:
    """Check the answer `text` about a pair.

    A quote counts as found by `lantern_pl.labelling.answers.is_verbatim`: whole words, the same but for white space and
    hidden characters; a full stop or comma that the marks enclose may be left off.
    """
    answer = task.parse_answer(text)
    quotes = tuple(
        Quote(quote, _found_in(quote, job_text, candidate_text)) for quote in quoted(answer.explanation if answer else text)
    )
    return ExplanationCheck(
        valid_format=answer is not None,
        level=answer.level if answer else None,
        explanation=answer.explanation if answer else None,
        quotes=quotes,
    )


def has_open_quote(line: str) -> bool:
    """Whether a quote may have begun in the line that hasn't ended: then, a closing mark would make one more. A single mark
    before a word that is written with an apostrophe, as in '90s, opens none."""
    line = _ELISION.sub("", line)
    return any(len(quoted(f"{line}x{mark}")) > len(quoted(line)) for mark in CLOSING)


def quoted(text: str) -> list[str]:
    """The passages of a text within quotation marks, in order."""
    return [passage for match in _QUOTES.finditer(text) if (passage := match[match.lastgroup or 0].strip())]


def _found_in(quote: str, job_text: str, candidate_text: str) -> Literal["candidate", "job"] | None:
    for name, text in (("candidate", candidate_text), ("job", job_text)):
        if is_verbatim(quote, text) or is_verbatim(quote.rstrip(_STOPS), text):
            return name  # type: ignore[return-value]
    return None
