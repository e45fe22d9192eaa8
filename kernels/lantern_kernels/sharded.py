"""A vocabulary that is sharded over a process group: every rank has all rows, and a share of their columns.

What ranks must tell each other are a few scalars of a row, in one all-gather: the log-sum-exps, and for KL and reverse KL
what they come to, since log(p/q) = t − s − (Lt − Ls) is linear in the log-sum-exps. Any other divergence needs them before
it can begin, and one all-reduce of its values and slopes after; so does a chunk with excluded tokens. Against a top-k
teacher the exchange holds the known tokens' logits and the tail, and every rank works out any divergence from these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from lantern_kernels.divergences import KL, LOG_FLOOR, Pointwise, ReverseKL
from lantern_kernels.top_k import TopK, on_events

_IN_ONE_EXCHANGE = {KL.value_and_slope: 0, ReverseKL.value_and_slope: 1}


@dataclass(frozen=True)
class Shard:
    """A rank's share of the vocabulary. Shares needn't be equal; they follow each other in the order of the ranks."""

    group: dist.ProcessGroup
    start: int
    """The id of this rank's first column."""
    widest: int
    """Columns of the widest share, by which all ranks size their chunks: they must exchange equally often."""
    total: int
    """Columns of all."""


def share_of(columns: int, like: Tensor, group: dist.ProcessGroup) -> Shard:
    """This rank's share, from what ranks tell each other. Raises ValueError, on all of them, if they differ in rows."""
    everyone = _gather(torch.tensor([columns, like.shape[0]], device=like.device), group)
    widths, rows = everyone.t().tolist()
    if len(set(rows)) > 1:
        raise ValueError(
            f"process_group is given, and its ranks' students have {', '.join(map(str, rows))} rows; expected as many on "
            "each, since it's the vocabulary that is sharded"
        )
    return Shard(group, sum(widths[: dist.get_rank(group)]), max(widths), sum(widths))


def sharded_rows(
    divergences: Sequence[Pointwise],
    student: Tensor,
    teacher: Tensor | TopK | None,
    targets: Tensor | None,
    factors: Sequence[float],
    temperature: float,
    with_gradient: bool,
    shard: Shard,
) -> tuple[list[Tensor], Tensor | None]:
    """Values ``[n]`` and the gradient, of this rank's columns.

    As `mixture.pointwise_rows`; all ranks get the same values. Ids, of `targets` and of a top-k teacher, are
    those of the whole vocabulary.
    """
    kinds = [_IN_ONE_EXCHANGE.get(type(divergence).value_and_slope) for divergence in divergences]
    in_one_exchange = None not in kinds
    s, scalars = student / temperature, {}
    known = s.new_empty(0, len(s))
    t = s
    if isinstance(teacher, TopK):
        ours, places, others, known = _split(s, teacher, shard)
        scalars["tail"] = others.logsumexp(-1)
    elif teacher is not None:
        scalars["Ls"] = s.logsumexp(-1)
        t = teacher / temperature
        scalars["Lt"] = t.logsumexp(-1)
        if in_one_exchange:
            scalars |= _expectations(s, t, scalars["Ls"], scalars["Lt"])
            scalars |= {"lowest s": s.amin(-1), "lowest t": t.amin(-1)}
    if targets is not None:
        local = targets - shard.start
        mine = (local >= 0) & (local < student.shape[1])
        logit = student.gather(-1, local.clamp(0, student.shape[1] - 1)[:, None])[:, 0]
        scalars["target"] = logit.masked_fill(~mine, -torch.inf)
        scalars["Ls untempered"] = student.logsumexp(-1)
    everyone = _gather(torch.cat([torch.stack(list(scalars.values())), known]), shard.group)
    by_name = dict(zip(scalars, everyone.unbind(1), strict=False))  # each [ranks, n]

    values: list[Tensor] = []
    gradient = None
    if isinstance(teacher, TopK):
        tail, known = by_name["tail"].logsumexp(0), everyone[:, len(scalars) :].amax(0).t()
        log_q = torch.cat([known, tail[:, None]], -1)
        of_all = log_q.logsumexp(-1, keepdim=True)
        events = on_events(divergences, teacher, log_q - of_all, factors, temperature)
        values = events.values
        if with_gradient:
            gradient = (others - tail.clamp(min=torch.finfo(tail.dtype).min / 2)[:, None]).exp_()
            gradient.mul_(events.slopes[:, -1:])[places] = events.slopes[:, :-1][ours]
            gradient.addcmul_((s - of_all).exp(), events.total, value=-1.0)
    elif teacher is not None:
        Ls, Lt = by_name["Ls"].logsumexp(0), by_name["Lt"].logsumexp(0)
        log_q, log_p = (s - Ls[:, None]).clamp(min=LOG_FLOOR), (t - Lt[:, None]).clamp(min=LOG_FLOOR)
        slopes, local_values = _slopes(divergences, log_p, log_q, [factor / temperature for factor in factors])
        if in_one_exchange:
            # All ranks see the same scalars, and decide alike.
            lowest_q, lowest_p = by_name["lowest s"].amin(0) - Ls, by_name["lowest t"].amin(0) - Lt
            in_one_exchange = bool((torch.minimum(lowest_q, lowest_p) > LOG_FLOOR).all())
        if in_one_exchange:
            both = _kl_and_reverse_kl(by_name, Ls, Lt)
            values = [both[kind] for kind in kinds if kind is not None]
            # What a kind's slopes add up to: q − p to nothing, and q·log(q/p) to the reverse KL.
            total = both[1] * (sum(factors[k] for k, kind in enumerate(kinds) if kind == 1) / temperature)
        else:
            summed = torch.stack([*local_values, slopes.sum(-1)])
            dist.all_reduce(summed, group=shard.group)
            *values, total = summed
        if with_gradient:
            gradient = slopes.addcmul_(log_q.exp(), total[:, None], value=-1.0)
    if targets is not None:
        lse = by_name["Ls untempered"].logsumexp(0)
        values.append(-(by_name["target"].amax(0) - lse).clamp(min=LOG_FLOOR))
        if with_gradient:
            towards = (student - lse[:, None]).exp()
            columns = local.clamp(0, student.shape[1] - 1)[:, None]
            towards.scatter_add_(-1, columns, -mine[:, None].to(towards.dtype)).mul_(factors[len(divergences)])
            gradient = towards if gradient is None else gradient.add_(towards)
    return values, gradient


