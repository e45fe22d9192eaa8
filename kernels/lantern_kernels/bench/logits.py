"""The loss on logits that are there already: bytes moved, and the share of the memory's rate."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from lantern_kernels.bench.measure import gpu_memory_growth, in_turns
from lantern_kernels.loss import mixture_loss
from lantern_kernels.terms import Term

ROWS_OF_THE_ERROR_CHECK = 4


@dataclass(frozen=True)
class Setting:
    """Rows, vocabulary and dtype of the logits."""

    rows: int
    vocabulary: int
    dtype: str


SETTINGS = {"cuda": Setting(8192, 151_936, "bfloat16"), "cpu": Setting(256, 151_936, "float32")}
QUICK = {"cuda": Setting(1024, 32_768, "bfloat16"), "cpu": Setting(64, 32_768, "float32")}

CASES: dict[str, Sequence[Term]] = {
    "kl": [Term("kl")],
    "js": [Term("js")],
    "tvd": [Term("tvd")],
    "kl + js + tvd": [Term("kl"), Term("js"), Term("tvd")],
}


def measure(device: torch.device, rounds: int, quick: bool) -> dict[str, Any]:
    """The section of the report."""
    setting = (QUICK if quick else SETTINGS)[device.type]
    student, teacher = make(setting, device)
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for case, terms in CASES.items():
        calls[case, "copy"] = partial(_copy, torch.empty_like(teacher), teacher)
        for name, loss in implementations(terms, device).items():
            calls[case, name] = partial(step, loss, student, teacher)
    seconds = in_turns(calls, rounds, device)
    results = []
    for case, name in calls:
        median, own, copy = (statistics.median(seconds[case, of]) for of in (name, "lantern", "copy"))
        rate = 2 * teacher.numel() * teacher.element_size() / copy
        floor = bytes_of_lantern(case, teacher.element_size()) * teacher.numel()
        results.append(
            {
                "case": case,
                "implementation": name,
                "seconds": median,
                "of_lantern": median / own,
                "copy_gb_per_s": rate / 1e9,
                "share_of_copy_rate": floor / median / rate if name == "lantern" else None,
                "memory_mb": gpu_memory_growth(calls[case, name]) if device.type == "cuda" and name != "copy" else None,
                "gradient_error": None if name == "copy" else gradient_error(setting, device, case, name),
            }
        )
    return {"what": "forward and backward of a distillation loss on logits", "setting": asdict(setting), "results": results}


def make(setting: Setting, device: torch.device, rows: int | None = None) -> tuple[Tensor, Tensor]:
    """Logits of a student and of a teacher that is close to it."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (setting.rows if rows is None else rows, setting.vocabulary)
    student = 3 * torch.randn(shape, generator=generator, device=device)
    teacher = student + torch.randn(shape, generator=generator, device=device)
    dtype = getattr(torch, setting.dtype)
    return student.to(dtype).requires_grad_(), teacher.to(dtype)


def bytes_of_lantern(case: str, element: int) -> int:
    """Bytes that must move per pair of logits: reading both two or three times, and writing the gradient."""
    return element * (5 if case == "kl" else 7)


def implementations(terms: Sequence[Term], device: torch.device) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Loss functions of student and teacher logits."""
    naive_ = partial(naive, terms)
    on_gpu = device.type == "cuda"
    found: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "lantern": lambda s, t: mixture_loss(s, t, terms, backend="triton" if on_gpu else "inductor").loss,
        "naive": naive_,
        "naive compiled": torch.compile(naive_, dynamic=False),
    }
    if on_gpu and find_spec("liger_kernel"):
        found["liger"] = partial(liger, terms)
    return found


def naive(terms: Sequence[Term], student: Tensor, teacher: Tensor) -> Tensor:
    """As textbooks have it, in float32 and differentiated by autograd."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    log_q, log_p = student.to(dtype).log_softmax(-1), teacher.to(dtype).log_softmax(-1)
    loss = log_q.new_zeros(())
    for term in terms:
        if term.label == "kl":
            loss = loss + kl_div(log_q, log_p, log_target=True, reduction="batchmean")
        elif term.label == "js":
            log_m = torch.logaddexp(log_p, log_q) - math.log(2)
            loss = loss + 0.5 * sum(kl_div(log_m, x, log_target=True, reduction="batchmean") for x in (log_p, log_q))
        else:
            loss = loss + 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1).mean()
    return loss


def liger(terms: Sequence[Term], student: Tensor, teacher: Tensor) -> Tensor:
    """Liger's kernels, each of which wants (log-)probabilities."""
    from liger_kernel.transformers import LigerJSD, LigerKLDIVLoss, LigerTVDLoss

    log_q, log_p = student.log_softmax(-1, dtype=torch.float32), teacher.log_softmax(-1, dtype=torch.float32)
    loss = log_q.new_zeros(())
    for term in terms:
        if term.label == "kl":
            loss = loss + LigerKLDIVLoss(log_target=True, reduction="batchmean")(log_q, log_p)
        elif term.label == "js":
            loss = loss + LigerJSD(beta=0.5)(log_q, log_p)
        else:
            loss = loss + LigerTVDLoss(reduction="batchmean")(log_q.exp(), log_p.exp())
    return loss


def step(loss: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor) -> Tensor:
    """One forward and backward: the gradient."""
    return torch.autograd.grad(loss(student, teacher), student)[0]


def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source)


def gradient_error(setting: Setting, device: torch.device, case: str, name: str) -> float:
    """The largest error of the gradient against naive float64, relative to its largest entry."""
    student, teacher = make(setting, device, ROWS_OF_THE_ERROR_CHECK)
    exact = student.detach().double().requires_grad_()
    wanted = step(partial(naive, CASES[case]), exact, teacher.double())
    got = step(implementations(CASES[case], device)[name], student, teacher)
    return float((got.double() - wanted).abs().max() / wanted.abs().max())


def table(section: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| case | implementation | seconds | of lantern | share of copy rate | memory growth, MB | gradient error |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in section["results"]:
        share = "" if row["share_of_copy_rate"] is None else f"{row['share_of_copy_rate']:.0%}"
        memory = "" if row["memory_mb"] is None else f"{row['memory_mb']:.0f}"
        error = "" if row["gradient_error"] is None else f"{row['gradient_error']:.1e}"
        lines.append(
            f"| {row['case']} | {row['implementation']} | {row['seconds']:.4f} | {row['of_lantern']:.2f} | {share} "
            f"| {memory} | {error} |"
        )
    return "\n".join(lines)
