"""From the tokens that a server names to the rows of a top-k signal."""

from collections.abc import Sequence

import torch

from lantern_pl.errors import UserError
from lantern_pl.signals import TopK

Entries = list[tuple[int, float]]
"""Token ids with their log-probabilities at temperature 1, of one position."""

RESOLUTION = 2.0**-24
"""The least mass of all tokens that a server didn't name. Servers compute in float32, in which the sum of what they name
comes out as 1 long before nothing is left. Taken as nothing, the tail would cost a student that gives it any mass as much
as saying the impossible, under reverse KL."""

TOO_MUCH = 1 + 1e-2
"""Rounding doesn't bring a sum of probabilities here; other numbers than log-probabilities do."""


def top_k_signal(rows: Sequence[Entries], k: int, vocab_size: int) -> TopK:
    """The k most probable tokens of each row, in CPU tensors.

    A token counts once; ids that the vocabulary doesn't have count to the tail. Where then fewer than k are named, the row
    is filled with others, which share the tail's mass evenly: nothing says that they can't be.
    Raises UserError for a row without entries, and for one whose numbers aren't log-probabilities.
    """
    ids = torch.empty(len(rows), k, dtype=torch.long)
    log_probs = torch.full((len(rows), k), -torch.inf, dtype=torch.float64)
    named = torch.empty(len(rows), dtype=torch.long)
    for row, entries in enumerate(rows):
        best = _best(entries, k, vocab_size)
        named[row] = len(best)
        log_probs[row, : len(best)] = torch.tensor(list(best.values()), dtype=torch.float64)
        others = (token for token in range(vocab_size) if token not in best)
        ids[row] = torch.tensor([*best, *(next(others) for _ in range(k - len(best)))])
    rest = vocab_size - named
    mass = log_probs.exp().sum(-1)
    wrong = (~(mass <= TOO_MUCH) | (named == 0)).nonzero()
    if len(wrong):
        raise UserError(
            f"The server's log-probabilities make up a mass of {float(mass[wrong[0, 0]]):.4g} at a position; expected above "
            "0 and at most 1. It must give those of the model itself: start vLLM with --logprobs-mode raw_logprobs."
        )
    most = torch.where(rest > 0, 1 - RESOLUTION, 1.0)
    log_probs -= (mass / most).clamp(min=1).log()[:, None]
    tail = torch.where(rest > 0, torch.log1p(-torch.minimum(mass, most)), -torch.inf)
    missing = k - named
    filled = torch.arange(k) >= named[:, None]
    log_probs = torch.where(filled, (tail - rest.clamp(min=1).log())[:, None], log_probs)
    tail = tail + torch.log1p(-missing / rest.clamp(min=1))
    return TopK(ids, log_probs.float(), tail.float())


def _best(entries: Entries, k: int, vocab_size: int) -> dict[int, float]:
    """The most probable different tokens of the vocabulary, at most k; equally probable ones by their ids."""
    best: dict[int, float] = {}
    for token, log_prob in sorted(entries, key=lambda entry: (-entry[1], entry[0])):
        if 0 <= token < vocab_size and len(best) < k:
            best.setdefault(token, log_prob)
    return best
