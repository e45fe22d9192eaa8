"""Losses and gradients that aren't finite: the step isn't made, and it's said which term of which pair it came from."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from lantern_kernels import MixtureOutput
from torch import Tensor, nn

from lantern_pl.data.featurize import DecoderBatch
from lantern_pl.errors import UserError
from lantern_pl.sharding import whole_tensor

OnFault = Literal["stop", "skip"]
_NAMED = 5


class Watch:
    """The micro-batches since the last optimizer step, with each term's values by row, to look at if the step is bad.

    Nothing is looked at before: that would make an accelerator wait in each micro-batch.
    """

    def __init__(self) -> None:
        self._seen: list[tuple[Any, MixtureOutput]] = []

    def see(self, batch: Any, output: MixtureOutput) -> None:
        terms = {name: values.detach() for name, values in output.terms.items()}
        self._seen.append((batch, MixtureOutput(output.loss.detach(), terms)))

    def clear(self) -> None:
        self._seen = []

    def fault(self, step: int, ask_again: Callable[[Any], object]) -> str:
        """What made the step bad, in a sentence without any text of a pair.

        Args:
            step: the optimizer step.
            ask_again: asks the teacher about a batch and looks at every value of its answer; raises UserError, which names
                the teacher, where that isn't right.
        """
        for batch, output in self._seen:
            bad = {name: ~values.isfinite() for name, values in output.terms.items()}
            terms = [name for name, rows in bad.items() if bool(rows.any())]
            if not terms and bool(output.loss.isfinite()):
                continue
            try:
                ask_again(batch)
            except UserError as error:
                return f"Step {step}: {error}"
            if terms:
                ids = list(dict.fromkeys(pair for name in terms for pair in _pairs_of(batch, bad[name])))
                more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
                return (
                    f"Step {step}: {' and '.join(terms)} isn't finite for the pairs "
                    f"{', '.join(map(repr, ids[:_NAMED]))}{more}; the teacher's answers about them are finite."
                )
        where = "on another process" if self._all_finite() else "of these pairs together"
        return f"Step {step}: the loss or its gradient isn't finite ({where})."

    def _all_finite(self) -> bool:
        return all(bool(output.loss.isfinite()) for _, output in self._seen)


def gradients_are_finite(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether every gradient is finite, by the norm of all: one number to wait for. All processes find the same, also
    where each has a part of every gradient."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return not gradients or bool(whole_tensor(nn.utils.get_total_norm(gradients)).isfinite())


def _pairs_of(batch: Any, rows: Tensor) -> list[str]:
    """The ids of the pairs that the rows [N] (true: bad) of a term belong to; all pairs' where rows are counted otherwise,
    as those of a teacher with another tokenizer are."""
    if isinstance(batch, DecoderBatch):
        owner = batch.tokens.positions.nonzero()[:, 0]
    else:
        owner = torch.arange(len(batch.pairs), device=rows.device)
    if len(owner) != len(rows):
        return [pair.pair_id for pair in batch.pairs]
    return [batch.pairs[index].pair_id for index in owner[rows].unique().tolist()]
