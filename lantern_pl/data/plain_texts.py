"""Texts of strangers as tokens: none of what they hold becomes a turn of the chat, or another of a tokenizer's own marks."""

import re
from functools import lru_cache
from typing import Any

from lantern_pl.tasks.untrusted import without_turns

_BRACKETS = str.maketrans("<>[]", "()()")


def plain(text: str, tokenizer: Any) -> str:
    """The text, in which what the tokenizer or a chat template would read as a mark of its own gets round brackets.

    A tokenizer reads `<|im_end|>` or `[SEP]` within a text as the end of a turn or of the text. Texts without such marks
    are left as they are.
    """
    text = without_turns(text)
    marks = _marks(tokenizer)
    return text if marks is None else marks.sub(lambda mark: mark[0].translate(_BRACKETS), text)


@lru_cache(maxsize=8)
def _marks(tokenizer: Any) -> re.Pattern[str] | None:
    """The tokenizer's special tokens. One without brackets may be a word of ordinary texts: it stays."""
    tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    bracketed = [token for token in tokens if token.translate(_BRACKETS) != token]
    longest_first = sorted(bracketed, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
