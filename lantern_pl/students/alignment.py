"""Where two tokenizers agree: the positions at which a token of both starts at the same byte of the answer.

There, both models have read the same text of the answer and say how it goes on, each in tokens of its own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lantern_pl.data.featurize import DecoderBatch, DecoderFeaturizer
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

    def align(self, batch: DecoderBatch) -> tuple[DecoderBatch, Tensor, Tensor]:
        """The batch in the teacher's tokens, and the ids [n] of the rows that go together: the student's, the teacher's.

        A row is a supervised position, counted as in `DecoderBatch.targets`.
        """
        other = self._teacher.collate([self._teacher.encode(pair) for pair in batch.pairs])
        rows: tuple[list[int], list[int]] = ([], [])
        starts = [0, 0]
        sides = [_answers(batch), _answers(other)]
        for pair, own_ids, other_ids in zip(batch.pairs, *sides, strict=True):
            own, others = prefixes(self._student, own_ids), prefixes(self._teacher.tokenizer, other_ids)
            shared = [text for text in own if text in others]
            if len(shared) < 2:
                # Every answer begins alike; one more shared place is the least that tokenizers which give texts back have.
                raise UserError(
                    f"The tokenizers of teacher and student share no place in the answer of pair {pair.pair_id!r} but its "
                    "start: one of them doesn't give texts back as they were (it lower-cases, say), so their tokens can't "
                    "be aligned. Choose a teacher or a student with another tokenizer."
                )
            rows[0].extend(starts[0] + own[text] for text in shared)
            rows[1].extend(starts[1] + others[text] for text in shared)
            starts = [starts[0] + len(own_ids), starts[1] + len(other_ids)]
        device = batch.targets.device
        return other.to(device), torch.tensor(rows[0], device=device), torch.tensor(rows[1], device=device)


def prefixes(tokenizer: Any, ids: Sequence[int]) -> dict[str, int]:
    """The text ahead of each token -> the token's index. Tokens that start inside of a character are left out."""
    found: dict[str, int] = {}
    for index in range(len(ids)):
        text = tokenizer.decode(ids[:index], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if not text.endswith("�"):
            found.setdefault(text, index)
    return found


def _answers(batch: DecoderBatch) -> list[list[int]]:
    """The supervised token ids of each pair."""
    counts = batch.tokens.positions.sum(-1).tolist()
    return [ids.tolist() for ids in batch.targets.split(counts)]
