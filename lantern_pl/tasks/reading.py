"""What a job asks and what a candidate claims, read from plain text by rules.

The rules see words, not meaning. A sentence is the unit: one cue ("a plus", "to learn", "a team that used") settles how
everything in it counts.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lantern_pl.tasks.job_fit import NUMBER_WORDS, ORDINARY_WORDS, ROLE_NOUNS, SENIORITY

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Requirement:
    """One thing that a job asks. `amount` is the number of years, or the rank in `SENIORITY`; 1 for a skill."""

    kind: Literal["must", "nice", "years", "seniority"]
    name: str
    amount: float = 1.0


@dataclass(frozen=True, slots=True)
class Claim:
    """A number (of years) or a rank (of seniority) that a candidate states, with the words that state it."""

    amount: float
    evidence: str


@dataclass(frozen=True, slots=True)
class Claims:
    """What a candidate's text claims. Every piece of evidence is a verbatim part of the text.

    `skills` maps each known skill to its evidence; `own` holds the spans of the sentences that speak of the
    candidate's own work.
    """

    text: str
    own: tuple[Span, ...]
    skills: Mapping[str, str]
    years: Claim | None
    seniority: Claim | None

    def evidence(self, skill: str) -> str | None:
        """The words that show a skill, known to the vocabulary or not; None where the text doesn't show it."""
        if skill in self.skills:
            return self.skills[skill]
        pattern = re.compile(rf"(?<!\w){re.escape(skill)}(?!\w)", re.IGNORECASE)
        for start, end in self.own:
            if match := pattern.search(self.text, start, end):
                return _evidence(self.text, match.span(), (start, end))
        return None


class Vocabulary:
    """Skills by their names and other spellings; finds the longest one at each place of a text."""

    def __init__(self, skills: Mapping[str, Sequence[str]]) -> None:
        self._names = {form.lower(): name for name, forms in skills.items() for form in (name, *forms)}
        # Alternatives are tried in turn, so the longest comes first; grouped by first letter, few are tried at a place.
        by_first: dict[str, list[str]] = {}
        for form in sorted(self._names, key=lambda form: (-len(form), form)):
            by_first.setdefault(form[0], []).append(re.escape(form[1:]))
        groups = "|".join(f"{re.escape(first)}(?:{'|'.join(rest)})" for first, rest in by_first.items())
        self._pattern = re.compile(rf"(?<![^\W_])(?:{groups})(?![^\W_]|[+#])", re.IGNORECASE)

    def find(self, text: str, span: Span) -> Iterator[tuple[str, Span]]:
        """Each mention of a skill in text[span]: its name and where it stands."""
        for match in self._pattern.finditer(text, *span):
            # Letters such as "ſ" match without being the same in lower case: then there is no name.
            name = self._names.get(match[0].lower())
            if name is not None and (match[0].lower() not in _ORDINARY or match[0] in ORDINARY_WORDS):
                yield name, match.span()


def read_job(text: str, vocabulary: Vocabulary) -> list[Requirement]:
    """What a job asks: must-haves, nice-to-haves, years, seniority; each skill once, in the order of the text.

    A sentence, or the heading above it, says whether its skills are must-haves or nice to have. Skills of other
    sentences (duties, neighbouring teams) count only where no must-have is marked as such: then all of them are
    must-haves. Short items of a "Skills:" list count even when the vocabulary doesn't know them.
    """
    found: dict[str, str] = {}
    years: Requirement | None = None
    rank: Requirement | None = None
    for span, kind, listed in _job_sentences(text):
        names = [name for name, _ in vocabulary.find(text, span)]
        if listed:
            names += _unknown_items(text[slice(*span)], vocabulary)
        for name in names:
            found[name] = max(found.get(name, "other"), kind, key=_KINDS.index)
        if rank is None and (match := _SENIORITY.search(text, *span)):
            rank = Requirement("seniority", *_rank(match))
        if years is None and kind != "nice" and (match := _most_years(text, span)):
            amount = _number(match[1])
            years = Requirement("years", f"{amount:g} years", amount)
    marked = "must" in found.values()
    skills: list[Requirement] = []
    for name, kind in found.items():
        if kind == "nice":
            skills.append(Requirement("nice", name))
        elif kind == "must" or not marked:
            skills.append(Requirement("must", name))
    skills.sort(key=lambda requirement: requirement.kind)  # must-haves first; the sort is stable
    return skills + [requirement for requirement in (years, rank) if requirement is not None]


def read_candidate(text: str, vocabulary: Vocabulary) -> Claims:
    """What a candidate's text claims: skills, years (the most stated, else those of dated spans), seniority."""
    own = tuple(span for span in _sentences(text, (0, len(text))) if not _NOT_OWN.search(text, *span))
    skills: dict[str, str] = {}
    years: list[Claim] = []
    ranks: list[Claim] = []
    for span in own:
        for name, place in vocabulary.find(text, span):
            skills.setdefault(name, _evidence(text, place, span))
        if match := _most_years(text, span):
            years.append(Claim(_number(match[1]), match[0]))
        for match in _SENIORITY.finditer(text, *span):
            ranks.append(Claim(_rank(match)[1], match[0].strip("()")))
    return Claims(
        text=text,
        own=own,
        skills=skills,
        years=max(years, key=lambda claim: claim.amount, default=None) or _dated_years(text, own),
        seniority=max(ranks, key=lambda claim: claim.amount, default=None),
    )


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(patterns)})\b", re.IGNORECASE)


def _alternatives(words: Iterable[str]) -> str:
    # ASCII, or "ſix" would match "six" and then be no known word.
    return f"(?a:{'|'.join(re.escape(word) for word in sorted(words, key=len, reverse=True))})"


