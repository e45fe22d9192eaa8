"""The one exception for what a user can put right: shown as a single message, exit code 2."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from lantern_pl.option_spelling import as_declared


class UserError(Exception):
    """Something in the config, the data or the installation is wrong; the message names it and says what to do."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence with the known names nearest to `name`, or all of them when none is near."""
    known = sorted(known)
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(repr(n) for n in near)}?"
    return f"Known: {', '.join(known) if known else 'none'}."


class CommandParser(argparse.ArgumentParser):
    """argparse, whose errors are messages like all others: without a usage dump."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        given = sys.argv[1:] if args is None else args
        return super().parse_args(as_declared(given, self._option_string_actions), namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}. See {self.prog} --help.")
