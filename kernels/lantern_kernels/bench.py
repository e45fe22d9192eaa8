"""What the linear loss costs: against its own matrix products, naive torch on full logits, and TRL where installed.

    python -m lantern_kernels.bench [--quick] [--rounds 7] [--json PATH]

One run makes a forward and a backward of every implementation in turn, round after round, so that whatever else a
machine does harms all of them alike. Reported are medians over the rounds, the largest error of a gradient against
float64 on a few rows, and the growth of the peak memory in a process of its own (Linux only; the returned gradients are
part of it).

- gemms: the four matrix products of a linear loss and nothing else, in chunks of 256 rows. The floor.
- lantern: `linear_mixture_loss` as it is once its tile is compiled; `lantern eager` is without a C++ compiler.
- naive: full logits, log-softmaxes and `torch.nn.functional.kl_div`, differentiated by autograd.
- trl gkd: `GKDTrainer.generalized_jsd_loss` on full logits.
- trl chunked: TRL's `ChunkedDivergenceFunction`.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from lantern_kernels import Head, Term, linear_mixture_loss

ROWS_OF_THE_ERROR_CHECK = 16


@dataclass(frozen=True)
class Setting:
    """The sizes of a problem: supervised positions, vocabulary, hidden size, rows per chunk of the bare products."""

    rows: int = 512
    vocabulary: int = 49_152
    hidden: int = 576
    chunk: int = 256


QUICK = Setting(rows=64, vocabulary=8_192, hidden=128, chunk=32)


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


class Problem:
    """Random heads of a student and of a teacher that is close to it, and targets."""

    def __init__(self, setting: Setting, rows: int | None = None, dtype: torch.dtype = torch.float32):
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        V, d = setting.vocabulary, setting.hidden
        hidden, weight = normal(setting.rows, d), normal(V, d) * (3 / math.sqrt(d))
        self.chunk = setting.chunk
        self.targets = torch.randint(0, V, (setting.rows,), generator=generator)[:rows]
        self.teacher_hidden = (hidden + 0.5 * normal(setting.rows, d))[:rows].to(dtype)
        self.teacher_weight = (weight + 0.1 * normal(V, d) / math.sqrt(d)).to(dtype)
        self.hidden = hidden[:rows].to(dtype).requires_grad_()
        self.weight = weight.to(dtype).requires_grad_()

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


def lantern(problem: Problem, case: Case, backend: str = "inductor") -> Tensor:
    return linear_mixture_loss(
        Head(problem.hidden, problem.weight),
        Head(problem.teacher_hidden, problem.teacher_weight),
        case.terms,
        targets=problem.targets if case.cross_entropy else None,
        cross_entropy=case.cross_entropy,
        backend=backend,
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


IMPLEMENTATIONS: dict[str, Callable[[Problem, Case], Tensor | None]] = {
    "gemms": gemms,
    "lantern": lantern,
    "lantern eager": lantern_eager,
    "naive": naive,
    "trl gkd": trl_gkd,
    "trl chunked": trl_chunked,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small problem, and no memory: to see that it runs")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, after one to warm up")
    parser.add_argument("--json", type=Path, help="where to record the results")
    arguments = parser.parse_args(argv)
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    setting = QUICK if arguments.quick else Setting()
    runs = [(case, name) for case in CASES for name in IMPLEMENTATIONS if applies(name, CASES[case])]

    seconds = time_in_turns(setting, runs, arguments.rounds)
    results = []
    for case, name in runs:
        median, own, floor = (statistics.median(seconds[case, of]) for of in (name, "lantern", "gemms"))
        results.append(
            {
                "case": case,
                "implementation": name,
                "seconds": median,
                "of_gemms": median / floor,
                "of_lantern": median / own,
                "memory_mb": None if arguments.quick else in_a_process(memory_growth, setting, case, name),
                "gradient_error": None if name == "gemms" else gradient_error(setting, case, name),
            }
        )
    report = {
        "what": "forward and backward of a linear distillation loss, float32",
        "setting": asdict(setting),
        "gradients_mb": (setting.rows + setting.vocabulary) * setting.hidden * 4 / 1e6,
        "rounds": arguments.rounds,
        "machine": machine(),
        "results": results,
    }
    print(table(report))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def applies(name: str, case: Case) -> bool:
    return not name.startswith("trl") or (case.trl_beta is not None and find_spec("trl") is not None)


def time_in_turns(setting: Setting, runs: Sequence[tuple[str, str]], rounds: int) -> dict[tuple[str, str], list[float]]:
    """Seconds of each run in each round."""
    problem = Problem(setting)
    seconds: dict[tuple[str, str], list[float]] = {run: [] for run in runs}
    for round_ in range(rounds + 1):
        print(f"round {round_} of {rounds}", file=sys.stderr)
        for case, name in runs:
            start = time.perf_counter()
            problem.step(IMPLEMENTATIONS[name], CASES[case])
            if round_:
                seconds[case, name].append(time.perf_counter() - start)
    return seconds


def gradient_error(setting: Setting, case: str, name: str) -> float:
    """The largest error of a gradient against naive float64, relative to the largest entry of that gradient."""
    exact, ours = (Problem(setting, ROWS_OF_THE_ERROR_CHECK, dtype) for dtype in (torch.float64, torch.float32))
    exact.step(naive, CASES[case])
    ours.step(IMPLEMENTATIONS[name], CASES[case])
    pairs = ((ours.hidden.grad, exact.hidden.grad), (ours.weight.grad, exact.weight.grad))
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs if a is not None and b is not None)


def memory_growth(setting: Setting, case: str, name: str) -> float | None:
    """MB by which one step raises the peak of this process's resident memory over what it holds with its inputs."""
    if sys.platform != "linux":
        return None
    Problem(QUICK).step(IMPLEMENTATIONS[name], CASES[case])  # libraries load and start their threads here
    problem = Problem(setting)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before = _status_mb("VmHWM")
    problem.step(IMPLEMENTATIONS[name], CASES[case])
    return _status_mb("VmHWM") - before


def _status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def machine() -> dict[str, Any]:
    cpu = platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    versions = {"python": platform.python_version()}
    for package in ("torch", "trl"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {"cpu": cpu, "threads": torch.get_num_threads(), "versions": versions}


def table(report: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| case | implementation | seconds | of gemms | of lantern | memory growth, MB | gradient error |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["results"]:
        memory = "" if row["memory_mb"] is None else f"{row['memory_mb']:.0f}"
        error = "" if row["gradient_error"] is None else f"{row['gradient_error']:.1e}"
        lines.append(
            f"| {row['case']} | {row['implementation']} | {row['seconds']:.3f} | {row['of_gemms']:.2f} "
            f"| {row['of_lantern']:.2f} | {memory} | {error} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
