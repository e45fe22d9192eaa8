"""The loss on logits that are there already: bytes moved, and the share of the memory's rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from lantern_kernels.bench.measure import (
    cell,
    cpu_memory_growth,
    gpu_memory_growth,
    in_a_process,
    in_turns,
    median,
    ratio,
    within_memory,
)
from lantern_kernels.loss import mixture_loss
from lantern_kernels.terms import Term

ROWS_OF_THE_ERROR_CHECK = 4
"""At a time; on a GPU all rows are checked."""

TRL_BETA = {"kl": 0.0, "js": 0.5}


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


QUICK_CASES = ("kl + js + tvd",)


def measure(device: torch.device, rounds: int, quick: bool) -> dict[str, Any]:
    """The section of the report."""
    setting = (QUICK if quick else SETTINGS)[device.type]
    student, teacher = make(setting, device)
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    cases = QUICK_CASES if quick else tuple(CASES)
    for case in cases:
        calls[case, "copy"] = partial(_copy, torch.empty_like(teacher), teacher)
        for name, loss in implementations(case, device).items():
            # It takes a compiler longer to be ready than all of a quick run.
            if quick and name == "naive compiled":
                continue
            calls[case, name] = partial(step, loss, student, teacher)
    seconds = in_turns(calls, rounds, device)
    results = []
    for case, name in calls:
        spent, own, copy = (median(seconds[case, of]) for of in (name, "lantern", "copy"))
        bytes_ = bytes_of(name, case, teacher.element_size())
        moved = None if bytes_ is None else bytes_ * teacher.numel()
        rate = ratio(2 * teacher.numel() * teacher.element_size(), copy)
        error = growth = None
        if spent is not None and name != "copy":
            error = within_memory(partial(gradient_error, setting, device, case, name))
            if not quick or name == "naive":
                growth = within_memory(partial(memory_growth, setting, device, case, name))
        results.append(
            {
                "case": case,
                "implementation": name,
                "seconds": spent,
                "of_lantern": ratio(spent, own),
                "bytes_per_pair": bytes_,
                "gb_per_s": None if moved is None else ratio(moved / 1e9, spent),
                "share_of_copy_rate": ratio(ratio(moved, spent), rate),
                "memory_mb": growth,
                "gradient_error": error,
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


def bytes_of(name: str, case: str, element: int) -> int | None:
    """Bytes that must move per pair of logits: reading both two or three times, and writing the gradient.

    A copy moves one side alone. Of the peers only the time is known.
    """
    if name == "copy":
        return 2 * element
    return element * (5 if case == "kl" else 7) if name == "lantern" else None


def implementations(case: str, device: torch.device) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Loss functions of student and teacher logits."""
    terms = CASES[case]
    naive_ = partial(naive, terms)
    on_gpu = device.type == "cuda"
    found: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "lantern": lambda s, t: mixture_loss(s, t, terms, logits_before=1 << 40).loss,
        "naive": naive_,
        "naive compiled": torch.compile(naive_, dynamic=False),
    }
    if case in TRL_BETA and find_spec("trl"):
        found["trl gkd"] = partial(trl_gkd, TRL_BETA[case])
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


def trl_gkd(beta: float, student: Tensor, teacher: Tensor) -> Tensor:
    """TRL's loss, on float32 copies where logits are narrower, since it works in their dtype."""
    from trl.experimental.gkd import GKDTrainer

    loss: Tensor = GKDTrainer.generalized_jsd_loss(student.float(), teacher.float(), beta=beta)
    return loss


def step(loss: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor) -> Tensor:
    """One forward and backward: the gradient."""
    return torch.autograd.grad(loss(student, teacher), student)[0]


def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source)


def gradient_error(setting: Setting, device: torch.device, case: str, name: str) -> float:
    """The largest error of the gradient against naive float64, relative to its largest entry.

    Of all rows on a GPU, where kernels may go wrong at full size alone; of a few on a CPU, which would take minutes.
    """
    few = ROWS_OF_THE_ERROR_CHECK
    student, teacher = make(setting, device, None if device.type == "cuda" else few)
    got = step(implementations(case, device)[name], student, teacher)
    largest = error = 0.0
    for start in range(0, len(student), few):
        rows = slice(start, start + few)
        exact = student.detach()[rows].double().requires_grad_()
        wanted = step(partial(naive, CASES[case]), exact, teacher[rows].double()) * len(exact) / len(student)
        error = max(error, float((got[rows].double() - wanted).abs().max()))
        largest = max(largest, float(wanted.abs().max()))
    return error / largest


def memory_growth(setting: Setting, device: torch.device, case: str, name: str) -> float | None:
    """MB by which a step raises the peak of the memory over what the logits take; the gradient is part of it."""
    if device.type == "cuda":
        return gpu_memory_growth(partial(step, implementations(case, device)[name], *make(setting, device)))
    growth: float | None = in_a_process(_memory_growth_here, setting, case, name)
    return growth


def _memory_growth_here(setting: Setting, case: str, name: str) -> float | None:
    device = torch.device("cpu")
    loss = implementations(case, device)[name]
    step(loss, *make(setting, device))  # compiles; VmHWM starts anew below
    return cpu_memory_growth(partial(step, loss, *make(setting, device)))


def table(section: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| case | implementation | seconds | of lantern | bytes a pair | GB/s | of the copy's | memory growth, MB "
        "| gradient error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in section["results"]:
        cells = [
            row["case"],
            row["implementation"],
            "out of memory" if row["seconds"] is None else f"{row['seconds']:.4f}",
            cell("{:.2f}", row["of_lantern"]),
            cell("{}", row["bytes_per_pair"]),
            cell("{:.1f}", row["gb_per_s"]),
            cell("{:.0%}", row["share_of_copy_rate"]),
            cell("{:.0f}", row["memory_mb"]),
            cell("{:.1e}", row["gradient_error"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
