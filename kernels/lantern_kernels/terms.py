"""One divergence of a mixture, with its weight and the name under which it's logged."""

from __future__ import annotations

import difflib
import inspect
import itertools
import math
from collections.abc import Sequence
from typing import SupportsFloat
from weakref import WeakValueDictionary

from lantern_kernels.divergences import FIRST_PARTY, General, Pointwise

CROSS_ENTROPY = "cross_entropy"
"""The key of the cross entropy among the terms of a `MixtureOutput`; no term may take it as its label."""


_PARAMETERS = {name: list(inspect.signature(cls).parameters) for name, cls in FIRST_PARTY.items()}

# Terms whose divergence is an object, by their keys.
_with_objects: WeakValueDictionary[str, Term] = WeakValueDictionary()
_numbers = itertools.count()


class Term:
    """One divergence of a mixture.

    Args:
        divergence: A first-party name (``kl``, ``reverse_kl``, ``js``, ``tvd``), or an object that implements
            `Pointwise` or `General`.
        weight: Its factor in the loss. 0 keeps the term in the output and out of the gradient.
        label: Its key in `MixtureOutput.terms`; the divergence's name unless given.
        parameters: What the named divergence takes, e.g. ``beta`` for ``js``.

    Raises:
        ValueError: For an unknown name or parameter, a parameter out of its range, or a weight that isn't finite.

    `key` spells the divergence in a string, which finds it again while this term lives (`from_key`).
    """

    def __init__(
        self,
        divergence: str | Pointwise | General,
        weight: float = 1.0,
        *,
        label: str | None = None,
        **parameters: float,
    ):
        if not isinstance(weight, SupportsFloat) or not math.isfinite(weight):
            raise ValueError(f"weight is {weight!r}; a term's weight must be a finite number")
        self.divergence: Pointwise | General
        if isinstance(divergence, str):
            self.divergence = _first_party(divergence, parameters)
            self.key = " ".join([divergence, *[f"{name}={value}" for name, value in parameters.items()]])
        elif parameters:
            raise ValueError(
                f"{', '.join(parameters)}: parameters belong to a divergence given by name; "
                f"{type(divergence).__name__} is an object and already has its own"
            )
        elif isinstance(divergence, (Pointwise, General)) and not isinstance(divergence, type):
            self.divergence = divergence
            self.key = f"#{next(_numbers)}"
            _with_objects[self.key] = self
        else:
            raise ValueError(
                f"divergence is {divergence!r}; expected a name ({', '.join(FIRST_PARTY)}) or an object with `name` "
                "and either `value_and_slope` (pointwise) or `__call__` (general)"
            )
        self.weight = float(weight)
        self.label = self.divergence.name if label is None else label

    def __repr__(self) -> str:
        return f"Term({self.label!r}, weight={self.weight:g})"


def from_key(key: str, weight: float, label: str) -> Term:
    """The term whose `key` this is, with a weight and a label."""
    if key in _with_objects:
        return Term(_with_objects[key].divergence, weight, label=label)
    name, *parameters = key.split(" ")
    return Term(name, weight, label=label, **{k: float(v) for k, v in (pair.split("=") for pair in parameters)})


def check_labels(terms: Sequence[Term]) -> None:
    """Raise ValueError unless `terms` are Terms whose labels tell them apart."""
    seen: set[str] = {CROSS_ENTROPY}
    for position, term in enumerate(terms):
        if not isinstance(term, Term):
            raise ValueError(f"terms[{position}] is {term!r}; expected a Term, such as Term('kl', weight=1.0)")
        if term.label in seen:
            raise ValueError(
                f"terms[{position}] is labelled {term.label!r}, which is taken; "
                "give it a label of its own, such as Term(..., label='js_0.1')"
            )
        seen.add(term.label)


def _first_party(name: str, parameters: dict[str, float]) -> Pointwise:
    if name not in FIRST_PARTY:
        near = difflib.get_close_matches(name, FIRST_PARTY, n=2, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"divergence is {name!r}; {hint}known names are {', '.join(FIRST_PARTY)}")
    cls = FIRST_PARTY[name]
    accepted = _PARAMETERS[name]
    if unknown := [key for key in parameters if key not in accepted]:
        takes = f"takes {', '.join(accepted)}" if accepted else "takes no parameters"
        raise ValueError(f"{unknown[0]}={parameters[unknown[0]]!r} is no parameter of {name}, which {takes}")
    divergence: Pointwise = cls(**parameters)
    return divergence
