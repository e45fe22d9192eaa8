"""Pairs of candidates and jobs: reading, splitting, tokenizing, batching; and a generator of samples.

`PairDataModule` is looked up when it is used: the generator needs no torch, and importing this package shouldn't either.
"""

from typing import Any

from lantern_pl.data.pair import Pair

__all__ = ["Pair", "PairDataModule"]


def __getattr__(name: str) -> Any:
    if name == "PairDataModule":
        from lantern_pl.data.pair_data import PairDataModule

        return PairDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
