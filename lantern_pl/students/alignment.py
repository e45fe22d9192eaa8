"""Where two tokenizers agree: the positions at which a token of both starts at the same byte of the answer.

There, both models have read the same text of the answer and say how it goes on, each in tokens of its own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lantern_pl.data.featurize import DecoderBatch, DecoderFeaturizer, Example
from lantern_pl.data.pair import Pair
from lantern_pl.errors import UserError


class Aligner:
    """Puts a student's batch into the teacher's tokens, and pairs their supervised positions.

    Args:
        student: tokenizer of the student.
        teacher: featurizer that turns pairs into the teacher's tokens.
    """

    def __init__(self, student: Any, teacher: DecoderFeaturizer) -> None:
        self._student = student
        self._teacher = teacher
        self._known: dict[Pair, tuple[Example, list[int], list[int]]] = {}

    def align(self, batch: DecoderBatch) -> tuple[DecoderBatch, Tensor, Tensor]:
        """The batch in the teacher's tokens, and the ids [n] of the rows that go together: the student's, the teacher's.

        A row is a supervised position, counted as in `DecoderBatch.targets`.
        """
        counts = batch.tokens.positions.sum(-1).tolist()
        known = [self._pair(pair, ids.tolist()) for pair, ids in zip(batch.pairs, batch.targets.split(counts), strict=True)]
        other = self._teacher.collate([example for example, _, _ in known])
        rows: list[int] = []
        other_rows: list[int] = []
        start = other_start = 0
        for count, (example, own, others) in zip(counts, known, strict=True):
            rows += [start + index for index in own]
            other_rows += [other_start + index for index in others]
            start += count
            other_start += len(example.input_ids) - example.answer_start
        device = batch.targets.device
        return other.to(device), torch.tensor(rows, device=device), torch.tensor(other_rows, device=device)

    def _pair(self, pair: Pair, ids: list[int]) -> tuple[Example, list[int], list[int]]:
        """A pair in the teacher's tokens, and the indices that go together of its supervised tokens; worked out once."""
        if pair not in self._known:
            example = self._teacher.encode(pair)
            own = prefixes(self._student, ids)
            others = prefixes(self._teacher.tokenizer, example.input_ids[example.answer_start :])
            shorter, longer = sorted((max(own, key=len), max(others, key=len)), key=len)
            if not longer.startswith(shorter):
                raise UserError(
                    f"The tokenizers of teacher and student read the answer of pair {pair.pair_id!r} differently: one "
                    "of them doesn't give texts back as they were (it lower-cases, say), so their tokens can't be aligned. "
                    "Choose a teacher or a student with another tokenizer."
                )
            shared = [text for text in own if text in others]
            self._known[pair] = example, [own[text] for text in shared], [others[text] for text in shared]
        return self._known[pair]


def prefixes(tokenizer: Any, ids: Sequence[int]) -> dict[str, int]:
    """The text ahead of each token -> the token's index. Tokens that start inside of a character are left out."""
    found: dict[str, int] = {}
    for index in range(len(ids)):
        text = tokenizer.decode(ids[:index], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if not text.endswith("�"):
            found.setdefault(text, index)
    return found
