"""The losses of this installation, on this machine, against their formulas in float64."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lantern_pl.doctor.finding import Finding

_ROWS, _VOCABULARY, _HIDDEN = 64, 1111, 32
_TOLERANCE = 1e-4


def kernels() -> Iterator[Finding]:
    """A finding for each device: whether values and gradients of a mixture of all divergences are right there."""
    devices = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    for device in devices:
        yield _on(torch.device(device))


def _on(device: torch.device) -> Finding:
    from lantern_kernels import Head, Term, linear_mixture_loss

    name = f"losses on {device}"
    generator = torch.Generator().manual_seed(0)
    hidden, taught = (torch.randn(_ROWS, _HIDDEN, generator=generator) for _ in range(2))
    weight, taught_weight = (torch.randn(_VOCABULARY, _HIDDEN, generator=generator) * 0.3 for _ in range(2))
    terms = [Term("kl", 0.4), Term("reverse_kl", 0.3), Term("js", 0.2, beta=0.5), Term("tvd", 0.1)]
    expected, expected_gradient = _expected(hidden, weight, taught, taught_weight)
    ours = hidden.to(device).requires_grad_()
    try:
        loss = linear_mixture_loss(
            Head(ours, weight.to(device)), Head(taught.to(device), taught_weight.to(device)), terms, temperature=2.0
        ).loss
        loss.backward()
    except Exception as error:  # a driver's, a compiler's, Triton's: each has its own
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
        return Finding(name, "problem", reason, "The versions of torch, triton and the driver may not go together.")
    assert ours.grad is not None
    errors = (_distance(loss.detach(), expected), _distance(ours.grad, expected_gradient))
    found = f"loss and gradient of KL + reverse KL + JS + TVD off by {errors[0]:.0e} and {errors[1]:.0e}"
    if not max(errors) < _TOLERANCE:
        return Finding(name, "problem", found, "Don't train with this: please report it with the output of this command.")
    return Finding(name, "ok", found)


def _expected(hidden: Tensor, weight: Tensor, taught: Tensor, taught_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and gradient by the formulas: T²·(0.4 KL + 0.3 reverse KL + 0.2 JS + 0.1 TVD), the mean over rows, T = 2."""
    x = hidden.double().requires_grad_()
    log_q = (x @ weight.double().T / 2).log_softmax(-1)
    log_p = (taught.double() @ taught_weight.double().T / 2).log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    log_m = ((p + q) / 2).log()
    divergences = (
        0.4 * (p * (log_p - log_q)).sum(-1)
        + 0.3 * (q * (log_q - log_p)).sum(-1)
        + 0.2 * ((p * (log_p - log_m)).sum(-1) + (q * (log_q - log_m)).sum(-1)) / 2
        + 0.1 * (p - q).abs().sum(-1) / 2
    )
    loss = 4 * divergences.mean()
    loss.backward()
    assert x.grad is not None
    return loss.detach(), x.grad


def _distance(found: Tensor, expected: Tensor) -> float:
    """The greatest error, as a share of the greatest value."""
    return float((found.double().cpu() - expected).abs().max() / expected.abs().max())
