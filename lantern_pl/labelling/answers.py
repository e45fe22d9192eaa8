"""Reads what an LLM has answered to a stage; what isn't exactly an answer is never taken for one."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from pydantic import ValidationError

from lantern_pl.labelling.evidence import Sources, claims
from lantern_pl.labelling.refusals import holds_refusal, is_refusal
from lantern_pl.tasks.schema import (
    MAX_ITEMS,
    MAX_QUOTE,
    MAX_TEXT,
    Items,
    form,
    has_quotes,
    kind_of,
    model_of,
    needed_quotes,
    own_words,
    quotes,
    says_something,
)
from lantern_pl.tasks.stage import Stage
from lantern_pl.tasks.untrusted import same_writing, visible

MAX_ANSWER = 65_536
"""Characters of an answer, beyond which it isn't read."""
MAX_DEPTH = 32

TRUNCATED = "truncated"
REFUSED = "refused"
UNFINISHED = "unfinished"
TOO_LONG = "too long"
HIDDEN = "hidden characters"
NO_OBJECT = "no JSON object"
SEVERAL_OBJECTS = "several JSON objects"
MORE_THAN_OBJECT = "more than a JSON object"
BROKEN_FENCE = "broken code fence"
BROKEN_JSON = "broken JSON"
DUPLICATE_KEYS = "duplicate keys"
NOT_A_NUMBER = "not a number"
TOO_DEEP = "nested too deep"
WRONG_FIELDS = "wrong fields"
WRONG_TYPE = "wrong type"
WRONG_LEVEL = "wrong level"
WRONG_WORD = "wrong word"
OUT_OF_RANGE = "out of range"
BLANK = "blank text"
OTHER_ITEMS = "another list than the given one"
NO_EVIDENCE = "evidence isn't in the text"
UNSUPPORTED = "the best level without evidence"

_REPAIRS = {
    TRUNCATED: "It was cut off before its end. Say less.",
    REFUSED: "It was a refusal; the question is about the given texts alone.",
    UNFINISHED: "It didn't come to its end.",
    TOO_LONG: f"A text may have up to {MAX_TEXT} characters, a quote {MAX_QUOTE}, a list {MAX_ITEMS} items or fewer.",
    HIDDEN: "It holds characters that can't be seen.",
    NO_OBJECT: "It holds no JSON object.",
    SEVERAL_OBJECTS: "It holds more than one JSON object.",
    MORE_THAN_OBJECT: "There is something before or after the JSON object.",
    BROKEN_FENCE: "Its code fence isn't complete; leave it out.",
    BROKEN_JSON: "It isn't valid JSON. In a text, write \\n for a new line and \\\" for a quotation mark.",
    DUPLICATE_KEYS: "A field is there twice.",
    NOT_A_NUMBER: "A number is missing, infinite or too large.",
    TOO_DEEP: "It's nested deeper than the form.",
    WRONG_FIELDS: "A field is missing, or there is one that wasn't asked for.",
    WRONG_TYPE: "A field's value isn't of the form's type.",
    WRONG_LEVEL: "The level must be one of those in the form, in the same spelling.",
    WRONG_WORD: "A word must be one of those in the form, in the same spelling.",
    OUT_OF_RANGE: "A number must be from 0 to 1.",
    BLANK: "A text is empty.",
    OTHER_ITEMS: "A list must have each item of the given one, once and in the given wording, and no other.",
    UNSUPPORTED: "The best level needs something that is met, with a quote of the text that shows it.",
    NO_EVIDENCE: (
        "A quote doesn't stand in the text. Copy whole words exactly, in one unbroken passage; where there is nothing to "
        "quote, the form's other values say so."
    ),
}
REASONS = tuple(_REPAIRS)
"""All reasons for which an answer isn't read."""

_THOUGHTS = re.compile(r"\s*<think>.*?</think>", re.DOTALL)
_FENCE = "```"
_STRUCTURE = re.compile(r'\\.|["\[\]{}]', re.DOTALL)


