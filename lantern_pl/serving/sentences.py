"""Lets an explanation out sentence by sentence, each once its quotes were looked up in the texts."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lantern_pl.evaluation.explanation_checks import ExplanationCheck, check_explanation
from lantern_pl.labelling.evidence import CLOSING, has_open_quote
from lantern_pl.serving.config import OnUnfounded
from lantern_pl.tasks import Task
from lantern_pl.tasks.untrusted import visible

# Where a sentence or a line ends, with the white space after it.
_END = re.compile(rf"[.!?…]+[{re.escape(CLOSING)})\]]*\s+|\s*\n\s*")


@dataclass(frozen=True)
class Sentence:
    """A piece of an explanation that may leave, with its white space; `unfounded`: it quotes what neither text says, or
    doesn't end its quote, so that nothing can be looked up."""

    text: str
    unfounded: bool = False


class SentenceGate:
    """Takes an answer as it is written, and gives out what may leave of its explanation.

    Nothing leaves before the task's form is there, nor a sentence before each of its quotes was found in one of the
    texts. What becomes of the others says `on_unfounded`, see `ServeConfig`.

    Attributes, whole after `finish`:
        sentences: all that left.
        dropped: how many did not.
        open_quotes: how many lines held a quote that doesn't end.
        check: of the whole answer.
    """

    def __init__(self, job_text: str, candidate_text: str, task: Task, on_unfounded: OnUnfounded) -> None:
        self.sentences: list[Sentence] = []
        self.dropped = 0
        self.open_quotes = 0
        self._texts = job_text, candidate_text
        self._task = task
        self._on_unfounded = on_unfounded
        self._answer = ""
        self._at = 0  # of the explanation: how far it was judged
        self._quotes_of_line = 0
        _, between, after = task.answer_literals()
        # Otherwise it takes the end of an answer to tell what of it is the explanation.
        self._early = on_unfounded != "refuse" and bool(between) and not after.strip()
        self.check: ExplanationCheck | None = None

    def feed(self, text: str) -> list[Sentence]:
        """What may leave now that the answer has gone on with `text`."""
        self._answer += text
        return self._leave(self._whole_sentences()) if self._early else []

    def finish(self) -> list[Sentence]:
        """What is left at the end of the answer."""
        self.check = check_explanation(self._answer, *self._texts, self._task)
        if self.check.explanation is None:
            return []
        rest = [*self._whole_sentences(), *self._rest(self.check.explanation)]
        if self._on_unfounded == "refuse" and any(sentence.unfounded for sentence in rest):
            self.dropped = len(rest)
            return []
        return self._leave(rest)

    def _leave(self, sentences: list[Sentence]) -> list[Sentence]:
        leaving = [s for s in sentences if not s.unfounded or self._on_unfounded == "mark"]
        self.dropped += len(sentences) - len(leaving)
        self.sentences += leaving
        return leaving

    def _whole_sentences(self) -> list[Sentence]:
        answer = self._task.parse_answer(self._answer)
        return list(self._split(answer.explanation)) if answer else []

    def _split(self, explanation: str) -> Iterator[Sentence]:
        for end in _END.finditer(explanation, self._at):
            line_ends = "\n" in end[0]
            line = explanation[explanation.rfind("\n", 0, self._at) + 1 : end.end()].rstrip()
            if not line_ends and has_open_quote(line):
                continue
            yield self._judged(explanation[self._at : end.end()], line, line_ends)
            self._at = end.end()
            if line_ends:
                self._quotes_of_line = 0

    def _rest(self, explanation: str) -> Iterator[Sentence]:
        if rest := explanation[self._at :]:
            yield self._judged(rest, explanation[explanation.rfind("\n", 0, self._at) + 1 :], True)
            self._at = len(explanation)

    def _judged(self, sentence: str, line: str, line_ends: bool) -> Sentence:
        """line: from its start, since a quotation mark is told to open or to close by those before it."""
        as_answer = self._task.render_answer(self._task.levels[0], line)
        quotes = check_explanation(as_answer, *self._texts, self._task).quotes
        unfounded = any(quote.found_in is None for quote in quotes[self._quotes_of_line :])
        self._quotes_of_line = len(quotes)
        if line_ends and has_open_quote(line):
            self.open_quotes += 1
            unfounded = True
        return Sentence(visible(sentence), unfounded)
