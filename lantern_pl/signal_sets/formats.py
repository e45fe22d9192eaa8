"""What of a token signal goes to disk, and how it is read back: the most probable tokens, samples, or hidden states.

Arrays come in two kinds: per row (supervised position), [N, ...]; and per entry, flat, where rows have different numbers
of entries, which the array `entries` [N] gives.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lantern_pl.errors import UserError
from lantern_pl.signal_sets.packing import decode_log_probs, encode_log_probs, id_bytes, pack_ids, unpack_ids
from lantern_pl.signals import Hidden, Logits, OutputHead, TopK

LogProbs = Literal["u8", "f32"]
# Of f32 arrays that were written as they came; a sum of thousands of roundings.
_MASS_TOLERANCE = 1e-3
_ROWS_AT_ONCE = 64
_ROWS_CHECKED_AT_ONCE = 4096

_DTYPES = {
    name: getattr(torch, name) for name in ("uint8", "uint16", "uint32", "uint64", "int64", "float16", "bfloat16", "float32")
}


@dataclass(frozen=True)
class Array:
    """Dtype, and shape after the first dimension, of an array; whether it has one line per entry instead of per row."""

    dtype: torch.dtype
    shape: tuple[int, ...] = ()
    per_entry: bool = False


class Format(ABC):
    """One way to store a token signal."""

    mode: ClassVar[str]

    @abstractmethod
    def arrays(self) -> Mapping[str, Array]:
        """The arrays by their names."""

    @abstractmethod
    def encode(self, signal: Hidden | Logits | TopK, seed: int) -> dict[str, Tensor]:
        """The signal of one example as arrays on the CPU. `seed` is the example's own."""

    @abstractmethod
    def check(self, arrays: Mapping[str, Tensor]) -> None:
        """Raise UserError for values that can't be, in the arrays of a whole file: once, before any of it is decoded."""

    @abstractmethod
    def decode(self, arrays: Mapping[str, Tensor]) -> Hidden | TopK:
        """The signal of any number of rows, of arrays that were checked."""

    def bytes_per_token(self) -> float:
        """What a supervised position takes, without keys and headers; an expectation where that differs by row."""
        return float(
            sum(array.dtype.itemsize * math.prod(array.shape) for array in self.arrays().values() if not array.per_entry)
        )


class TopKFormat(Format):
    """The k most probable tokens, and the mass of all others together.

    Args:
        k: how many tokens.
        vocab_size: of how many.
        log_probs: u8 (see `packing`) with the tail's mass as f16, or f32 for both, which is exact.
        packed: whether ids take as few bits as the vocabulary needs, instead of 32.
        temperature: that of the distribution.
    """

    mode = "top_k"

    def __init__(self, k: int, vocab_size: int, log_probs: LogProbs, packed: bool, temperature: float) -> None:
        self.k = k
        self.vocab_size = vocab_size
        self.log_probs = log_probs
        self.packed = packed
        self.temperature = temperature

    def arrays(self) -> Mapping[str, Array]:
        exact = self.log_probs == "f32"
        return {
            **_id_arrays(self.k, self.vocab_size, self.packed),
            "log_probs": Array(torch.float32 if exact else torch.uint8, (self.k,)),
            "tail_log_mass": Array(torch.float32 if exact else torch.float16),
        }

    def encode(self, signal: Hidden | Logits | TopK, seed: int) -> dict[str, Tensor]:
        top = top_k_of(signal, self.k, self.temperature, self.vocab_size)
        if top.log_probs.isnan().any() or top.tail_log_mass.isnan().any():
            raise UserError("NaN among its scores")
        arrays = store_ids(top.ids.cpu(), self.vocab_size, self.packed)
        log_probs, tail = top.log_probs.float().cpu(), top.tail_log_mass.float().cpu()
        if self.log_probs == "f32":
            return {**arrays, "log_probs": log_probs, "tail_log_mass": tail}
        return {**arrays, "log_probs": encode_log_probs(log_probs), "tail_log_mass": tail.half()}

    def check(self, arrays: Mapping[str, Tensor]) -> None:
        for start in range(0, len(arrays["tail_log_mass"]), _ROWS_CHECKED_AT_ONCE):
            rows = {name: array[start : start + _ROWS_CHECKED_AT_ONCE] for name, array in arrays.items()}
            if not bool((rows["tail_log_mass"].float() <= 0).all()):
                raise UserError("a tail whose mass is above 1 or no number")
            signal = self.decode(rows)
            mass = signal.log_probs.exp().sum(-1) + signal.tail_log_mass.exp()
            if not bool(((mass - 1).abs() < _MASS_TOLERANCE).all()):
                raise UserError("log-probabilities whose mass isn't 1")
            ordered = signal.ids.sort(-1).values
            if not bool(((ordered[:, 0] >= 0) & (ordered[:, -1] < self.vocab_size)).all()):
                raise UserError(f"ids of tokens outside of 0 to {self.vocab_size - 1}")
            if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
                raise UserError("a position that names a token twice")

    def decode(self, arrays: Mapping[str, Tensor]) -> TopK:
        tail = arrays["tail_log_mass"].float()
        stored = arrays["log_probs"]
        log_probs = decode_log_probs(stored, tail) if self.log_probs == "u8" else stored
        return TopK(_load_ids(arrays, self.vocab_size, self.packed), log_probs, tail)


