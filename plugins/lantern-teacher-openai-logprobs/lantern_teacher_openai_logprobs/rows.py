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

    A token counts once; ids that the vocabulary doesn't have count to the tail.
    Raises UserError for a row that then names fewer than k, and for one whose numbers aren't log-probabilities. Nothing can
    stand in for what isn't named: a guess of its probability would be no lower bound any more.
    """
    best = [_best(entries, k, vocab_size) for entries in rows]
    for entries, named in zip(rows, best, strict=True):
        if len(named) < k:
            beyond = sum(not 0 <= token < vocab_size for token, _ in entries)
            raise UserError(
                f"The server names {len(named)} tokens of the vocabulary at a position where top_k={k} were asked, and "
                f"{beyond} beyond its {vocab_size}: set top_k to {max(len(named), 1)} or less."
            )
    ids = torch.tensor([list(named) for named in best], dtype=torch.long).reshape(len(rows), k)
    log_probs = torch.tensor([list(named.values()) for named in best], dtype=torch.float64).reshape(len(rows), k)
    mass = log_probs.exp().sum(-1)
    wrong = (~(mass <= TOO_MUCH)).nonzero()  # NaN is wrong too
    if len(wrong):
        raise UserError(
            f"The server's log-probabilities make up a mass of {float(mass[wrong[0, 0]]):.4g} at a position; expected at "
            "most 1. It must give those of the model itself: start vLLM with --logprobs-mode raw_logprobs."
        )
    if k == vocab_size:
        # What a server gives to rows of a padded embedding is no token's.
        return TopK(ids, (log_probs - mass.log()[:, None]).float(), torch.full(mass.shape, -torch.inf))
    most = 1 - RESOLUTION
    log_probs -= (mass / most).clamp(min=1).log()[:, None]
    tail = torch.log1p(-mass.clamp(max=most))
    return TopK(ids, log_probs.float(), tail.float())


def _best(entries: Entries, k: int, vocab_size: int) -> dict[int, float]:
    """The most probable different tokens of the vocabulary, at most k; equally probable ones by their ids."""
    best: dict[int, float] = {}
    for token, log_prob in sorted(entries, key=lambda entry: (-entry[1], entry[0])):
        if 0 <= token < vocab_size and len(best) < k:
            best.setdefault(token, log_prob)
    return best
