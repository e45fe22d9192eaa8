"""What can be checked of an explanation without a model: its form, and whether its quotes stand in the texts. Torch-free."""

from dataclasses import dataclass
from typing import Literal

from lantern_pl.labelling.evidence import is_verbatim, quoted
from lantern_pl.tasks import Task

# What a sentence may have put inside the marks, as American typography does: it isn't the quoted text's.
_STOPS = ".,;:!?…。、，！？"


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

    A quote counts as found by `lantern_pl.labelling.evidence.is_verbatim`: whole words, the same but for white space and
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


def _found_in(quote: str, job_text: str, candidate_text: str) -> Literal["candidate", "job"] | None:
    for name, text in (("candidate", candidate_text), ("job", job_text)):
        if is_verbatim(quote, text) or is_verbatim(quote.rstrip(_STOPS), text):
            return name  # type: ignore[return-value]
    return None