class SampledFormat(Format):
    """Tokens drawn from the teacher's distribution, with how often each was drawn (arXiv 2503.16870).

    The frequencies are an unbiased estimate of the distribution, and so is the gradient of the forward KL to them; other
    divergences aren't linear in them.

    Args:
        rounds: how many tokens are drawn at each position, with replacement; at most 255.
        vocab_size: of how many.
        packed: as in `TopKFormat`.
        temperature: that of the distribution.
        widest: the largest number of different tokens at a position, known once all are drawn.
    """

    mode = "sampled"

    def __init__(self, rounds: int, vocab_size: int, packed: bool, temperature: float, widest: int | None = None) -> None:
        self.rounds = rounds
        self.vocab_size = vocab_size
        self.packed = packed
        self.temperature = temperature
        self.widest = widest

    def arrays(self) -> Mapping[str, Array]:
        entries = {name: Array(a.dtype, a.shape, True) for name, a in _id_arrays(1, self.vocab_size, self.packed).items()}
        return {"entries": Array(torch.uint8), **entries, "times": Array(torch.uint8, per_entry=True)}

    def bytes_per_token(self) -> float:
        # About a dozen of 50 draws are different tokens (section 4 of the paper).
        different = self.rounds / 4
        return 1 + different * (1 + id_bytes(1, self.vocab_size, self.packed))

    def encode(self, signal: Hidden | Logits | TopK, seed: int) -> dict[str, Tensor]:
        if isinstance(signal, TopK):
            raise UserError("only the most probable tokens, of which no unbiased sample can be drawn: use mode top_k")
        generator = torch.Generator().manual_seed(seed)
        drawn = []
        for logits in logits_of(signal):
            probs = (logits[:, : self.vocab_size] / self.temperature).softmax(-1).cpu()
            if probs.isnan().any():
                raise UserError("NaN among its scores")
            drawn.append(torch.multinomial(probs, self.rounds, replacement=True, generator=generator))
        samples = torch.cat(drawn).sort(-1).values
        first = torch.ones_like(samples, dtype=torch.bool)
        first[:, 1:] = samples[:, 1:] != samples[:, :-1]
        starts = first.flatten().nonzero()[:, 0]
        ends = torch.cat([starts[1:], torch.tensor([samples.numel()])])
        ids = samples.flatten()[starts][:, None]
        return {
            "entries": first.sum(-1).to(torch.uint8),
            **store_ids(ids, self.vocab_size, self.packed),
            "times": (ends - starts).to(torch.uint8),
        }

    def check(self, arrays: Mapping[str, Tensor]) -> None:
        ids = _load_ids(arrays, self.vocab_size, self.packed)
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            raise UserError(f"ids of tokens outside of 0 to {self.vocab_size - 1}")

    def decode(self, arrays: Mapping[str, Tensor]) -> TopK:
        """Raises UserError too, where rows and entries don't fit to each other: only the reader knows where rows begin."""
        assert self.widest is not None
        entries, times = arrays["entries"].long(), arrays["times"].float()
        ids = _load_ids(arrays, self.vocab_size, self.packed)[:, 0].long()
        if int(entries.sum()) != len(ids) or not bool(((entries > 0) & (entries <= self.widest)).all()):
            raise UserError("rows with another number of tokens than there are")
        rows = torch.arange(len(entries)).repeat_interleave(entries)
        # They were written in order.
        if bool(((ids[1:] <= ids[:-1]) & (rows[1:] == rows[:-1])).any()):
            raise UserError("a position that names a token twice")
        columns = torch.arange(len(ids)) - (entries.cumsum(0) - entries)[rows]
        log_probs = torch.full((len(entries), self.widest), -math.inf)
        log_probs[rows, columns] = (times / self.rounds).log()
        if not bool(((log_probs.exp().sum(-1) - 1).abs() < _MASS_TOLERANCE).all()):
            raise UserError("rows with another number of draws than were made")
        padded = self._fillers(rows, ids, len(entries))
        # Fillers stand in the last columns of a row, behind its tokens.
        padded = padded.gather(1, (torch.arange(self.widest)[None] - entries[:, None]).clamp_min(0))
        padded[rows, columns] = ids
        return TopK(padded, log_probs, torch.full((len(entries),), -math.inf))

    def _fillers(self, rows: Tensor, ids: Tensor, count: int) -> Tensor:
        """For each row the smallest ids that it doesn't name, [count, widest]: ids within a row have to differ."""
        assert self.widest is not None
        free = torch.ones(count, min(2 * self.widest, self.vocab_size), dtype=torch.bool)
        near = ids < free.shape[1]
        free[rows[near], ids[near]] = False
        found = free.to(torch.uint8).sort(dim=-1, descending=True, stable=True).indices
        return nn.functional.pad(found, (0, max(0, self.widest - found.shape[1])))[:, : self.widest]


