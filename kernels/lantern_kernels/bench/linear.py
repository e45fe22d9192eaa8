"""The loss from hidden states and output embeddings: against its own matrix products, and against TRL."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

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
from lantern_kernels.heads import Head
from lantern_kernels.loss import linear_mixture_loss
from lantern_kernels.terms import Term

ROWS_OF_THE_ERROR_CHECK = 16
_FLOAT64_LOGITS = 16
"""Tensors as large as the logits that a naive step holds at once, and some to spare."""


@dataclass(frozen=True)
class Setting:
    """The sizes of a problem: supervised positions, vocabulary, hidden size, rows per chunk of the bare products."""

    rows: int = 512
    vocabulary: int = 49_152
    hidden: int = 576
    chunk: int = 256
    dtype: str = "float32"


SETTINGS = {"cpu": Setting(), "cuda": Setting(rows=8192, vocabulary=151_936, hidden=2048, chunk=1024, dtype="bfloat16")}
QUICK = {
    "cpu": Setting(rows=64, vocabulary=8_192, hidden=128, chunk=32),
    "cuda": Setting(rows=1024, vocabulary=32_768, hidden=512, chunk=512, dtype="bfloat16"),
}


@dataclass(frozen=True)
class Case:
    """A mixture, and β in TRL's sense (0 forward KL, 1 reverse KL) where TRL has it."""

    terms: Sequence[Term]
    trl_beta: float | None = None
    cross_entropy: float = 0.0


CASES = {
    "kl": Case([Term("kl")], trl_beta=0.0),
    "reverse_kl": Case([Term("reverse_kl")], trl_beta=1.0),
    "js": Case([Term("js")], trl_beta=0.5),
    "all four + ce": Case([Term("kl"), Term("reverse_kl"), Term("js"), Term("tvd")], cross_entropy=0.5),
}


QUICK_CASES = ("js", "all four + ce")


class Problem:
    """Random heads of a student and of a teacher that is close to it, in the setting's dtype or `exact`; and targets."""

    def __init__(self, setting: Setting, device: torch.device, rows: int | None = None, exact: bool = False):
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device)

        def ready(tensor: Tensor) -> Tensor:
            tensor = tensor.to(getattr(torch, setting.dtype))
            return tensor.double() if exact else tensor

        V, d = setting.vocabulary, setting.hidden
        hidden, weight = normal(setting.rows, d), normal(V, d) * (3 / math.sqrt(d))
        self.chunk = setting.chunk
        self.targets = torch.randint(0, V, (setting.rows,), generator=generator, device=device)[:rows]
        self.teacher_hidden = (hidden + 0.5 * normal(setting.rows, d))[:rows]
        self.teacher_hidden = ready(self.teacher_hidden)
        self.teacher_weight = ready(weight + 0.1 * normal(V, d) / math.sqrt(d))
        self.hidden = ready(hidden[:rows]).requires_grad_()
        self.weight = ready(weight).requires_grad_()

    def step(self, loss: Callable[[Problem, Case], Tensor | None], case: Case) -> None:
        """One forward and backward, with the gradients left on hidden and weight."""
        self.hidden.grad = self.weight.grad = None
        value = loss(self, case)
        if value is not None:
            value.backward()


def gemms(problem: Problem, case: Case) -> None:
    hidden, weight = problem.hidden.detach(), problem.weight.detach()
    student = hidden.new_empty(problem.chunk, len(weight))
    teacher = torch.empty_like(student)
    hidden_gradient, weight_gradient = torch.empty_like(hidden), torch.zeros_like(weight)
    for start in range(0, len(hidden), problem.chunk):
        rows = slice(start, start + problem.chunk)
        torch.mm(hidden[rows], weight.t(), out=student)
        torch.mm(problem.teacher_hidden[rows], problem.teacher_weight.t(), out=teacher)
        torch.mm(student, weight, out=hidden_gradient[rows])
        weight_gradient.addmm_(student.t(), hidden[rows])


def lantern(problem: Problem, case: Case, backend: str | None = None) -> Tensor:
    return linear_mixture_loss(
        Head(problem.hidden, problem.weight),
        Head(problem.teacher_hidden, problem.teacher_weight),
        case.terms,
        targets=problem.targets if case.cross_entropy else None,
        cross_entropy=case.cross_entropy,
        backend=backend or "auto",
        # As a long run has it: compiled from the start, where there is a C++ compiler.
        logits_before=1 << 40,
    ).loss


def lantern_eager(problem: Problem, case: Case) -> Tensor:
    return lantern(problem, case, backend="torch")


def naive(problem: Problem, case: Case) -> Tensor:
    logits = problem.hidden @ problem.weight.t()
    log_q = log_softmax(logits, -1)
    log_p = log_softmax(problem.teacher_hidden @ problem.teacher_weight.t(), -1)

    def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
        return kl_div(log_b, log_a, log_target=True, reduction="batchmean")

    loss = case.cross_entropy * cross_entropy(logits, problem.targets) if case.cross_entropy else logits.new_zeros(())
    for term in case.terms:
        if term.label == "kl":
            loss = loss + kl(log_p, log_q)
        elif term.label == "reverse_kl":
            loss = loss + kl(log_q, log_p)
        elif term.label == "js":
            log_m = torch.logaddexp(log_p, log_q) - math.log(2)
            loss = loss + 0.5 * (kl(log_p, log_m) + kl(log_q, log_m))
        else:
            loss = loss + 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1).mean()
    return loss