class BadAnswer(Exception):
    """An answer that can't be used. `reason` is one of `REASONS` and holds nothing of the answer."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read_answer(
    text: str, finish_reason: str, stage: Stage, levels: Sequence[str], shown: Mapping[str, str], strict: bool
) -> dict[str, Any]:
    """The fields of an answer to a stage.

    shown: the two texts, and answers of other stages that this one reads, as `guide.compact` writes them, by name.
    strict: whether the answer must be the JSON object and nothing else, as of a server that honours schemas. Otherwise
        one object amid prose, in a whole code fence or after a model's thoughts is read, too.

    Raises BadAnswer where the answer isn't complete, isn't one JSON object of the stage's form, holds characters that
    can't be seen, refuses in any of its fields, quotes what isn't in the text, gives the best level without evidence, or
    has another list than the one that it should go through.
    """
    if finish_reason != "stop":
        raise BadAnswer({"length": TRUNCATED, "content_filter": REFUSED}.get(finish_reason, UNFINISHED))
    if len(text) > MAX_ANSWER:
        raise BadAnswer(TOO_LONG)
    if visible(text) != text:
        raise BadAnswer(HIDDEN)
    found = _read_object(text, strict)
    # Once more, since JSON can write any character as \u....
    if any(visible(string) != string for string in _strings(found)):
        raise BadAnswer(HIDDEN)
    parsed = _checked(found, stage, levels)
    sources = Sources(shown)
    lists = {name: value for name, value in parsed.items() if isinstance(value, list)}
    own = Sources({"": "\n".join(_strings(lists))})
    for said, in_list in own_words(stage, parsed):
        # A list may repeat what a person says of themselves, such as that they can't travel.
        if is_refusal(said) and not (in_list and sources.anywhere(said)):
            raise BadAnswer(REFUSED)
        # What an explanation quotes may also be a requirement as the list beside it words it.
        if not all(sources.anywhere(passage) or own.anywhere(passage) for passage in claims(said)):
            raise BadAnswer(NO_EVIDENCE)
    _check_quotes(quotes(stage, parsed), sources)
    if "level" in parsed and parsed["level"] == levels[-1] and has_quotes(stage) and not any(needed_quotes(stage, parsed)):
        raise BadAnswer(UNSUPPORTED)
    _check_lists(stage, parsed, shown)
    return parsed


def check_text(text: str, shown: Mapping[str, str] | None) -> None:
    """Raise BadAnswer unless a text that a teacher has written says something, shows all its characters, is no refusal, and
    puts into quotation marks only what stands in a text that it was shown; None: whatever that was."""
    if visible(text) != text:
        raise BadAnswer(HIDDEN)
    if not says_something(text):
        raise BadAnswer(BLANK)
    if is_refusal(text):
        raise BadAnswer(REFUSED)
    if shown is not None and not all(map(Sources(shown).anywhere, claims(text))):
        raise BadAnswer(NO_EVIDENCE)


def check_quotes(quoted: Iterable[tuple[str, str]], texts: Mapping[str, str]) -> None:
    """Raise BadAnswer unless each quote, given with its text's name, `is_verbatim` in that text."""
    _check_quotes(quoted, Sources(texts))


def _check_quotes(quoted: Iterable[tuple[str, str]], sources: Sources) -> None:
    if not all(sources.has(quote, name) for name, quote in quoted):
        raise BadAnswer(NO_EVIDENCE)


def _check_lists(stage: Stage, parsed: Mapping[str, Any], shown: Mapping[str, str]) -> None:
    """Raise BadAnswer unless each list goes through the one that it's declared to go through."""
    for name, declared in stage.output.items():
        kind = kind_of(declared, name)
        if isinstance(kind, Items) and kind.for_each is not None and kind.wording is not None:
            given = json.loads(shown[kind.for_each])[name]
            there, wanted = ({_same_item(item[kind.wording]) for item in items} for items in (parsed[name], given))
            if there != wanted or len(parsed[name]) > len(given):
                raise BadAnswer(OTHER_ITEMS)


def _same_item(wording: str) -> str:
    return same_writing(wording).casefold().strip(" .,;:-–—*•\"'")


