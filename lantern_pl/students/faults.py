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

    def fault(
        self,
        step: int,
        ask_again: Callable[[Any], object],
        parameters: Iterable[tuple[str, nn.Parameter]] = (),
        processes: int = 1,
    ) -> str:
        """What made the step bad, in a sentence without any text of a pair.

        Args:
            step: the optimizer step.
            ask_again: asks the teacher about a batch and looks at every value of its answer; raises UserError, which names
                the teacher, where that isn't right.
            parameters: the student's, with their names and gradients.
            processes: how many train together; each sees its own pairs alone.
        """
        for batch, output in self._seen:
            bad = {name: ~values.isfinite() for name, values in output.terms.items()}
            terms = [name for name, rows in bad.items() if bool(rows.any())]
            if not terms and bool(output.loss.isfinite()):
                continue
            ids = [pair for name in terms for pair in _pairs_of(batch, bad[name])] or _ids(batch)
            try:
                ask_again(batch)
            except UserError as error:
                return f"Step {step}: {error} It was asked about the pairs {_listed(ids)}."
            if terms:
                return (
                    f"Step {step}: {' and '.join(terms)} isn't finite for the pairs {_listed(ids)}; a teacher, asked again "
                    "about them, gives finite answers."
                )
            return (
                f"Step {step}: the loss summed over the pairs {_listed(ids)} isn't finite, though each of its terms "
                f"({', '.join(output.terms)}) is for each of them."
            )
        ids = [pair for batch, _ in self._seen for pair in _ids(batch)]
        terms = list(dict.fromkeys(name for _, output in self._seen for name in output.terms))
        bad_gradients = [name for name, each in parameters if each.grad is not None and not bool(each.grad.isfinite().all())]
        what = f"the gradient of {bad_gradients[0]}" if bad_gradients else "the loss or its gradient"
        if len(bad_gradients) > 1:
            what += f" (and of {len(bad_gradients) - 1} more)"
        others = ", or it comes from another process" if processes > 1 else ""
        return (
            f"Step {step}: {what} isn't finite, though the loss is: it's that of {', '.join(terms)} on the pairs "
            f"{_listed(ids)}{others}."
        )


def _ids(batch: Any) -> list[str]:
    return [pair.pair_id for pair in batch.pairs]


def _listed(ids: Iterable[str]) -> str:
    """The first of some ids."""
    ids = list(dict.fromkeys(ids))
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return ", ".join(map(repr, ids[:_NAMED])) + more


def spoil(output: MixtureOutput, rows: Tensor) -> MixtureOutput:
    """The output as it is where nothing is known of the rows [N] (true: unknown): NaN, which stops or skips the step on all
    processes alike, after all have done their share of it."""
    unknown = torch.where(rows, torch.nan, 0.0)
    terms = {name: values + unknown.to(values.dtype) for name, values in output.terms.items()}
    return MixtureOutput(output.loss + unknown.sum(), terms)


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
        return _ids(batch)
    return [batch.pairs[index].pair_id for index in owner[rows].unique().tolist()]
