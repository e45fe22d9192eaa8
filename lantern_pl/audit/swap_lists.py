"""Swap lists: which words of a text to replace, or which line to put in, so that it tells of another group.

A list is a YAML file; `lantern_pl/audit/data` has examples of every key:

    about: what it varies, in a few words
    attributes: [sex, race]          # what each group has a value of
    replace: true                    # whether words of the list that stand in a text are replaced
    line: "Name:"                    # optional: a line that begins so is replaced as a whole, by the inserted one
    insert: ["Name: {name}"]         # lines for texts in which nothing was replaced; one is drawn for each pair
    place: top                       # where that line goes: top or end
    groups:
      - {sex: woman, race: Black, words: {name: [Lakisha Washington, ...]}}

A group's words are variants of the same length for each form (`name`; for pronouns `subject`, `object`, ...): the n-th of
each form belong together. `find` may give a regular expression for a form, and `repair` what follows from a replacement.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lantern_pl.audit.data_files import locate, read_yaml
from lantern_pl.errors import UserError

BUILT_IN = ("names", "pronouns", "school", "postcode", "affinity")

Place = Literal["top", "end"]


@dataclass(frozen=True)
class Group:
    """One group of a list. words: its variants, each a word for every form. find: form -> what it's found by."""

    values: Mapping[str, str]
    words: Sequence[Mapping[str, str]]
    find: Mapping[str, str]
    repair: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SwapList:
    """A list as the module says; `name` is how tables call it."""

    name: str
    about: str
    attributes: Sequence[str]
    groups: Sequence[Group]
    insert: Sequence[str]
    replace: bool = False
    line: str | None = None
    place: Place = "top"


def read_swap_list(name: str) -> SwapList:
    """A built-in list by its name, or one of a user's by its path. Raises UserError where it isn't as the module says."""
    path = locate(name, BUILT_IN)
    found = read_yaml(path)
    try:
        return _swap_list(path.stem, found)
    except _BadList as error:
        raise UserError(f"{path}: {error}. lantern_pl/audit/data has examples of lists.") from error


class _BadList(Exception):
    pass


def _swap_list(name: str, found: Mapping[str, Any]) -> SwapList:
    unknown = set(found) - {"about", "attributes", "replace", "line", "insert", "place", "groups"}
    if unknown:
        raise _BadList(f"has the unknown key {sorted(map(str, unknown))[0]!r}")
    attributes, insert = _texts(found, "attributes"), _texts(found, "insert")
    if found.get("place", "top") not in get_args(Place):
        raise _BadList(f"place is {found['place']!r}, expected top or end")
    rows = found.get("groups")
    if not isinstance(rows, list) or len(rows) < 2:
        raise _BadList("groups must be a list of two or more: there is nothing to compare otherwise")
    groups = [_group(row, attributes) for row in rows]
    values = [tuple(group.values[attribute] for attribute in attributes) for group in groups]
    if len(set(values)) != len(values):
        raise _BadList("two groups have the same values")
    forms = {frozenset(group.words[0]) for group in groups}
    if len(forms) > 1:
        raise _BadList(f"the groups have words for different forms: {sorted(sorted(form) for form in forms)}")
    for template in insert:
        missing = set(re.findall(r"\{(\w*)\}", template)) - set(groups[0].words[0])
        if missing:
            raise _BadList(f"insert has {{{min(missing)}}}, for which the groups have no words")
    line = found.get("line")
    return SwapList(
        name, str(found.get("about", name)), attributes, groups, insert, bool(found.get("replace", False)),
        None if line is None else str(line), found.get("place", "top"),
    )  # fmt: skip


def _texts(found: Mapping[str, Any], key: str) -> list[str]:
    values = found.get(key)
    if not isinstance(values, list) or not values or not all(isinstance(value, str) and value for value in values):
        raise _BadList(f"{key} must be a list of texts")
    return values


