"""Reads what an LLM has answered to a stage; what isn't exactly an answer is never taken for one."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from pydantic import ValidationError

from lantern_pl.tasks.schema import MAX_ITEMS, MAX_QUOTE, MAX_TEXT, Items, form, kind_of, model_of, quotes
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
NO_EVIDENCE = "evidence isn't in the text"

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
    NO_EVIDENCE: (
        "A quote doesn't stand in the text. Copy whole words exactly, in one unbroken passage; where there is nothing to "
        "quote, the form's other values say so."
    ),
}
REASONS = tuple(_REPAIRS)
"""All reasons for which an answer isn't read."""

_REFUSAL = re.compile(
    r"\W{0,20}(?:(?:i ?['’]?m|i am|we are|we['’]re)\s+(?:really |very |so |truly )?sorry|sorry|(?:my |i "
    r")apologi[sz]e?s?|unfortunately"
    r"|as an? (?:ai|artificial|large|language)\b|i(?: am|['’]m)? (?:can ?not|can['’]?t|won['’]?t|will not|unable|not "
    r"able|not "
    r"comfortable|must decline|have to decline|decline|do not feel|don['’]t feel)).{0,80}?"
    r"\b(?:help|assist|comply|compl(?:ete|eting)|provid(?:e|ing)|fulfil\w*|answer(?:ing)?|continue|engage|"
    r"process(?:ing)?|participate"
    r"|evaluat(?:e|ing)|judg(?:e|ing)|assess(?:ing)?|rat(?:e|ing)|discuss|do that|do this|requests?|with that|decline|"
    r"assessments?"
    r"|ai|language model)\b",
    re.IGNORECASE | re.DOTALL,
)
_THOUGHTS = re.compile(r"\s*<think>.*?</think>", re.DOTALL)
_FENCE = "```"
_STRUCTURE = re.compile(r'\\.|["\[\]{}]', re.DOTALL)


class BadAnswer(Exception):
    """An answer that can't be used. `reason` is one of `REASONS` and holds nothing of the answer."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read_answer(
    text: str, finish_reason: str, stage: Stage, levels: Sequence[str], texts: Mapping[str, str], strict: bool
) -> dict[str, Any]:
    """The fields of an answer to a stage.

    texts: what quotes must stand in, by name.
    strict: whether the answer must be the JSON object and nothing else, as of a server that honours schemas. Otherwise
        one object amid prose, in a whole code fence or after a model's thoughts is read, too.

    Raises BadAnswer where the answer isn't complete, isn't one JSON object of the stage's form, holds characters that
    can't be seen, or quotes what isn't in the text.
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
    for name, declared in stage.output.items():
        if declared == "text" and _REFUSAL.match(parsed[name]):
            raise BadAnswer(REFUSED)
    check_quotes(quotes(stage, parsed), texts)
    return parsed


def check_quotes(quoted: Iterable[tuple[str, str]], texts: Mapping[str, str]) -> None:
    """Raise BadAnswer unless each quote, given with its text's name, `is_verbatim` in that text."""
    written: dict[str, str] = {}
    for name, quote in quoted:
        if name not in written:
            written[name] = same_writing(texts[name])
        if not _stands_in(quote, written[name]):
            raise BadAnswer(NO_EVIDENCE)


def is_verbatim(quote: str, text: str) -> bool:
    """Whether the quote is a passage of the text: at least two characters, no word cut through, the same but for white
    space, hidden characters and how a character is composed."""
    return _stands_in(quote, same_writing(text))


def repair_messages(stage: Stage, levels: Sequence[str], reason: str) -> tuple[dict[str, str], ...]:
    """What is said after an answer that can't be used, to get another one. Raises KeyError for an unknown reason."""
    names = {"job_text": "job's text", "candidate_text": "candidate's text"}
    content = (
        f"This answer can't be used: {reason}. {_REPAIRS[reason]} Answer the question again, with nothing but one JSON "
        f"object of this form:\n{form(stage.output, levels, names)}"
    )
    return ({"role": "user", "content": content},)


def _stands_in(quote: str, written: str) -> bool:
    quote = same_writing(quote)
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


def _read_object(text: str, strict: bool) -> Any:
    start = 0
    if not strict:
        thoughts = _THOUGHTS.match(text)
        start = thoughts.end() if thoughts else 0
    place = text.find("{", start)
    if place < 0:
        raise BadAnswer(REFUSED if _REFUSAL.search(text) else NO_OBJECT)
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
    if _REFUSAL.search(before) or _REFUSAL.search(after):
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
