"""What texts have in common at their beginning is run once: keys and values of a common prefix are the same in each.

The prompts of a task begin alike, and those about one job are alike up to the candidate. A causal model's keys and values
at a token depend on the tokens before it alone, so a text goes on from a cache that another text has left. Rounding aside,
the results are those of whole texts.

The caches here are plain ones, which keep every token in every layer; also where a model attends to a window of tokens
only, as its mask says that, not its cache. So they can be cut back to any prefix, and take more memory than the model's
own might. They hold the keys and values of all rows of a batch at once, which a run without a cache needn't.
"""

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lantern_pl.causal_lm import hidden_at_positions
from lantern_pl.errors import UserError
from lantern_pl.signals import TokenBatch

SHORTEST_SHARED = 32
"""Tokens by which rows are told apart: those alike for so many more go on together."""
LEAST_SAVED = 64
"""Tokens that running a prefix by itself must save, over all of its rows: a run more costs about as much as these do,
measured with 135M weights on a CPU."""


@torch.no_grad()
def check_sharing(lm: PreTrainedModel) -> None:
    """Raise UserError unless the model can go on from a prefix: the state of each layer must be keys and values by token.

    A recurrent layer's state can't be cut back to a prefix. A model that takes no cache would read the rest of a text as a
    whole one, silently, so a few tokens are also run in two parts and as a whole.
    """
    kinds = {type(layer) for layer in DynamicCache(config=lm.config).layers}
    if kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        backbone: Any = lm.get_decoder()
        ids = torch.arange(8, device=lm.device).remainder(lm.config.get_text_config().vocab_size)[None]
        whole = backbone(input_ids=ids, use_cache=False).last_hidden_state[:, 5:].float()
        cache = DynamicCache()
        backbone(input_ids=ids[:, :5], past_key_values=cache, use_cache=True)
        rest = backbone(input_ids=ids[:, 5:], past_key_values=cache, use_cache=True).last_hidden_state.float()
        tolerance = 1e-3 if lm.dtype == torch.float32 else 5e-2
        if torch.allclose(rest, whole, rtol=tolerance, atol=tolerance * float(whole.abs().max())):
            return
    raise UserError(
        f"{type(lm).__name__} can't go on from what it has read of another text: not all of its layers keep keys and values "
        "of each token. Set the teacher's share_prefixes to false."
    )


@dataclass(frozen=True)
class _Row:
    """A row of a batch that something is asked of.

    prompt: its ids ahead of the first supervised position, the ones that can be shared; end: one past the last supervised
    position, after which nothing needs to be run.
    """

    number: int
    prompt: list[int]
    end: int


def shared_hidden_at_positions(lm: nn.Module, batch: TokenBatch) -> Tensor:
    """What `causal_lm.hidden_at_positions` gives, [N, d], with common prefixes of the batch's rows run once.

    Prefixes form a tree. At its root stands what all rows have in common, say a task's template; then the rows part into
    groups that have more in common, say a job's text. Each prefix is run once, as a batch of one, on a copy of the cache of
    the one before it; rows that have nothing further in common with another are run together, on as many copies.
    """
    rows = [
        _Row(number, ids[: positions.index(True)], len(positions) - positions[::-1].index(True))
        for number, (ids, positions) in enumerate(zip(batch.input_ids.tolist(), batch.positions.tolist(), strict=True))
        if any(positions)
    ]
    if all(length == 0 for _, length in _branches(rows, 0)):
        return hidden_at_positions(lm, batch)
    hidden: dict[int, Tensor] = {}
    _run_tree(lm.get_decoder(), batch, rows, 0, DynamicCache(), hidden)  # type: ignore[operator]
    return torch.cat([hidden[row.number] for row in rows])


def _run_tree(
    backbone: Any, batch: TokenBatch, rows: Sequence[_Row], done: int, cache: DynamicCache, hidden: dict[int, Tensor]
) -> None:
    """Put into `hidden` the states at the supervised positions of the rows, whose first `done` ids are in the cache."""
    for group, length in _branches(rows, done):
        own = copy.deepcopy(cache)
        if length > done:
            first = group[0].number
            backbone(input_ids=batch.input_ids[first : first + 1, done:length], past_key_values=own, use_cache=True)
            _run_tree(backbone, batch, group, length, own, hidden)
            continue
        own.batch_repeat_interleave(len(group))
        numbers = [row.number for row in group]
        end = max(row.end for row in group)
        # No position ids: a model counts on from the length of its cache, as is right for rows padded on the right.
        out = backbone(
            input_ids=batch.input_ids[numbers, done:end],
            attention_mask=batch.attention_mask[numbers, :end],
            past_key_values=own,
            use_cache=True,
        ).last_hidden_state
        for number, states in zip(numbers, out, strict=True):
            hidden[number] = states[batch.positions[number, done:end]]


def _branches(rows: Sequence[_Row], done: int) -> list[tuple[list[_Row], int]]:
    """Groups of rows, each with the length of what its prompts have in common, where that pays beyond the `done` ids that
    all have in common; the other rows are the last group, with `done`."""
    alike = defaultdict(list)
    for row in rows:
        alike[tuple(row.prompt[done : done + SHORTEST_SHARED])].append(row)
    groups, rest = [], []
    for group in alike.values():
        length = _common_length([row.prompt for row in group])
        if (length - done) * (len(group) - 1) >= LEAST_SAVED:
            groups.append((group, length))
        else:
            rest += group
    return [*groups, (rest, done)] if rest else groups


def _common_length(texts: Sequence[list[int]]) -> int:
    """How many ids all texts begin with. In sorted order the first and the last differ the soonest."""
    first, last = min(texts), max(texts)
    return next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


class TextsInTurn:
    """Runs texts one after another, each from where it departs from the one before it. Sorted texts share the most."""

    def __init__(self, lm: PreTrainedModel) -> None:
        self._lm = lm
        self._ids: list[int] = []
        self._cache = DynamicCache()

    def run(self, ids: list[int]) -> Any:
        """The model's output on a text, with the logits after its last token alone: [1, 1, V].

        Its cache belongs to the next run: go on from a copy.
        """
        # The last token is run in any case: its logits aren't in the cache.
        shared = min(_common_length([self._ids, ids]), len(ids) - 1)
        self._cache.crop(shared - len(self._ids))
        self._ids = ids
        rest = torch.tensor([ids[shared:]], device=self._lm.device)
        return self._lm(input_ids=rest, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