def _group(row: Any, attributes: Sequence[str]) -> Group:
    if not isinstance(row, dict):
        raise _BadList("a group isn't an object with keys")
    missing = [key for key in (*attributes, "words") if key not in row]
    if missing:
        raise _BadList(f"a group lacks {missing[0]!r}")
    words = row["words"]
    if not (isinstance(words, dict) and words and all(isinstance(each, list) and each for each in words.values())):
        raise _BadList("words must be an object of lists, such as {name: [Emily Walsh]}")
    if len({len(each) for each in words.values()}) > 1:
        raise _BadList(f"words has lists of different lengths: { ({form: len(each) for form, each in words.items()}) }")
    if not all(isinstance(word, str) and word for each in words.values() for word in each):
        raise _BadList("words holds something else than texts: put numbers into quotation marks")
    variants = [dict(zip(words, variant, strict=True)) for variant in zip(*words.values(), strict=True)]
    default = {form: "|".join(map(_as_written, sorted(each, key=len, reverse=True))) for form, each in words.items()}
    patterns = row.get("find", default)
    repair = row.get("repair", {})
    if not (isinstance(patterns, dict) and isinstance(repair, dict)):
        raise _BadList("find and repair must be objects")
    for form, pattern in patterns.items():
        try:
            if form not in words:
                raise _BadList(f"find has {form!r}, for which there are no words")
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise _BadList(f"find of {form!r} isn't a regular expression: {error}") from error
    return Group({key: str(row[key]) for key in attributes}, variants, patterns, repair)


def _as_written(word: str) -> str:
    """What finds a word: names as they are or in capitals, since many are ordinary words in small letters."""
    if word[:1].islower():
        return re.escape(word)
    return f"(?-i:{re.escape(word)}|{re.escape(word.upper())})"


def variants(swap: SwapList, text: str, chosen: Sequence[int], template: str) -> list[str]:
    """The text as of each group of the list, in their order.

    chosen: which of each group's variants to take. template: which of `swap.insert` to put in where nothing is replaced.
    """
    found = _words_of_list(swap, text) if swap.replace else []
    line = re.search(rf"(?m)^[ \t]*{re.escape(swap.line)}.*$", text) if swap.replace and swap.line else None
    texts = []
    for group, number in zip(swap.groups, chosen, strict=True):
        words = group.words[number]
        # From the end, so that places before it stay right.
        changed = text
        replacements = [(match.start(), match.end(), keep_case(match[0], words[form])) for match, form in found]
        inserted = template.format(**words)
        if line is not None:
            replacements = [r for r in replacements if not line.start() <= r[0] < line.end()]
            replacements.append((line.start(), line.end(), inserted))
        for start, end, new in sorted(replacements, reverse=True):
            changed = changed[:start] + new + changed[end:]
        for wrong, right in group.repair.items() if found else ():
            changed = _repaired(changed, wrong, right)
        if not replacements:
            changed = f"{inserted}\n{text}" if swap.place == "top" else f"{text}\n{inserted}"
        texts.append(changed)
    return texts


def _repaired(text: str, wrong: str, right: str) -> str:
    return re.sub(rf"(?i)(?<!\w){re.escape(wrong)}(?!\w)", lambda match: keep_case(match[0], right), text)


def _words_of_list(swap: SwapList, text: str) -> list[tuple[re.Match[str], str]]:
    """The list's words in a text, each with its form; none where they are of several groups, since it isn't clear then
    which of them speak of the candidate."""
    by_group: list[dict[tuple[int, int], tuple[re.Match[str], str]]] = []
    for group in swap.groups:
        forms = list(group.find)
        if not forms:
            continue
        either = "|".join(f"(?P<form{number}>{group.find[form]})" for number, form in enumerate(forms))
        matches = re.finditer(rf"(?i)(?<!\w)(?:{either})(?!\w)", text)
        by_group.append({m.span(): (m, forms[int((m.lastgroup or "form0")[4:])]) for m in matches})
    spans = {span for found in by_group for span in found}
    return next((list(found.values()) for found in by_group if set(found) == spans), [])


def keep_case(old: str, new: str) -> str:
    """The new word in capitals where the old one was, and with a capital where the old one had one."""
    if len(old) > 1 and old.isupper():
        return new.upper()
    return new[:1].upper() + new[1:] if old[:1].isupper() else new
