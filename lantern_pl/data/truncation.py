"""Cuts a job and a candidate to a number of tokens so that neither loses more than it must."""

import re
from typing import Any

from transformers import PreTrainedTokenizerBase

from lantern_pl.data.plain_texts import plain
from lantern_pl.errors import UserError


def fit_texts(job_text: str, candidate_text: str, budget: int, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, bool]:
    """The two texts, plain and cut so that they take at most `budget` tokens together, and whether something was cut.

    Each text may have half of the budget, and what one leaves the other may take, so a long text never displaces the
    other. Cuts fall on white space where there is some near. Tokens are counted for each text on its own, without
    special tokens. With fewer than some 10 tokens for each, nothing may remain of a text, since one character can take
    several.

    Raises UserError if the tokenizer can't tell where its tokens stand in the text.
    """
    job_text, candidate_text = plain(job_text, tokenizer), plain(candidate_text, tokenizer)
    job_tokens, candidate_tokens = _token_ends(job_text, tokenizer), _token_ends(candidate_text, tokenizer)
    if len(job_tokens) + len(candidate_tokens) <= budget:
        return job_text, candidate_text, False
    job_room = min(len(job_tokens), max(budget // 2, budget - len(candidate_tokens)))
    candidate_room = min(len(candidate_tokens), budget - job_room)
    job = _cut(job_text, job_tokens, job_room, tokenizer)
    candidate = _cut(candidate_text, candidate_tokens, candidate_room, tokenizer)
    return job, candidate, True


def check_cuts(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError if the tokenizer can't tell where its tokens stand in a text."""
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer {type(tokenizer).__name__} can't tell where its tokens stand in a text, which is needed to "
            "cut texts to max_length: use a model that has a fast tokenizer (a tokenizer.json)"
        )


def _token_ends(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """For each token of the text, the character position where it ends."""
    check_cuts(tokenizer)
    # Not verbose: a text longer than the model's limit is what is being mended here.
    encoded: Any = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [end for _, end in encoded["offset_mapping"]]


def _cut(text: str, ends: list[int], room: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """The start of the text that takes at most `room` tokens."""
    # Once may not do: cut apart, a word or a multi-byte character can take more tokens than its part of the whole did.
    while len(ends) > room:
        text = _to_word_end(text, max((end for end in ends[:room] if end < len(text)), default=0))
        ends = _token_ends(text, tokenizer)
    return text


def _to_word_end(text: str, end: int) -> str:
    """text[:end] without a word that `end` splits, unless that costs half of it (in languages without spaces)."""
    kept = text[:end]
    splits_word = end < len(text) and not text[end].isspace()
    if splits_word and (word := re.search(r"\s\S*$", kept)) and word.start() >= end / 2:
        kept = kept[: word.start()]
    return kept.rstrip()
