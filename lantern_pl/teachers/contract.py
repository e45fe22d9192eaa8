"""The Teacher contract: what a plugin author implements."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from transformers import PreTrainedTokenizerBase

from lantern_pl.data.pair import Pair
from lantern_pl.errors import UserError
from lantern_pl.signals import Annotation, Hidden, LevelProbs, Logits, TokenBatch, TopK
from lantern_pl.tasks import Task

CAPABILITIES = ("annotate", "level_probs", "score_tokens")
"""What a teacher can be asked for: the methods of these names."""


class Teacher:
    """A source of knowledge for students. A subclass declares what it can do and implements those methods.

    A teacher isn't an `nn.Module`: it is never part of a student's parameters, optimizer or checkpoint. What it returns
    carries no gradient, and it depends on each row alone, not on the rest of the batch.

    Attributes:
        lantern_api: version of this contract that the class was written for, 1; each plugin's class says it itself.
        capabilities: which of `CAPABILITIES` it implements.
        tokenizer_fingerprint: see `lantern_pl.text.fingerprint`; needed for `score_tokens`, else None.
        vocab_size: columns of its token signals; needed for `score_tokens`, else None.
        tokenizer: what makes token ids of texts for `score_tokens`; needed only to teach a student that has another one.
        top_k: how many tokens per position its token signals name; None for the whole vocabulary.
    """

    lantern_api: ClassVar[int]
    capabilities: frozenset[str] = frozenset()
    tokenizer_fingerprint: str | None = None
    vocab_size: int | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    top_k: int | None = None

    def identity(self) -> dict[str, Any]:
        """What makes this teacher's answers what they are (model, revision, settings): plain JSON values."""
        raise UserError(f"{type(self).__name__} doesn't say its identity(); it is needed for caches and manifests")

    def cache_key(self) -> str:
        """A deterministic key of `identity()`: equal keys mean equal answers, in any process."""
        canonical = json.dumps({"teacher": type(self).__name__, **self.identity()}, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to(self, device: torch.device) -> Self:
        """Make ready on a device. Called once before use; loading weights belongs here, not in `__init__`."""
        return self

    def annotate(self, pairs: Sequence[Pair], task: Task) -> list[Annotation]:
        """Structured text about each pair."""
        raise self._cannot("annotate")

    def level_probs(self, pairs: Sequence[Pair], task: Task) -> LevelProbs:
        """A distribution over the task's levels for each pair, [B, K]."""
        raise self._cannot("level_probs")

    def score_tokens(self, batch: TokenBatch) -> Hidden | Logits | TopK:
        """The next-token signal at each of the batch's N positions, at temperature 1."""
        raise self._cannot("score_tokens")

    def _cannot(self, capability: str) -> UserError:
        able = ", ".join(sorted(self.capabilities)) or "nothing"
        return UserError(f"teacher {type(self).__name__} can't {capability}; it can: {able}. Choose another teacher.")
