"""What a teacher says about a token or a pair, apart from where it came from.

Token signals (`Hidden`, `Logits`, `TopK`) have one row for each supervised position of a batch, in the order of
`TokenBatch.positions`. Pair signals (`LevelProbs`, `Annotation`) have one row for each pair.
"""

from dataclasses import dataclass, replace
from typing import Self

import lantern_kernels
from lantern_kernels import Head
from torch import Tensor

from lantern_pl.tasks.task import RequirementVerdict


@dataclass(frozen=True)
class TokenBatch:
    """Token ids that a token-scoring teacher is asked about.

    input_ids, attention_mask: [B, L], right-padded.
    positions: [B, L] bool; true where the model's output predicts a supervised token, N positions in all.
    """

    input_ids: Tensor
    attention_mask: Tensor
    positions: Tensor


@dataclass(frozen=True)
class OutputHead:
    """How a model turns hidden states into logits: softcap(scale · (hidden @ weightᵀ + bias)).

    weight: [V, d]; bias: [V] or None; softcap(x) = c·tanh(x/c), or none.
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    def on(self, hidden: Tensor) -> Head:
        """The linear form for hidden states [N, d]."""
        return Head(hidden, self.weight, self.bias, softcap=self.softcap, scale=self.scale)


@dataclass(frozen=True)
class Hidden:
    """Hidden states and the head over them: logits are made chunk by chunk inside the loss, never all at once."""

    hidden: Tensor
    head: OutputHead

    def at(self, rows: Tensor) -> Self:
        """The signal at some of the rows, in their order."""
        return replace(self, hidden=self.hidden[rows])

    def for_loss(self) -> Head:
        """What `lantern_kernels.linear_mixture_loss` takes as its teacher."""
        return self.head.on(self.hidden)


@dataclass(frozen=True)
class Logits:
    """Raw logits [N, V], for a teacher that has no hidden states to give."""

    logits: Tensor

    def at(self, rows: Tensor) -> Self:
        """The signal at some of the rows, in their order."""
        return replace(self, logits=self.logits[rows])

    def for_loss(self) -> Tensor:
        """What `lantern_kernels.linear_mixture_loss` takes as its teacher."""
        return self.logits


@dataclass(frozen=True)
class TopK:
    """The most probable tokens of each position, for a teacher that tells no more: a server, or signals on disk.

    ids [N, k]: different tokens within a row; log_probs [N, k]: theirs, −inf for a token that pads the row;
    tail_log_mass [N]: logarithm of the mass of all other tokens together, −inf if they have none. The tail counts as one
    event, so every divergence on it is a lower bound of the full one, equal at k = V.
    """

    ids: Tensor
    log_probs: Tensor
    tail_log_mass: Tensor

    def at(self, rows: Tensor) -> Self:
        """The signal at some of the rows, in their order."""
        return replace(self, ids=self.ids[rows], log_probs=self.log_probs[rows], tail_log_mass=self.tail_log_mass[rows])

    def for_loss(self) -> lantern_kernels.TopK:
        """What `lantern_kernels.linear_mixture_loss` takes as its teacher, at the teacher's temperature."""
        return lantern_kernels.TopK(self.ids, self.log_probs, self.tail_log_mass)


@dataclass(frozen=True)
class LevelProbs:
    """A distribution over the task's ordered fit levels: probs [B, K], rows sum to 1."""

    probs: Tensor


@dataclass(frozen=True)
class Annotation:
    """What an annotating teacher says about one pair.

    `level` and `explanation` are None where the answer didn't have the task's format; `text` is the answer itself.
    level_probs: how probable each of the task's levels is, where the teacher can tell. finish_reason: "stop", or "length"
    where the answer was cut off. requirements: the job's, with verdicts and the candidate's own words.
    """

    text: str
    level: str | None
    explanation: str | None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    level_probs: tuple[float, ...] | None = None
    finish_reason: str = "stop"
    requirements: tuple[RequirementVerdict, ...] = ()

    @property
    def valid(self) -> bool:
        return self.level is not None
