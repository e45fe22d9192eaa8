"""Buffers for chunks of logits, which a thread keeps from one call to the next on a CPU.

There, the allocator gives large blocks back to the system at once, and maps them anew page by page: with buffers of its own
for each call, a loss spends a tenth of its time on page faults. On an accelerator torch's allocator keeps blocks itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_KEPT = 2
"""Blocks of each dtype that a thread keeps: one for the student's logits, one for the teacher's."""

_LARGEST_KEPT = 256 << 20
"""Bytes; a larger block, of a call with a chunk size of its own, is given back to the system."""


class _Blocks(threading.local):
    def __init__(self) -> None:
        self.free: dict[torch.dtype, list[Tensor]] = {}


_blocks = _Blocks()


class Workspace:
    """Hands out buffers for the time of one call."""

    def __init__(self) -> None:
        self._lent: list[Tensor] = []

    def empty(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """``[rows, columns]`` of the dtype and on the device of `like`, holding anything."""
        if not like.is_cpu:
            return like.new_empty(rows, columns)
        size, free = rows * columns, _blocks.free.setdefault(like.dtype, [])
        fitting = [index for index, block in enumerate(free) if block.numel() >= size]
        if fitting:
            block = free.pop(min(fitting, key=lambda index: free[index].numel()))
        else:
            # One that is made in inference mode can't be written to outside of it.
            with torch.inference_mode(False):
                block = torch.empty(size, dtype=like.dtype)
        self._lent.append(block)
        return block[:size].view(rows, columns)

    def give_back(self) -> None:
        """Take the buffers back; the largest that may be kept are."""
        for block in self._lent:
            if block.nbytes <= _LARGEST_KEPT:
                kept = [*_blocks.free[block.dtype], block]
                _blocks.free[block.dtype] = sorted(kept, key=Tensor.numel)[-_KEPT:]
        self._lent = []


@contextmanager
def borrowed() -> Iterator[Workspace]:
    """A workspace whose buffers are free again afterwards. A call within a call gets others."""
    workspace = Workspace()
    try:
        yield workspace
    finally:
        workspace.give_back()
