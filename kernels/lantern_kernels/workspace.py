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
"""Blocks that a thread keeps: one for the student's logits, one for the teacher's."""


class _Blocks(threading.local):
    def __init__(self) -> None:
        self.free: list[Tensor] = []


_blocks = _Blocks()


class Workspace:
    """Hands out buffers for the time of one call."""

    def __init__(self) -> None:
        self._lent: list[Tensor] = []

    def empty(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """``[rows, columns]`` of the dtype and on the device of `like`, holding anything."""
        if not like.is_cpu:
            return like.new_empty(rows, columns)
        size = rows * columns
        fitting = [block for block in _blocks.free if block.numel() >= size and block.dtype == like.dtype]
        if fitting:
            block = min(fitting, key=Tensor.numel)
            _blocks.free = [other for other in _blocks.free if other is not block]
        else:
            # One that is made in inference mode can't be written to outside of it.
            with torch.inference_mode(False):
                block = torch.empty(size, dtype=like.dtype)
        self._lent.append(block)
        return block[:size].view(rows, columns)

    def give_back(self) -> None:
        """Take the buffers back; the largest are kept."""
        _blocks.free = sorted([*_blocks.free, *self._lent], key=lambda block: block.nbytes)[-_KEPT:]
        self._lent = []


@contextmanager
def borrowed() -> Iterator[Workspace]:
    """A workspace whose buffers are free again afterwards. A call within a call gets others."""
    workspace = Workspace()
    try:
        yield workspace
    finally:
        workspace.give_back()
