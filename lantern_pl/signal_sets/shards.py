"""One file of a signal set: its arrays, and the checks that it holds what it says."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lantern_pl.errors import UserError
from lantern_pl.signal_sets.formats import Array, Format
from lantern_pl.signal_sets.keys import KEY_BYTES
from lantern_pl.signal_sets.manifest import Shard, file_digest

# Of the examples [e]: their keys, and where their rows and entries begin and end [e + 1].
EXAMPLE_KEYS, ROW_ENDS, ENTRY_ENDS = "example_keys", "row_ends", "entry_ends"
# Of the pairs [m]: their keys and level distributions.
PAIR_KEYS, LEVEL_PROBS = "pair_keys", "level_probs"
_KEY = Array(torch.uint8, (KEY_BYTES,))
_END = Array(torch.int64)
_REMEDY = "The same `lantern cache` again makes it anew."


def check_file(path: Path, shard: Shard) -> None:
    """Raise UserError unless the file is there, byte by byte as it was written."""
    try:
        size = path.stat().st_size
        if size != shard.bytes:
            raise UserError(
                f"{path} has {size} bytes, the manifest says {shard.bytes}: it was cut short, or is another's. {_REMEDY}"
            )
        found = file_digest(path)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}. {_REMEDY}") from error
    if found != shard.sha256:
        raise UserError(
            f"{path} has the sha256 {found[:16]}..., the manifest says {shard.sha256[:16]}...: it was damaged or changed. "
            f"{_REMEDY}"
        )


def read_arrays(path: Path, shard: Shard, form: Format | None, levels: int | None) -> dict[str, Tensor]:
    """The arrays of a shard, mapped into memory: bytes are read when they're used.

    form: of its token signals, if it has any; levels: how many probabilities a pair has, if it has any. Raises UserError
    where arrays are missing, have another dtype or shape, or don't fit to each other.
    """
    try:
        with safe_open(path, framework="pt") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} isn't a shard of a signal set: {error}.") from error
    wanted: dict[str, tuple[Array, int]] = {}
    if form is not None:
        wanted |= {EXAMPLE_KEYS: (_KEY, shard.examples), ROW_ENDS: (_END, shard.examples)}
        per_entry = any(array.per_entry for array in form.arrays().values())
        if per_entry:
            wanted[ENTRY_ENDS] = (_END, shard.examples)
        entries = _last(arrays.get(ENTRY_ENDS)) if per_entry else 0
        for name, array in form.arrays().items():
            wanted[name] = (array, entries if array.per_entry else shard.tokens)
    if levels is not None:
        wanted |= {PAIR_KEYS: (_KEY, shard.pairs), LEVEL_PROBS: (Array(torch.float32, (levels,)), shard.pairs)}
    if problem := _problem(arrays, wanted, shard):
        raise UserError(f"{path} isn't a shard of this signal set: {problem}.")
    return arrays


def _problem(arrays: Mapping[str, Tensor], wanted: Mapping[str, tuple[Array, int]], shard: Shard) -> str | None:
    if set(arrays) != set(wanted):
        return f"it holds {sorted(arrays)}, expected {sorted(wanted)}"
    for name, (array, length) in wanted.items():
        found, expected = arrays[name], [length, *array.shape]
        if found.dtype != array.dtype or list(found.shape) != expected:
            return f"{name} is {found.dtype} {list(found.shape)}, expected {array.dtype} {expected}"
    for name in (ROW_ENDS, ENTRY_ENDS):
        if name in wanted and len(ends := arrays[name]):
            steps = ends.diff(prepend=torch.zeros(1, dtype=torch.int64))
            if not bool((steps > 0).all()):
                return f"{name} doesn't rise"
    if ROW_ENDS in wanted and _last(arrays[ROW_ENDS]) != shard.tokens:
        return f"{ROW_ENDS} ends at {_last(arrays[ROW_ENDS])}, expected {shard.tokens}"
    return None


def _last(ends: Tensor | None) -> int:
    return int(ends[-1]) if ends is not None and ends.dtype == torch.int64 and ends.ndim == 1 and len(ends) else 0