def repair_messages(stage: Stage, levels: Sequence[str], reason: str) -> tuple[dict[str, str], ...]:
    """What is said after an answer that can't be used, to get another one. Raises KeyError for an unknown reason."""
    names = {"job_text": "job's text", "candidate_text": "candidate's text"}
    content = (
        f"This answer can't be used: {reason}. {_REPAIRS[reason]} Answer the question again, with nothing but one JSON "
        f"object of this form:\n{form(stage.output, levels, names)}"
    )
    return ({"role": "user", "content": content},)


def _read_object(text: str, strict: bool) -> Any:
    start = 0
    if not strict:
        thoughts = _THOUGHTS.match(text)
        start = thoughts.end() if thoughts else 0
    place = text.find("{", start)
    if place < 0:
        raise BadAnswer(REFUSED if holds_refusal(text) else NO_OBJECT)
    _check_depth(text[place:])
    try:
        found, end = _DECODER.raw_decode(text, place)
    except json.JSONDecodeError as error:
        # Python says where it gave up: an end that comes too early is the end of the text.
        cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        raise BadAnswer(TRUNCATED if cut and not text.rstrip().endswith(("}", _FENCE)) else BROKEN_JSON) from None
    before, after = text[start:place].strip(), text[end:].strip()
    if "{" in after:
        raise BadAnswer(SEVERAL_OBJECTS)
    if (strict and (before or after)) or any(bracket in before + after for bracket in "[]}"):
        raise BadAnswer(MORE_THAN_OBJECT)
    _check_fence(before, after)
    if holds_refusal(before) or holds_refusal(after):
        raise BadAnswer(REFUSED)
    return found


def _check_fence(before: str, after: str) -> None:
    """One whole fence around the object, or none at all; what is before and after it is free."""
    counts = before.count(_FENCE), after.count(_FENCE)
    if counts == (0, 0):
        return
    language = before.rpartition(_FENCE)[2].strip().lower()
    if counts != (1, 1) or language not in ("", "json") or after.partition(_FENCE)[0].strip():
        raise BadAnswer(BROKEN_FENCE)


def _check_depth(text: str) -> None:
    """Before it is parsed, since a parser's own limit hangs on the caller's stack."""
    depth, within_string = 0, False
    for sign in _STRUCTURE.findall(text):
        if sign == '"':
            within_string = not within_string
        elif not within_string and sign in "[]{}":
            depth += 1 if sign in "[{" else -1
            if depth > MAX_DEPTH:
                raise BadAnswer(TOO_DEEP)


def _no_constant(name: str) -> NoReturn:
    raise BadAnswer(NOT_A_NUMBER)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise BadAnswer(NOT_A_NUMBER)
    return number


def _whole(digits: str) -> int:
    if len(digits) > 20:
        raise BadAnswer(NOT_A_NUMBER)
    return int(digits)


def _once(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(fields)
    if len(found) != len(fields):
        raise BadAnswer(DUPLICATE_KEYS)
    return found


_DECODER = json.JSONDecoder(
    object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite, parse_int=_whole, strict=True
)


def _checked(found: Any, stage: Stage, levels: Sequence[str]) -> dict[str, Any]:
    try:
        return model_of(stage, levels).model_validate(found).model_dump()
    except ValidationError as error:
        # The errors' messages quote the answer.
        reasons = {
            _reason(fault["type"], fault["loc"], stage) for fault in error.errors(include_url=False, include_input=False)
        }
    raise BadAnswer(min(reasons, key=REASONS.index))


def _reason(fault: str, place: tuple[int | str, ...], stage: Stage) -> str:
    if fault in ("missing", "extra_forbidden"):
        return WRONG_FIELDS
    if fault in ("string_too_long", "too_long"):
        return TOO_LONG
    if fault in ("greater_than_equal", "less_than_equal", "finite_number"):
        return OUT_OF_RANGE
    if fault == "value_error":
        return BLANK
    if fault != "literal_error":
        return WRONG_TYPE
    fields: Mapping[str, Any] = stage.output
    kind: Any = None
    for name in place:
        if isinstance(name, str):
            kind = kind_of(fields[name], name)
            fields = kind.fields if isinstance(kind, Items) else {}
    return WRONG_LEVEL if kind == "level" else WRONG_WORD


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)
