"""The Teacher contract: what a plugin author implements."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lantern_pl.data.featurize import Example
from lantern_pl.data.pair import Pair
from lantern_pl.errors import UserError
from lantern_pl.signals import Annotation, Hidden, LevelProbs, Logits, TokenBatch, TopK
from lantern_pl.tasks import Task
from lantern_pl.teachers.chat import ChatReply, ChatRequest

CAPABILITIES = ("annotate", "chat", "level_probs", "pair_hidden_states", "score_tokens", "token_hidden_states")
"""What a teacher can be asked for: the methods of these names."""


@dataclass(frozen=True)
class Assignment:
    """What a run is going to ask a teacher, known before its first step.

    capability: which of `CAPABILITIES`.
    examples: all that it will be asked about, in the student's tokens.
    task, max_length, path: of the data.
    chat_template: `lantern_pl.text.template_hash` of the student's tokenizer.
    """

    capability: str
    examples: Sequence[Example]
    task: Task
    max_length: int
    path: str
    chat_template: str


class Teacher:
    """A source of knowledge for students. A subclass declares what it can do and implements those methods.

    A teacher isn't an `nn.Module`: it is never part of a student's parameters, optimizer or checkpoint. What it returns
    carries no gradient, and it depends on each row alone, not on the rest of the batch.

    Attributes:
        lantern_api: version of this contract that the class was written for, 1; each plugin's class says it itself.
        capabilities: which of `CAPABILITIES` it implements.
        tokenizer_fingerprint: see `lantern_pl.text.fingerprint`; needed for `score_tokens` and `token_hidden_states`, else
            None.
        vocab_size: columns of its token signals; needed for `score_tokens`, else None.
        tokenizer: what makes token ids of texts for `score_tokens`; needed only to teach a student that has another one.
        top_k: how many tokens per position its token signals name; None for the whole vocabulary.
        temperature: that of its token signals where `top_k` is given: a student can learn from them at no other.
        sampled: whether these tokens are draws, whose frequencies estimate the distribution: that serves the forward KL
            alone.
        recorded: whether it knows recorded examples alone, and so nothing about texts that a student writes.
        asked_together: whether all processes of a run must ask it alike and at the same time, since its weights are spread
            over them.
        hidden_size: width of its hidden states, and hidden_layers: how many layers it has, the embeddings not counted; both
            are known before weights are loaded, and needed for `token_hidden_states` and `pair_hidden_states`, else None.
        max_in_flight: how many questions to `chat` are worth having open at once.
        most_billed: how many of a question's attempts a provider may bill, at most: a budget sets their cost aside.
        follows_schema: whether the answers of `chat` are held to the question's schema, known once it's ready; where they
            aren't, they are read with more patience.
        price: money per million tokens of questions and of answers, where it's known; 0 and 0 of one that computes in this
            process.
        max_new_tokens: the most tokens of an answer of `annotate`, where it's known: a budget sets their cost aside.
    """

    lantern_api: ClassVar[int]
    capabilities: frozenset[str] = frozenset()
    tokenizer_fingerprint: str | None = None
    vocab_size: int | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    top_k: int | None = None
    temperature: float = 1.0
    sampled: bool = False
    recorded: bool = False
    asked_together: bool = False
    hidden_size: int | None = None
    hidden_layers: int | None = None
    max_in_flight: int = 16
    most_billed: int = 1
    follows_schema: bool = False
    price: tuple[float, float] | None = None
    max_new_tokens: int | None = None

    def identity(self) -> dict[str, Any]:
        """What makes this teacher's answers what they are (model, revision, settings): plain JSON values."""
        raise UserError(f"{type(self).__name__} doesn't say its identity(); it is needed for caches and manifests")

    def cache_key(self) -> str:
        """A deterministic key of `identity()`: equal keys mean equal answers, in any process."""
        canonical = json.dumps({"teacher": type(self).__name__, **self.identity()}, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def chat_key(self) -> str:
        """The same of its answers to `chat` alone: another one where settings of other capabilities don't change those."""
        return self.cache_key()

    def to(self, device: torch.device) -> Self:
        """Make ready on a device. Called once before use; loading weights belongs here, not in `__init__`."""
        return self

    def spread(self, device: torch.device) -> Self:
        """As `to`, for a fit, in which all processes ask about as many batches: here weights may be spread over them."""
        return self.to(device)

    def accept(self, assignment: Assignment) -> None:
        """Called once before a run's first step. Raise UserError here where there are questions that can't be answered,
        rather than in the middle of the run."""

    def annotate(self, pairs: Sequence[Pair], task: Task) -> list[Annotation]:
        """Structured text about each pair."""
        raise self._cannot("annotate")

    async def chat(self, request: ChatRequest) -> ChatReply:
        """The answer to one question. Called from one event loop, up to `max_in_flight` times at once; retries are its own
        matter. Raises ChatFailed where there is no answer, whose texts hold nothing of the question."""
        raise self._cannot("chat")

    async def get_ready_to_chat(self) -> Sequence[ChatReply] | None:
        """Called once, in the event loop, before the first `chat`: find out here what the server can do. Returns what was
        answered to questions of its own, which cost what others do."""
        return None

    def questions_to_get_ready(self) -> Sequence[ChatRequest]:
        """The questions that `get_ready_to_chat` may ask, all of them: a budget sets their cost aside."""
        return ()

    async def close(self) -> None:
        """Called in the event loop after the last `chat`: let go of connections."""

    def level_probs(self, pairs: Sequence[Pair], task: Task) -> LevelProbs:
        """A distribution over the task's levels for each pair, [B, K]."""
        raise self._cannot("level_probs")

    def score_tokens(self, batch: TokenBatch) -> Hidden | Logits | TopK:
        """The next-token signal at each of the batch's N positions, at temperature 1; `TopK` at `temperature`."""
        raise self._cannot("score_tokens")

    def token_hidden_states(self, batch: TokenBatch, layers: Sequence[int]) -> list[Tensor]:
        """The hidden states at each of the batch's N positions, [N, hidden_size] for each of the layers: 0 is the
        embeddings' output, 1 the first layer's, and so on to `hidden_layers`; -1 is the last layer's."""
        raise self._cannot("token_hidden_states")

    def pair_hidden_states(self, pairs: Sequence[Pair], task: Task, layers: Sequence[int]) -> list[Tensor]:
        """One vector of each pair's hidden states, [B, hidden_size] for each of the layers, counted likewise."""
        raise self._cannot("pair_hidden_states")

    def _cannot(self, capability: str) -> UserError:
        able = ", ".join(sorted(self.capabilities)) or "nothing"
        return UserError(f"teacher {type(self).__name__} can't {capability}; it can: {able}. Choose another teacher.")
