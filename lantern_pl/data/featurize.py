"""From pairs to tensors: the prompt and its supervised answer for decoders, the two texts for encoders."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lantern_pl.data.pair import Pair
from lantern_pl.data.plain_texts import plain
from lantern_pl.data.truncation import check_cuts, fit_texts
from lantern_pl.errors import UserError
from lantern_pl.signals import TokenBatch
from lantern_pl.tasks import Task
from lantern_pl.text import chat_prompt

IGNORE = -100
# A text cut shorter than this says nothing; the limit is then too small for the data.
SHORTEST_TEXT = 16


class Batch(Protocol):
    """What a collated batch offers to the trainer. Lightning moves it to the device by `to`."""

    @property
    def pairs(self) -> list[Pair]:
        """The pairs of its rows, in order."""
        ...

    @property
    def token_count(self) -> int:
        """Tokens that aren't padding."""
        ...

    def to(self, device: torch.device, non_blocking: bool = False) -> Self: ...


@dataclass(frozen=True)
class Example:
    """One pair as token ids.

    `answer_start` is where the supervised answer begins (decoders), or the number of ids (nothing is supervised).
    """

    pair: Pair
    input_ids: list[int]
    answer_start: int
    texts_cut: bool = False
    answer_cut: bool = False
    token_type_ids: list[int] | None = None


BatchT = TypeVar("BatchT", bound=Batch)


class Featurizer(Generic[BatchT]):
    """How one kind of student turns pairs into examples, and examples into a batch."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, task: Task, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.task = task
        self.max_length = max_length

    def encode(self, pair: Pair, supervised: bool = True) -> Example:
        """Token ids, at most `max_length`. Raises UserError if the pair lacks what supervision needs."""
        raise TypeError(f"{type(self).__name__} doesn't implement encode")

    def collate(self, examples: Sequence[Example]) -> BatchT:
        """One batch, right-padded to its longest example."""
        raise TypeError(f"{type(self).__name__} doesn't implement collate")

    def _too_small(self, pair: Pair, needed: int) -> UserError:
        return UserError(
            f"max_length is {self.max_length}: pair {pair.pair_id!r} needs at least {needed} tokens, of which its texts "
            f"get {2 * SHORTEST_TEXT}. Set data.init_args.max_length to {needed} or more."
        )


@dataclass(frozen=True)
class DecoderBatch:
    """tokens: B rows of prompt and answer; targets [N]: the next token at each of `tokens.positions`, in its order;
    generated: whether a student wrote the answers, so that they are no annotations."""

    tokens: TokenBatch
    targets: Tensor
    pairs: list[Pair]
    generated: bool = False

    @property
    def token_count(self) -> int:
        return int(self.tokens.attention_mask.sum())

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        tokens = TokenBatch(
            *(
                t.to(device, non_blocking=non_blocking)
                for t in (self.tokens.input_ids, self.tokens.attention_mask, self.tokens.positions)
            )
        )
        return replace(self, tokens=tokens, targets=self.targets.to(device, non_blocking=non_blocking))


class DecoderFeaturizer(Featurizer[DecoderBatch]):
    """The chat prompt, then the answer and the end-of-sequence token. Only those two are supervised."""

    def encode(self, pair: Pair, supervised: bool = True) -> Example:
        answer = self._answer(pair) if supervised else []
        # The answer keeps its start, which holds the level; at most half of the length, so that the texts have the rest.
        kept = answer[: self.max_length // 2]
        _, prompt_ids, texts_cut = self.fitted_prompt(pair, len(kept))
        return Example(
            pair=pair,
            input_ids=prompt_ids + kept,
            answer_start=len(prompt_ids),
            texts_cut=texts_cut,
            answer_cut=len(kept) < len(answer),
        )

    def fitted_prompt(self, pair: Pair, answer: int = 0) -> tuple[str, list[int], bool]:
        """The prompt whose texts are cut to leave room for so many tokens of an answer, its ids, and whether it was cut."""
        overhead = len(self._encode(self._prompt("", "")))
        budget = self.max_length - overhead - answer
        if budget < 2 * SHORTEST_TEXT:
            raise self._too_small(pair, overhead + answer + 2 * SHORTEST_TEXT)
        texts_cut = False
        while True:
            job, candidate, cut = fit_texts(pair.job_text, pair.candidate_text, budget, self.tokenizer)
            prompt = self._prompt(job, candidate)
            prompt_ids = self._encode(prompt)
            texts_cut = texts_cut or cut
            excess = len(prompt_ids) + answer - self.max_length
            if excess <= 0:
                return prompt, prompt_ids, texts_cut
            # Texts can take a few tokens more inside the prompt than on their own.
            budget -= excess

    def collate(self, examples: Sequence[Example]) -> DecoderBatch:
        input_ids, attention_mask = _pad([e.input_ids for e in examples], self.tokenizer.pad_token_id)
        positions = torch.zeros_like(input_ids, dtype=torch.bool)
        targets: list[int] = []
        for row, example in enumerate(examples):
            # The model's output at i predicts token i + 1; this is the only place where the shift is made.
            positions[row, example.answer_start - 1 : len(example.input_ids) - 1] = True
            targets += example.input_ids[example.answer_start :]
        return DecoderBatch(
            tokens=TokenBatch(input_ids, attention_mask, positions),
            targets=torch.tensor(targets, dtype=torch.long),
            pairs=[e.pair for e in examples],
        )

    def prompt(self, pair: Pair) -> str:
        """The prompt to generate from: the same truncated texts that training sees."""
        example = self.encode(pair, supervised=pair.level is not None and pair.explanation is not None)
        return str(self.tokenizer.decode(example.input_ids[: example.answer_start]))

    def _answer(self, pair: Pair) -> list[int]:
        if pair.level is None or not pair.explanation:
            missing = "level" if pair.level is None else "explanation"
            raise UserError(
                f"Pair {pair.pair_id!r} has no {missing}: a decoder learns to write both. Annotate the pairs first."
            )
        ids = self._encode(self.task.render_answer(pair.level, plain(pair.explanation, self.tokenizer)))
        # pad is often the same id as eos: the end is supervised by its position, so the student learns to stop.
        return [*ids, self.tokenizer.eos_token_id]

    def _prompt(self, job: str, candidate: str) -> str:
        return chat_prompt(self.tokenizer, self.task.render_prompt(job, candidate))

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)


@dataclass(frozen=True)
class EncoderBatch:
    """inputs: what the backbone takes, [B, L] each; levels [B]: index of the level, −100 where unknown;
    level_probs [B, K]: the annotation's distribution, NaN where there is none."""

    inputs: dict[str, Tensor]
    levels: Tensor
    level_probs: Tensor
    pairs: list[Pair]

    @property
    def token_count(self) -> int:
        return int(self.inputs["attention_mask"].sum())

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        return replace(
            self,
            inputs={name: t.to(device, non_blocking=non_blocking) for name, t in self.inputs.items()},
            levels=self.levels.to(device, non_blocking=non_blocking),
            level_probs=self.level_probs.to(device, non_blocking=non_blocking),
        )


