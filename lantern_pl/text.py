"""Tokenizers: how they are told apart, loaded, and how a prompt becomes what a chat model expects."""

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lantern_pl.errors import UserError
from lantern_pl.model_files import load_config, locate
from lantern_pl.tasks import Task

# Texts on which tokenizers with the same vocabulary but other rules (merges, normalisation, splitting) differ.
_PROBES = ("Hello, world!  5 years of C++/Python\n\n", "naïve Straße 東京 😀", "  leading, TRAILING  ", "1234567.89")


@lru_cache(maxsize=8)
def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model reference (see `model_files.locate`). Raises UserError if there is none."""
    load_config(model)  # says better than the tokenizer's loader that there is no such model
    try:
        tokenizer = AutoTokenizer.from_pretrained(locate(model), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{model!r} has no tokenizer that transformers can load: {error}") from error
    if tokenizer.pad_token_id is None:
        # Only its position counts: padding is masked by position, never by comparing ids.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def level_ids(encode: Callable[[str], list[int]], task: Task) -> list[list[int]]:
    """Ids by which each of the task's levels is told from the others, after the beginning of an answer; `encode` gives those
    of a continuation.

    They are the level's name alone. Where another level's begins with them, as that of 10 with 1's, what follows a level in
    an answer ends it: a text is never less probable than one that it's the beginning of.
    """
    names, closed = map(encode, task.verbalised_levels()), map(encode, task.closed_levels())
    ids = [tuple(name) for name in names]
    begins_another = [sum(other[: len(name)] == name for other in ids) > 1 for name in ids]
    return [end if begins else list(name) for name, end, begins in zip(ids, closed, begins_another, strict=True)]


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A short hash that is equal for tokenizers which give the same ids for the same text.

    It covers the vocabulary and the encoding of probe texts, not the padding side, the chat template, or the number of
    rows that a model pads its embedding to.
    """
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    probes = [tokenizer.encode(text, add_special_tokens=False) for text in _PROBES]
    return hashlib.sha256(json.dumps([vocabulary, probes]).encode()).hexdigest()[:16]


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than its largest id: equal for equal fingerprints, where models may pad their embeddings differently."""
    return 1 + max(tokenizer.get_vocab().values())


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """A short hash of the chat template: with another one, the same question becomes other tokens."""
    return hashlib.sha256(json.dumps(tokenizer.chat_template).encode()).hexdigest()[:16]


def chat_prompt(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    """The question as the chat template puts it, up to where the answer starts.

    A tokenizer without a template gets the question and a blank line, after its own beginning-of-sequence token if it
    uses one. The ids of the result are made with `add_special_tokens=False`.
    """
    if tokenizer.chat_template is None:
        special = tokenizer.bos_token if _adds_bos(tokenizer) else None
        return f"{special or ''}{question}\n\n"
    # Everything goes into the user's turn: some templates refuse a system role.
    messages = [{"role": "user", "content": question}]
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def _adds_bos(tokenizer: Any) -> bool:
    return tokenizer.bos_token_id is not None and tokenizer.bos_token_id in tokenizer.encode("a")