def trl_gkd(problem: Problem, case: Case) -> Tensor:
    from trl.experimental.gkd import GKDTrainer

    student = problem.hidden @ problem.weight.t()
    teacher = problem.teacher_hidden @ problem.teacher_weight.t()
    loss: Tensor = GKDTrainer.generalized_jsd_loss(student, teacher, beta=case.trl_beta)
    return loss


def trl_chunked(problem: Problem, case: Case) -> Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    student, teacher = (problem.hidden, problem.weight, None), (problem.teacher_hidden, problem.teacher_weight, None)
    divergence, _ = ChunkedDivergenceFunction.apply(*student, *teacher, case.trl_beta)
    loss: Tensor = divergence.mean()
    return loss


def liger(problem: Problem, case: Case) -> Tensor:
    """Liger's fused linear JSD, in chunks of its default size; its β is the teacher's weight, and 0 the forward KL."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    soft_alone = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=case.trl_beta)
    student, teacher = (problem.hidden, problem.weight), (problem.teacher_hidden, problem.teacher_weight)
    loss: Tensor = soft_alone(*student, *teacher, problem.targets)
    return loss


IMPLEMENTATIONS: dict[str, Callable[[Problem, Case], Tensor | None]] = {
    "gemms": gemms,
    "lantern": lantern,
    "lantern eager": lantern_eager,
    "naive": naive,
    "liger": liger,
    "trl gkd": trl_gkd,
    "trl chunked": trl_chunked,
}


def measure(device: torch.device, rounds: int, quick: bool) -> dict[str, Any]:
    """The section of the report."""
    setting = (QUICK if quick else SETTINGS)[device.type]
    problem = Problem(setting, device)
    cases = QUICK_CASES if quick else tuple(CASES)
    runs = [(case, name) for case in cases for name in IMPLEMENTATIONS if applies(name, CASES[case])]
    calls = {(case, name): partial(problem.step, IMPLEMENTATIONS[name], CASES[case]) for case, name in runs}
    seconds = in_turns(calls, rounds, device)
    results = []
    for case, name in runs:
        spent, own, floor = (median(seconds[case, of]) for of in (name, "lantern", "gemms"))
        error = growth = None
        if spent is not None and name != "gemms":
            error = within_memory(partial(gradient_error, setting, device, case, name))
        # A process of its own for each takes longer than all the rest: of a quick run's, two need no compiler.
        if spent is not None and (not quick or (case == cases[0] and name in ("lantern eager", "naive"))):
            growth = within_memory(partial(memory_growth, setting, device, case, name))
        results.append(
            {
                "case": case,
                "implementation": name,
                "seconds": spent,
                "of_gemms": ratio(spent, floor),
                "of_lantern": ratio(spent, own),
                "gflop_per_s": ratio(8 * setting.rows * setting.vocabulary * setting.hidden / 1e9, spent),
                "memory_mb": growth,
                "gradient_error": error,
            }
        )
    return {
        "what": f"forward and backward of a linear distillation loss, {setting.dtype}",
        "setting": asdict(setting),
        "gradients_mb": (setting.rows + setting.vocabulary) * setting.hidden * 4 / 1e6,
        "results": results,
    }


def applies(name: str, case: Case) -> bool:
    """Whether an implementation is here and has the case's divergence."""
    peer = {"trl gkd": "trl", "trl chunked": "trl", "liger": "liger_kernel"}.get(name)
    return peer is None or (case.trl_beta is not None and find_spec(peer) is not None)


def gradient_error(setting: Setting, device: torch.device, case: str, name: str) -> float:
    """The largest error of a gradient against naive float64, relative to the largest entry of that gradient.

    Of a few rows on a CPU, which would take minutes; of as many as there is memory for on a GPU, where kernels may go wrong
    at full size alone.
    """
    rows = ROWS_OF_THE_ERROR_CHECK
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        rows = max(rows, min(setting.rows, free // (_FLOAT64_LOGITS * 8 * setting.vocabulary)))
    exact, ours = (Problem(setting, device, rows, exact) for exact in (True, False))
    exact.step(naive, CASES[case])
    ours.step(IMPLEMENTATIONS[name], CASES[case])
    pairs = ((ours.hidden.grad, exact.hidden.grad), (ours.weight.grad, exact.weight.grad))
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs if a is not None and b is not None)


def memory_growth(setting: Setting, device: torch.device, case: str, name: str) -> float | None:
    """MB by which a step raises the peak of the memory over what its inputs take; the gradients are part of it."""
    if device.type == "cuda":
        return gpu_memory_growth(partial(Problem(setting, device).step, IMPLEMENTATIONS[name], CASES[case]))
    growth: float | None = in_a_process(_memory_growth_here, setting, case, name)
    return growth


def _memory_growth_here(setting: Setting, case: str, name: str) -> float | None:
    device = torch.device("cpu")
    # Libraries load, compile and start their threads here.
    Problem(QUICK["cpu"], device).step(IMPLEMENTATIONS[name], CASES[case])
    problem = Problem(setting, device)
    return cpu_memory_growth(partial(problem.step, IMPLEMENTATIONS[name], CASES[case]))


def table(section: dict[str, Any]) -> str:
    """The results as a Markdown table; the rate counts the four products that are necessary, 8·N·V·d."""
    lines = [
        "| case | implementation | seconds | of gemms | of lantern | GFLOP/s | memory growth, MB | gradient error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in section["results"]:
        cells = [
            row["case"],
            row["implementation"],
            "out of memory" if row["seconds"] is None else f"{row['seconds']:.3f}",
            cell("{:.2f}", row["of_gemms"]),
            cell("{:.2f}", row["of_lantern"]),
            cell("{:.0f}", row["gflop_per_s"]),
            cell("{:.0f}", row["memory_mb"]),
            cell("{:.1e}", row["gradient_error"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