_KINDS = ("other", "nice", "must")
"""What a sentence may say of its skills, the stronger word last."""
_ORDINARY = frozenset(word.lower() for word in ORDINARY_WORDS)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|[;\n]|,?\s+but\s+")
_MUST = _any("must", "require[sd]?", "need(?:ed|s)?", "essential", "mandatory", "you bring", "we expect", "at least")
_MUST_HEADING = _any("must", "required", "requirements?", "skills", "qualifications", "you bring", "you need")
_NICE = _any("nice[ -]to[ -]haves?", "a plus", "bonus", "ideally", "preferred", "desirable", "optional", "welcome")
_NOT_ASKED = _any("not part of", "not required", "not needed", "(?:no|don't|do not) need")
_NOT_OWN = _any(
    # wishes
    "to learn", "pick up", "interested in", "curious about", "keen (?:to|on)",
    "(?:want|hope|plan)s? to", "(?:hop|plann|look)ing to", "looking for",
    # what is missing
    r"no (?:\w+ )?(?:experience|knowledge)", r"(?:not|never|\w+n't) (?:yet )?(?:used?|work(?:ed)?|touched|tried)",
    # what others did
    "(?:team|group|department|colleagues?|supplier) (?:that|who|which)", "reported to", "assist(?:ed|ing)",
    # what was only heard of
    "talk (?:on|about)", "read about",
)  # fmt: skip
_EDUCATION = _any(
    "education", "degree", "bachelor", "master", r"ph\.?d", r"[bm]\.?s\.?c?", "university", "college", "diploma"
)
_YEARS = re.compile(
    rf"(?<![\w-])(\d{{1,2}}|{_alternatives(NUMBER_WORDS)})(?:\s?\+| or more)? years?\b"
    r"(?! (?:ago|old|of history|in business))(?: of \w+)?",
    re.IGNORECASE,
)
_DATES = re.compile(r"\b((?:19|20)\d\d)\s?(?:-|–|to)\s?((?:19|20)\d\d)\b")
_RANKS = {word: rank for rank, words in enumerate(SENIORITY.values()) for word in words}
_RANK_NAMES = tuple(SENIORITY)
# Role nouns in the singular only: who "mentored senior engineers" isn't thereby one.
_SENIORITY = re.compile(
    rf"\b({_alternatives(_RANKS)})(?:[ -][\w/&+]+){{0,3}}? (?:{_alternatives(ROLE_NOUNS)})\b"
    rf"|\(({_alternatives(_RANKS)})(?:-level)?\)",
    re.IGNORECASE,
)
_WORD_BEFORE = re.compile(r"[^\s,;:()\"“”]+ $")


def _sentences(text: str, span: Span) -> Iterator[Span]:
    start, stop = span
    for match in _SENTENCE_END.finditer(text, start, stop):
        if text[start : match.start()].strip():
            yield start, match.start()
        start = match.end()
    if text[start:stop].strip():
        yield start, stop


def _job_sentences(text: str) -> Iterator[tuple[Span, str, bool]]:
    """The sentences that may ask something: span, "must" / "nice" / "other", and whether it is a list of skills."""
    section = "other"
    position = 0
    for line in text.splitlines(keepends=True):
        start, position = position, position + len(line)
        head, colon, body = line.partition(":")
        is_heading = colon and len(head) <= 40 and not _SENTENCE_END.search(head)
        heading = _kind(head, _MUST_HEADING) if is_heading else "other"
        if colon and not body.strip():
            section = heading
        elif line.strip() and not line.lstrip().startswith(("-", "*", "•")):
            section = "other"
        listed = head.strip().lower() == "skills"
        for span in _sentences(text, (start, position)):
            sentence = text[slice(*span)]
            if not _NOT_ASKED.search(sentence):
                kind = _kind(sentence, _MUST)
                yield span, kind if kind != "other" else heading if heading != "other" else section, listed


def _kind(words: str, must: re.Pattern[str]) -> str:
    return "nice" if _NICE.search(words) else "must" if must.search(words) else "other"


def _unknown_items(sentence: str, vocabulary: Vocabulary) -> list[str]:
    """The items of "Skills: a, b, c" that the vocabulary doesn't know, where they are short enough for a skill."""
    items = [item.strip() for item in sentence.partition(":")[2].split(",")]
    return [item for item in items if 0 < len(item.split()) <= 3 and not any(vocabulary.find(item, (0, len(item))))]


def _most_years(text: str, span: Span) -> re.Match[str] | None:
    return max(_YEARS.finditer(text, *span), key=lambda match: _number(match[1]), default=None)


def _number(word: str) -> float:
    return float(word) if word.isdigit() else float(NUMBER_WORDS.index(word.lower()))


def _rank(match: re.Match[str]) -> tuple[str, float]:
    rank = _RANKS[(match[1] or match[2]).lower()]
    return _RANK_NAMES[rank], float(rank)


def _dated_years(text: str, own: Sequence[Span]) -> Claim | None:
    """Years covered by spans like "2018-2021", education left out; overlapping spans count once."""
    covered: set[int] = set()
    evidence = ""
    for start, end in own:
        line = text[text.rfind("\n", 0, start) + 1 : end]
        if _EDUCATION.match(line) or _EDUCATION.search(text, start, end):
            continue
        for match in _DATES.finditer(text, start, end):
            covered.update(range(int(match[1]), int(match[2])))
            evidence = evidence or match[0]
    return Claim(float(len(covered)), evidence) if covered else None


def _evidence(text: str, place: Span, sentence: Span) -> str:
    """The words at `place` and up to three before them, within their clause."""
    start, end = place
    for _ in range(3):
        if match := _WORD_BEFORE.search(text, sentence[0], start):
            start = match.start()
    return text[start:end]