class EncoderFeaturizer(Featurizer[EncoderBatch]):
    """Job and candidate as the tokenizer's own pair of texts; without one, as two labelled paragraphs."""

    def encode(self, pair: Pair, supervised: bool = True) -> Example:
        if supervised and pair.level is None and pair.level_probs is None:
            raise UserError(f"Pair {pair.pair_id!r} has no level: an encoder needs one. Annotate the pairs first.")
        budget, texts_cut = self.max_length - self._overhead, False
        if budget < 2 * SHORTEST_TEXT:
            raise self._too_small(pair, self._overhead + 2 * SHORTEST_TEXT)
        encoded = self._ids(plain(pair.job_text, self.tokenizer), plain(pair.candidate_text, self.tokenizer))
        # Most texts fit, and need neither be counted nor cut.
        while len(encoded["input_ids"]) > self.max_length:
            job, candidate, texts_cut = fit_texts(pair.job_text, pair.candidate_text, budget, self.tokenizer)
            encoded = self._ids(job, candidate)
            budget -= max(0, len(encoded["input_ids"]) - self.max_length)
        return Example(
            pair=pair,
            input_ids=encoded["input_ids"],
            answer_start=len(encoded["input_ids"]),
            texts_cut=texts_cut,
            token_type_ids=encoded.get("token_type_ids"),
        )

    def collate(self, examples: Sequence[Example]) -> EncoderBatch:
        input_ids, attention_mask = _pad([e.input_ids for e in examples], self.tokenizer.pad_token_id)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if examples[0].token_type_ids is not None:
            inputs["token_type_ids"], _ = _pad([e.token_type_ids or [] for e in examples], 0)
        names = self.task.levels
        pairs = [e.pair for e in examples]
        unknown = (float("nan"),) * len(names)
        return EncoderBatch(
            inputs=inputs,
            levels=torch.tensor([IGNORE if p.level is None else names.index(p.level) for p in pairs]),
            level_probs=torch.tensor([unknown if p.level_probs is None else p.level_probs for p in pairs]),
            pairs=pairs,
        )

    @cached_property
    def _overhead(self) -> int:
        """Tokens that are no text's."""
        check_cuts(self.tokenizer)
        return len(self._ids("", "")["input_ids"])

    def _ids(self, job: str, candidate: str) -> dict[str, Any]:
        texts = (f"Job:\n{job}\n\nCandidate:\n{candidate}",) if self.tokenizer.sep_token_id is None else (job, candidate)
        # Not verbose: a text longer than the model's limit is cut.
        return dict(self.tokenizer(*texts, verbose=False))


def _pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Right-padded ids [B, L] and the mask of what isn't padding."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = 1
    return ids, mask
