"""Whether a teacher's words stand in the texts that it read."""

import re
from collections.abc import Iterator, Mapping

from lantern_pl.tasks.untrusted import same_writing

_LEAST_WORDS = 3
"""Of a passage in quotation marks: shorter ones may be a word's own name, or irony."""
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
CLOSING = "\"”“»«›‹」』＂`'’‘"
"""Marks that may end a quote."""
_ELISION = re.compile(r"(?i)(?<!\w)['’‘](?=(?:\d\ds?|t[iw]as|tis|till?|em|cause|bout|n)(?!\w))")
_LEFT_OUT = re.compile(r"\.{3,}|…|\[[^\]\n]{0,40}\]")
_AROUND = " .,;:!?()-–—"


def is_verbatim(quote: str, text: str) -> bool:
    """Whether the quote is a passage of the text: at least two characters, no word cut through, the same but for white
    space, hidden characters and how a character is composed."""
    return _stands_in(same_writing(quote), same_writing(text))


class Sources:
    """What a teacher was shown, by name: each text is brought into the form that is searched once, if ever."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts
        self._written: dict[str, str] = {}

    def has(self, quote: str, name: str) -> bool:
        """Whether the quote `is_verbatim` in the text of this name."""
        return _stands_in(same_writing(quote), self._form(name))

    def anywhere(self, passage: str) -> bool:
        """Whether a passage stands in any of the texts, in whatever case."""
        passage = same_writing(passage).casefold()
        return any(_stands_in(passage, self._form(name).casefold()) for name in self._texts)

    def _form(self, name: str) -> str:
        if name not in self._written:
            self._written[name] = same_writing(self._texts[name])
        return self._written[name]


def quoted(text: str) -> list[str]:
    """The passages of a text within quotation marks, in order."""
    return [passage for match in _QUOTES.finditer(text) if (passage := match[match.lastgroup or 0].strip())]


def has_open_quote(line: str) -> bool:
    """Whether a quote may have begun in the line that hasn't ended: then, a closing mark would make one more. A single mark
    before a word that is written with an apostrophe, as in '90s, opens none."""
    line = _ELISION.sub("", line)
    return any(len(quoted(f"{line}x{mark}")) > len(quoted(line)) for mark in CLOSING)


def claims(text: str) -> Iterator[str]:
    """The passages within quotation marks that claim to be someone's words: of three words or more, without what stands for
    words left out, and without punctuation around them."""
    for quote in quoted(text):
        for passage in _LEFT_OUT.split(quote):
            passage = passage.strip(_AROUND)
            if len(passage.split()) >= _LEAST_WORDS:
                yield passage


def _stands_in(quote: str, written: str) -> bool:
    if len(quote) < 2 or not any(character.isalnum() for character in quote):
        return False
    place = written.find(quote)
    while place >= 0:
        end = place + len(quote)
        if not (_is_cut(written[max(place - 1, 0) : place], quote[0]) or _is_cut(quote[-1], written[end : end + 1])):
            return True
        place = written.find(quote, place + 1)
    return False


def _is_cut(before: str, after: str) -> bool:
    """Whether a word goes on from one character, or none, to the next."""
    # Thai, Han and others write words without gaps: there, a quote may begin and end anywhere.
    return all(character.isalnum() and character < "\u0e00" for character in (before, after))
