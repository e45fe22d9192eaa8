"""A vocabulary that is sharded over a process group: every rank has all rows, and V / ranks columns of them.

What ranks must tell each other are a few scalars of a row, in one all-gather: the log-sum-exps, and for KL and reverse KL
what they come to, since log(p/q) = t − s − (Lt − Ls) is linear in the log-sum-exps. Any other divergence needs them before
it can begin, and one all-reduce of its values and slopes after.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lantern_kernels.divergences import KL, LOG_FLOOR, Pointwise, ReverseKL

_IN_ONE_EXCHANGE = {KL.value_and_slope: 0, ReverseKL.value_and_slope: 1}
_LOWEST = -1e30


def sharded_rows(
    divergences: Sequence[Pointwise],
    student: Tensor,
    teacher: Tensor | None,
    targets: Tensor | None,
    factors: Sequence[float],
    temperature: float,
    with_gradient: bool,
    group: dist.ProcessGroup,
) -> tuple[list[Tensor], Tensor | None]:
    """Values ``[n]`` and the gradient ``[n, V / ranks]`` of this rank's columns.

    As `mixture.pointwise_rows`; all ranks get the same values. `targets` are ids in the whole vocabulary.
    """
    kinds = [_IN_ONE_EXCHANGE.get(type(divergence).value_and_slope) for divergence in divergences]
    in_one_exchange = None not in kinds
    s, scalars = student / temperature, {}
    scalars["Ls"] = s.logsumexp(-1)
    t = s
    if teacher is not None:
        t = teacher / temperature
        scalars["Lt"] = t.logsumexp(-1)
        if in_one_exchange:
            scalars |= _expectations(s, t, scalars["Ls"], scalars["Lt"])
    if targets is not None:
        local = targets - dist.get_rank(group) * student.shape[1]
        mine = (local >= 0) & (local < student.shape[1])
        logit = student.gather(-1, local.clamp(0, student.shape[1] - 1)[:, None])[:, 0]
        scalars["target"] = logit.masked_fill(~mine, -torch.inf)
        scalars["Ls untempered"] = student.logsumexp(-1)
    everyone = _gather(torch.stack(list(scalars.values())), group)
    by_name = dict(zip(scalars, everyone.unbind(1), strict=True))  # each [ranks, n]

    values: list[Tensor] = []
    gradient = None
    if teacher is not None:
        Ls, Lt = by_name["Ls"].logsumexp(0), by_name["Lt"].logsumexp(0)
        log_q, log_p = (s - Ls[:, None]).clamp(min=LOG_FLOOR), (t - Lt[:, None]).clamp(min=LOG_FLOOR)
        slopes, local_values = _slopes(divergences, log_p, log_q, [factor / temperature for factor in factors])
        if in_one_exchange:
            both, missed = _kl_and_reverse_kl(by_name, Ls, Lt)
            values = [both[kind] for kind in kinds if kind is not None]
            # What a kind's slopes add up to: those of KL to the mass that the student can't have, q − p over the rest.
            totals = (missed, both[1])
            total = sum((factors[k] / temperature) * totals[kind] for k, kind in enumerate(kinds) if kind is not None)
        else:
            summed = torch.stack([*local_values, slopes.sum(-1)])
            dist.all_reduce(summed, group=group)
            *values, total = summed
        if with_gradient:
            gradient = slopes.addcmul_(log_q.exp(), torch.as_tensor(total)[:, None], value=-1.0)
    if targets is not None:
        lse = by_name["Ls untempered"].logsumexp(0)
        values.append(-(by_name["target"].amax(0) - lse).clamp(min=LOG_FLOOR))
        if with_gradient:
            towards = (student - lse[:, None]).exp()
            towards[mine] -= torch.nn.functional.one_hot(local[mine], student.shape[1]).to(towards.dtype)
            towards *= factors[len(divergences)]
            gradient = towards if gradient is None else gradient.add_(towards)
    return values, gradient


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
    """Under this rank's own distributions: E_p[t − s], E_q[t − s], and the mass on what the other one excludes.

    Of an excluded token only the other's logit counts; what floor stands for its own is added once the masses are known.
    """
    p, q = (t - Lt.clamp(min=_LOWEST)[:, None]).exp(), (s - Ls.clamp(min=_LOWEST)[:, None]).exp()
    no_s, no_t = s <= _LOWEST, t <= _LOWEST
    difference = t.masked_fill(no_t, 0.0) - s.masked_fill(no_s, 0.0)
    return {
        "E_p": (p * difference).sum(-1),
        "E_q": (q * difference).sum(-1),
        "missed by q": (p * no_s).sum(-1),
        "missed by p": (q * no_t).sum(-1),
    }


def _kl_and_reverse_kl(by_name: dict[str, Tensor], Ls: Tensor, Lt: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """KL and reverse KL ``[n]`` from every rank's scalars, and the teacher's mass on what the student excludes."""
    p_share, q_share = (by_name["Lt"] - Lt).exp(), (by_name["Ls"] - Ls).exp()
    E_p, by_q = ((p_share * by_name[name]).sum(0) for name in ("E_p", "missed by q"))
    E_q, by_p = ((q_share * by_name[name]).sum(0) for name in ("E_q", "missed by p"))
    kl = E_p - Lt + Ls * (1 - by_q) - LOG_FLOOR * by_q
    reverse_kl = -E_q - Ls + Lt * (1 - by_p) - LOG_FLOOR * by_p
    return (kl, reverse_kl), by_q
