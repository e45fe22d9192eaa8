"""What an example is known by in a signal set: a hash of what the teacher saw, so nothing else can be taken for it."""

import hashlib
from collections.abc import Sequence

import numpy as np

from lantern_pl.data.pair import Pair
from lantern_pl.signals import TokenBatch

KEY_BYTES = 16


def example_key(input_ids: Sequence[int], answer_start: int) -> bytes:
    """Of a prompt and its answer as token ids, supervised from `answer_start` on."""
    return _digest(np.asarray([answer_start, *input_ids], dtype="<i4").tobytes())


def pair_key(pair: Pair) -> bytes:
    """Of the two texts of a pair."""
    job, candidate = pair.job_text.encode(), pair.candidate_text.encode()
    return _digest(len(job).to_bytes(8, "little") + job + candidate)


def batch_keys(batch: TokenBatch) -> tuple[list[bytes], list[int]]:
    """The keys of the batch's rows that have supervised positions, and how many each has."""
    lengths = batch.attention_mask.sum(-1).tolist()
    counts = batch.positions.sum(-1).tolist()
    # A position predicts the token after it.
    starts = (batch.positions.int().argmax(-1) + 1).tolist()
    rows = zip(batch.input_ids.cpu().tolist(), lengths, starts, counts, strict=True)
    keys = [example_key(ids[:length], start) for ids, length, start, count in rows if count]
    return keys, [count for count in counts if count]


def as_numbers(keys: Sequence[bytes]) -> np.ndarray:
    """Keys as pairs of u64, [n, 2]."""
    return np.frombuffer(b"".join(keys), dtype="<u8").reshape(-1, 2)


class KeyIndex:
    """Finds keys among those of a set: by binary search on their first half."""

    def __init__(self, keys: np.ndarray) -> None:
        self._order = np.argsort(keys[:, 0], kind="stable")
        self._sorted = keys[self._order]

    def find(self, wanted: np.ndarray) -> np.ndarray:
        """The place of each key [n], −1 where it isn't there."""
        if not len(self._order) or not len(wanted):
            return np.full(len(wanted), -1)
        at = np.searchsorted(self._sorted[:, 0], wanted[:, 0]).clip(max=len(self._order) - 1)
        return np.where((self._sorted[at] == wanted).all(-1), self._order[at], -1)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=KEY_BYTES).digest()