def _split(s: Tensor, teacher: TopK, shard: Shard) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor, Tensor]:
    """Which of the known tokens are this rank's and where, its other logits, and the known ones ``[k, n]``; −∞ else."""
    local = teacher.ids - shard.start
    mine = (local >= 0) & (local < s.shape[1])
    places = mine.nonzero()[:, 0], local[mine]
    known = s.gather(-1, local.clamp(0, s.shape[1] - 1)).masked_fill(~mine, -torch.inf)
    return mine, places, s.index_put(places, s.new_tensor(-torch.inf)), known.t()


def _gather(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """``[ranks, *tensor.shape]``."""
    everyone = tensor.new_empty(dist.get_world_size(group), *tensor.shape)
    dist.all_gather(list(everyone.unbind(0)), tensor, group=group)
    return everyone


def _slopes(
    divergences: Sequence[Pointwise], log_p: Tensor, log_q: Tensor, weights: Sequence[float]
) -> tuple[Tensor, list[Tensor]]:
    p, q = log_p.exp(), log_q.exp()
    slopes, values = torch.zeros_like(q), []
    for k, divergence in enumerate(divergences):
        value, slope = divergence.value_and_slope(log_p, log_q, p, q)
        values.append(value.sum(-1))
        slopes = slopes + slope * weights[k]
    return slopes.masked_fill(log_q <= LOG_FLOOR, 0.0), values


def _expectations(s: Tensor, t: Tensor, Ls: Tensor, Lt: Tensor) -> dict[str, Tensor]:
    """E_p[t − s] and E_q[t − s] under this rank's own distributions; no numbers where a token is excluded."""
    difference = t - s
    return {
        "E_p": ((t - Lt[:, None]).exp() * difference).sum(-1),
        "E_q": ((s - Ls[:, None]).exp() * difference).sum(-1),
    }


def _kl_and_reverse_kl(by_name: dict[str, Tensor], Ls: Tensor, Lt: Tensor) -> tuple[Tensor, Tensor]:
    """KL and reverse KL ``[n]`` from every rank's scalars."""
    E_p = ((by_name["Lt"] - Lt).exp() * by_name["E_p"]).sum(0)
    E_q = ((by_name["Ls"] - Ls).exp() * by_name["E_q"]).sum(0)
    return (E_p - Lt + Ls).clamp(min=0.0), (Lt - Ls - E_q).clamp(min=0.0)