class HiddenFormat(Format):
    """Last hidden states as they are, without loss; the output head lies beside them, once.

    Args:
        width: of a hidden state.
        dtype: of a hidden state, such as "bfloat16".
        head: the output head; None until the set is read.
        vocab_size: rows of the head.
    """

    mode = "hidden"

    def __init__(self, width: int, dtype: str, vocab_size: int, head: OutputHead | None = None) -> None:
        self.width = width
        self.dtype = dtype
        self.vocab_size = vocab_size
        self.head = head

    def arrays(self) -> Mapping[str, Array]:
        return {"hidden": Array(_DTYPES[self.dtype], (self.width,))}

    def encode(self, signal: Hidden | Logits | TopK, seed: int) -> dict[str, Tensor]:
        if not isinstance(signal, Hidden):
            raise UserError("no hidden states: use mode top_k")
        if signal.hidden.isnan().any():
            raise UserError("NaN among its hidden states")
        return {"hidden": signal.hidden.cpu()}

    def check(self, arrays: Mapping[str, Tensor]) -> None:
        for rows in arrays["hidden"].split(_ROWS_CHECKED_AT_ONCE):
            if not bool(rows.isfinite().all()):
                raise UserError("hidden states that are no finite numbers")

    def decode(self, arrays: Mapping[str, Tensor]) -> Hidden:
        assert self.head is not None
        return Hidden(arrays["hidden"], self.head)


def logits_of(signal: Hidden | Logits) -> Iterator[Tensor]:
    """Logits in fp32, [n, V], some rows at a time."""
    if isinstance(signal, Logits):
        for rows in signal.logits.split(_ROWS_AT_ONCE):
            yield rows.float()
        return
    # Products in half precision would round the logits themselves, as the loss online never does.
    head, weight = signal.head, signal.head.weight.float()
    bias = None if head.bias is None else head.bias.float()
    for rows in signal.hidden.split(_ROWS_AT_ONCE):
        logits = nn.functional.linear(rows.float(), weight, bias) * head.scale
        yield logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def top_k_of(signal: Hidden | Logits | TopK, k: int, temperature: float, vocab_size: int | None = None) -> TopK:
    """The k most probable tokens of each row at a temperature, and the mass of all others.

    Ids from vocab_size on, which a padded embedding has, count to the others. Of a TopK signal, which must be at that
    temperature already, the k best of it; raises UserError where it names fewer.
    """
    if isinstance(signal, TopK):
        log_probs = signal.log_probs
        if vocab_size is not None:
            log_probs = log_probs.masked_fill(signal.ids >= vocab_size, -math.inf)
        values, order = log_probs.topk(k)
        ids = signal.ids.gather(-1, order)
        if vocab_size is not None and bool((ids >= vocab_size).any()):
            raise UserError(f"fewer than k={k} tokens of the {vocab_size} that its tokenizer has: give a smaller k")
        dropped = signal.log_probs.scatter(-1, order, -math.inf).logsumexp(-1)
        return TopK(ids, values, torch.logaddexp(signal.tail_log_mass, dropped))
    parts = [
        _top_k_rows(logits / temperature if temperature != 1 else logits, k, vocab_size) for logits in logits_of(signal)
    ]
    ids, log_probs, tails = (torch.cat(part) for part in zip(*parts, strict=True))
    return TopK(ids, log_probs, tails)


def _top_k_rows(logits: Tensor, k: int, vocab_size: int | None) -> tuple[Tensor, Tensor, Tensor]:
    values, ids = logits[:, :vocab_size].topk(k)
    known = values.logsumexp(-1)
    # Not 1 − Σ p, which loses everything where the known tokens hold nearly all the mass. What is below e^−87 of that is 0.
    shares = (logits - known[:, None]).exp_().scatter_(-1, ids, 0.0)
    tail = shares.sum(-1).log()
    total = torch.logaddexp(torch.zeros_like(tail), tail)
    return ids, values - (known + total)[:, None], tail - total


def _id_arrays(k: int, vocabulary: int, packed: bool) -> dict[str, Array]:
    if not packed:
        return {"ids": Array(torch.uint32, (k,))}
    low = {"ids_low": Array(torch.uint16, (k,))}
    high_bytes = id_bytes(k, vocabulary, True) - 2 * k
    return {**low, "ids_high": Array(torch.uint8, (high_bytes,))} if high_bytes else low


def store_ids(ids: Tensor, vocabulary: int, packed: bool) -> dict[str, Tensor]:
    return pack_ids(ids, vocabulary) if packed else {"ids": ids.int().view(torch.uint32)}


def _load_ids(arrays: Mapping[str, Tensor], vocabulary: int, packed: bool) -> Tensor:
    """Ids int32, as many as there are."""
    return unpack_ids(arrays["ids_low"], arrays.get("ids_high"), vocabulary) if packed else arrays["ids"].view(torch.int32)
