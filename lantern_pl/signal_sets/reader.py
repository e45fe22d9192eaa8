"""A signal set for reading: any examples in any order, from files that are mapped into memory."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lantern_pl.errors import UserError
from lantern_pl.signal_sets.formats import Format, SampledFormat
from lantern_pl.signal_sets.keys import KeyIndex
from lantern_pl.signal_sets.manifest import Manifest, read_manifest
from lantern_pl.signal_sets.shards import (
    ENTRY_ENDS,
    EXAMPLE_KEYS,
    LEVEL_PROBS,
    PAIR_KEYS,
    ROW_ENDS,
    check_file,
    read_arrays,
)
from lantern_pl.signals import Hidden, LevelProbs, OutputHead, TopK

# A bar for what takes longer than a second or two.
_BYTES_TO_SHOW = 1 << 31


class SignalSet:
    """What `lantern cache` has written.

    May be sent to other processes, which open the files themselves.

    Args:
        folder: where.
        verify: whether to read all files and compare their sha256 with the manifest's first.

    Raises:
        UserError: for a set that isn't finished, a file that is missing, damaged or of another set.
    """

    def __init__(self, folder: str | Path, verify: bool = True) -> None:
        self.folder = Path(folder)
        self.manifest: Manifest = read_manifest(self.folder)
        self.form: Format | None = None
        if verify:
            self._verify()
        self._open()

    def _verify(self) -> None:
        head = self.manifest.head
        shards = [*self.manifest.shards, *([head] if head else [])]
        with ThreadPoolExecutor() as pool:
            checks: Iterable[None] = pool.map(lambda shard: check_file(self.folder / shard.file, shard), shards)
            if sum(shard.bytes for shard in shards) > _BYTES_TO_SHOW:
                checks = track(checks, f"Verifying {self.folder}", total=len(shards))
            for _ in checks:
                pass

    def _open(self) -> None:
        manifest = self.manifest
        try:
            self.form = manifest.tokens.format(self._head()) if manifest.tokens else None
            if isinstance(self.form, SampledFormat) and self.form.widest is None:
                raise UserError("it doesn't say how many tokens a position has at most")
        except UserError as error:
            raise UserError(f"The signal set {str(self.folder)!r} can't be read: {error}.") from error
        levels = len(manifest.levels) if manifest.levels else None
        self._shards = [read_arrays(self.folder / s.file, s, self.form, levels) for s in manifest.shards]
        # Where each shard's examples begin in the whole set.
        self._first = np.cumsum([0, *(shard.examples for shard in manifest.shards)])
        self._examples = KeyIndex(self._keys(EXAMPLE_KEYS))
        self._pairs = KeyIndex(self._keys(PAIR_KEYS))
        probs = [arrays[LEVEL_PROBS] for arrays in self._shards if LEVEL_PROBS in arrays]
        self._level_probs = torch.cat(probs) if probs else torch.empty(0, 0)
        self._rows, self._entries = self._ranges(ROW_ENDS), self._ranges(ENTRY_ENDS)
        names = self.form.arrays() if self.form else ()
        self._bytes = [{name: _for_copying(arrays[name]) for name in names} for arrays in self._shards]
        self._checked: set[int] = set()

    def _head(self) -> OutputHead | None:
        tokens, head = self.manifest.tokens, self.manifest.head
        if tokens is None or tokens.mode != "hidden":
            return None
        if head is None:
            raise UserError("it has hidden states and no output head")
        try:
            arrays = load_file(self.folder / head.file)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"its {head.file} isn't a file of safetensors: {error}") from error
        weight, bias = arrays.get("weight"), arrays.get("bias")
        if weight is None or list(weight.shape) != [tokens.vocab_size, tokens.width] or not weight.is_floating_point():
            raise UserError(f"its output head isn't [{tokens.vocab_size}, {tokens.width}]")
        if bias is not None and (list(bias.shape) != [tokens.vocab_size] or not bias.is_floating_point()):
            raise UserError(f"its output head's bias isn't [{tokens.vocab_size}]")
        return OutputHead(weight, bias, softcap=tokens.softcap, scale=tokens.scale)

    def _keys(self, name: str) -> np.ndarray:
        keys = [arrays[name].numpy() for arrays in self._shards if name in arrays]
        whole = np.concatenate(keys) if keys else np.empty((0, 16), dtype=np.uint8)
        return np.ascontiguousarray(whole).view("<u8").reshape(-1, 2)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def find_examples(self, keys: np.ndarray) -> np.ndarray:
        """The number of each example [n] by its key (u64 [n, 2]); −1 where it isn't in the set."""
        return self._examples.find(keys)

    def find_pairs(self, keys: np.ndarray) -> np.ndarray:
        """The same for the pairs of level distributions."""
        return self._pairs.find(keys)

    def level_probs(self, pairs: Sequence[int] | np.ndarray) -> LevelProbs:
        """The level distributions of pairs by their numbers."""
        return LevelProbs(self._level_probs[torch.as_tensor(np.asarray(pairs))])

    def tokens(self, examples: Sequence[int] | np.ndarray) -> Hidden | TopK:
        """The token signals of examples by their numbers, row after row. Raises UserError for numbers that aren't there, and
        for values that can't be."""
        assert self.form is not None
        arrays = self.arrays_of(examples)
        try:
            for shard in set(self._shards_of(examples)) - self._checked:
                self.form.check(self._shards[shard])
                self._checked.add(shard)
            return self.form.decode(arrays)
        except UserError as error:
            raise UserError(f"The signal set {str(self.folder)!r} holds {error}: it was damaged. Make it anew.") from error

    def arrays_of(self, examples: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """The same as it is stored."""
        assert self.form is not None
        numbers, shards = np.asarray(examples, dtype=np.int64), self._shards_of(examples)
        rows, entries = self._rows[numbers].tolist(), self._entries[numbers].tolist() if len(self._entries) else []
        found = {}
        for name, array in self.form.arrays().items():
            # Slices and one copy: an index for each row would take longer than the copy.
            ranges = entries if array.per_entry else rows
            parts = [self._bytes[shard][name][start:end] for shard, (start, end) in zip(shards, ranges, strict=True)]
            if parts:
                found[name] = torch.from_numpy(np.concatenate(parts)).view(array.dtype)
            else:
                found[name] = torch.empty(0, *array.shape, dtype=array.dtype)
        return found

    def _shards_of(self, examples: Sequence[int] | np.ndarray) -> list[int]:
        """The shard of each example. Raises UserError for a number that isn't there."""
        numbers, count = np.asarray(examples, dtype=np.int64), self.manifest.examples
        outside = numbers[(numbers < 0) | (numbers >= count)]
        if len(outside):
            raise UserError(f"The signal set {str(self.folder)!r} has {count} examples, and no number {outside[0]}.")
        shards: list[int] = (np.searchsorted(self._first, numbers, side="right") - 1).tolist()
        return shards

    def rows_of(self, example: int) -> int:
        """How many supervised positions an example has."""
        start, end = self._rows[example]
        return int(end - start)

    def _ranges(self, name: str) -> np.ndarray:
        """Where each example begins and ends in the arrays of its shard, [examples, 2]; empty if there is no such array."""
        ends = [arrays[name].numpy() for arrays in self._shards if name in arrays]
        return np.concatenate([np.stack([np.r_[0, end][:-1], end], -1) for end in ends]) if ends else np.empty((0, 2), int)


# numpy doesn't know all of torch's dtypes, and only copies.
_AS_BYTES = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def _for_copying(array: Tensor) -> np.ndarray:
    copied: np.ndarray = array.view(_AS_BYTES.get(array.element_size(), array.dtype)).numpy()
    return copied
