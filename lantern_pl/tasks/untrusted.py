"""Texts of strangers: shown to a model as data, and searched for what is meant to mislead it."""

import re
import unicodedata

from lantern_pl.tasks.injections import families

BIDI_CONTROL = "bidi control"
INVISIBLE = "invisible characters"

# Characters that show nothing, or that change the order in which others are shown.
_BIDI = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_SURROGATES = r"\ud800-\udfff"
_NOTHING = (
    r"\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200d\u2060-\u2065"
    r"\u206a-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    r"\U000e0000-\U000e0fff"
)
# Where they belong to the writing: joiners between letters of scripts that join or stack them, and within an emoji;
# selectors of an emoji's or a Han character's look.
_JOINED = r"[\u0620-\u0dff\u1000-\u109f\u1780-\u17b3\u17b6-\u17ff]"
_EMOJI = r"[\u203c\u2049\u20e3\u2100-\u27ff\u2900-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff]"
_KEYCAP = r"[#*0-9](?=\ufe0f\u20e3)"
_HAN = r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
_BELONGS = "|".join(
    (
        rf"(?<={_JOINED})[\u200c\u200d](?={_JOINED})",
        rf"(?:(?<={_EMOJI})|(?<={_EMOJI}\ufe0f))\u200d(?={_EMOJI})",
        rf"(?<={_EMOJI})[\ufe0e\ufe0f]|(?<={_KEYCAP})\ufe0f|(?<=[\xa9\xae])[\ufe0e\ufe0f]",
        rf"(?<={_HAN})[\ufe00-\ufe0f\U000e0100-\U000e01ef]",
    )
)
_MAY_BE_HIDDEN = re.compile(f"[{_BIDI}{_NOTHING}{_SURROGATES}]")
_HIDDEN = re.compile(rf"(?!{_BELONGS})[{_BIDI}{_NOTHING}{_SURROGATES}]")

# What ordinary software leaves behind: byte-order marks, soft hyphens, bytes of cp1252 read as Latin-1, bells of Word's
# tables. They are hidden, but nobody hides something with them.
_LEFT_BEHIND = re.compile(r"\A\ufeff|[\x07\x80-\x9f\xad]")
_MARKS = re.compile(r"[\u061c\u200e\u200f]")
_RIGHT_TO_LEFT = re.compile(r"[\u0590-\u05ff\u0620-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_BIDI_ANY = re.compile(f"[{_BIDI}]")

# Characters that a model may take for angle brackets, by how many of them they stand for.
_OPENING = dict.fromkeys(("<", "&lt;", "&#60;", *"\uff1c\ufe64\u3008\u27e8\u2329\u2039\u1438\u02c2\u276e\u2770"), 1)
_OPENING |= {**dict.fromkeys("\xab\u300a\u226a\u27ea", 2), "\u22d8": 3}
_CLOSING = dict.fromkeys((">", "&gt;", "&#62;", *"\uff1e\ufe65\u3009\u27e9\u232a\u203a\u1433\u02c3\u276f\u2771"), 1)
_CLOSING |= {**dict.fromkeys("\xbb\u300b\u226b\u27eb", 2), "\u22d9": 3}
_BRACKETS = tuple(
    (weights, round_one, re.compile(rf"(?:(?:{'|'.join(map(re.escape, weights))})\s*)+", re.IGNORECASE))
    for weights, round_one in ((_OPENING, "("), (_CLOSING, ")"))
)
# What chat templates are made of: many servers read these as turns even within a text.
_TEMPLATE = re.compile(
    r"<(\s?[|｜][^<>|｜\n]{1,40}[|｜]\s?)>"
    r"|<(\s?/?\s?(?:s|bos|eos|pad|unk|think|thinking|tool_calls?|tool_response|(?:start|end)_of_(?:turn|text))\s?)>"
    r"|\[(\s?/?\s?(?:INST|SYS|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\s?)\]",
    re.IGNORECASE,
)
_DELIMITER = 3
# What each of them begins with.
_MAY_BE_MARKS = re.compile(f"[{''.join(sorted({re.escape(mark[0]) for mark in (*_OPENING, *_CLOSING, '<', '[')}))}]")


def visible(text: str) -> str:
    """The text without hidden characters: those that show nothing or reorder others, where writing doesn't need them."""
    # Nearly all texts hold none, and to look around each character takes long.
    return _HIDDEN.sub("", text) if _MAY_BE_HIDDEN.search(text) else text


def fence(name: str, text: str) -> str:
    """The text as data between delimiters that bear the name.

    What looks like a delimiter in it, or like the beginning of a chat's turn, gets round brackets, and hidden characters
    are left out: both read the same to a person.
    """
    return f"<<<begin {name}>>>\n{_defused(visible(text))}\n<<<end {name}>>>"


def without_turns(text: str) -> str:
    """The text with round brackets around what chat templates mark their turns with."""
    return _TEMPLATE.sub(lambda match: f"({match[match.lastindex or 0]})", text)


def flags(text: str) -> tuple[str, ...]:
    """Names of what in the text may be meant to mislead a model, sorted: hidden characters and families of injections.

    A flag is a reason for a look, no proof; texts without any can still mislead.
    """
    found = families(visible(text))
    bidi = _BIDI_ANY.findall(text)
    if bidi and not (all(map(_MARKS.match, bidi)) and _RIGHT_TO_LEFT.search(text)):
        found.add(BIDI_CONTROL)
    if _MAY_BE_HIDDEN.search(text) and _HIDDEN.search(_LEFT_BEHIND.sub("", _BIDI_ANY.sub("", text))):
        found.add(INVISIBLE)
    return tuple(sorted(found))


def same_writing(text: str) -> str:
    """What is compared when one text should stand in another: the same for equal looks and any kind of white space."""
    return " ".join(unicodedata.normalize("NFC", visible(text)).split())


def _defused(text: str) -> str:
    # Nearly all texts hold none, and to look for each of them takes long.
    if not _MAY_BE_MARKS.search(text):
        return text
    for weights, round_one, run in _BRACKETS:

        def rounded(match: re.Match[str], weights: dict[str, int] = weights, round_one: str = round_one) -> str:
            tokens = re.findall(r"&[^;]+;|\S", match[0])
            weight = sum(weights[token.lower()] for token in tokens)
            # The white space after the run isn't part of it.
            return round_one * weight + match[0][len(match[0].rstrip()) :] if weight >= _DELIMITER else match[0]

        text = run.sub(rounded, text)
    return without_turns(text)
