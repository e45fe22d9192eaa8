"""Below the cost of the dense products: the linear loss on real hidden states, with negligible entries left out.

    python kernels/bench/block_skipping.py [--student runs/quickstart/student] [--rounds 7] [--json PATH]

The teacher is SmolLM2-135M on real text of the sample generator; the student is a folder that `lantern fit` left, by
default that of `make quickstart`. One run makes a forward and a backward of each variant in turn. Reported are medians,
the share of the vocabulary that was kept, and the error of the gradients against those without skipping.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lantern_kernels import Head, Term, heads, linear_mixture_loss
from lantern_kernels.bench.measure import machine
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lantern_pl.data.sample import make_pairs
from lantern_pl.model_files import locate

ROWS, CHUNK = 512, 128
THRESHOLDS = {"lantern": 0.0, "skip 2^-14": 2**-14, "skip 2^-12": 2**-12, "skip 2^-10": 2**-10}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="runs/quickstart/student", help="a folder that `lantern fit` left")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, after one to warm up")
    parser.add_argument("--json", type=Path, help="where to record the results")
    arguments = parser.parse_args()
    if not Path(arguments.student).is_dir():
        parser.error(f"{arguments.student} is no folder: run `make quickstart` first, or give --student")

    teacher = states(locate("embedded:smollm2-135m"))
    student = states(arguments.student)
    seconds: dict[str, list[float]] = {name: [] for name in ["gemms", *THRESHOLDS]}
    gradients: dict[str, tuple[Tensor, ...]] = {}
    for round_ in range(arguments.rounds + 1):
        print(f"round {round_} of {arguments.rounds}", file=sys.stderr)
        for name in seconds:
            start = time.perf_counter()
            if name == "gemms":
                products(student, teacher)
            else:
                gradients[name] = step(student, teacher, THRESHOLDS[name])
            if round_:
                seconds[name].append(time.perf_counter() - start)
    floor = statistics.median(seconds["gemms"])
    results = [
        {
            "implementation": name,
            "seconds": statistics.median(times),
            "of_gemms": statistics.median(times) / floor,
            "kept": kept_share(lambda name=name: step(student, teacher, THRESHOLDS[name])) if name in gradients else None,
            "gradient_error": relative_error(gradients[name], gradients["lantern"]) if name in gradients else None,
        }
        for name, times in seconds.items()
    ]
    report = {
        "what": f"KL of {ROWS} tokens of real text, forward and backward",
        "rounds": arguments.rounds,
        "machine": machine(),
        "results": results,
    }
    print(table(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


@torch.no_grad()
def states(model: str | Path) -> Head:
    """Last hidden states of real text, and the output embedding."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    text = "\n".join(f"{pair['candidate_text']} {pair['explanation']}" for pair in make_pairs(40, seed=1))
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :ROWS]
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    hidden = lm.get_decoder()(ids).last_hidden_state[0]
    return Head(hidden.clone(), lm.get_output_embeddings().weight.clone())


def step(student: Head, teacher: Head, threshold: float) -> tuple[Tensor, ...]:
    leaf = Head(student.hidden.detach().requires_grad_(), student.weight.detach().requires_grad_())
    output = linear_mixture_loss(leaf, teacher, [Term("kl")], backend="inductor", skip_below=threshold, chunk_size=CHUNK)
    return torch.autograd.grad(output.loss, (leaf.hidden, leaf.weight))


def products(student: Head, teacher: Head) -> None:
    hidden, weight = student.hidden, student.weight
    buffers = [torch.empty(CHUNK, len(weight)) for _ in range(2)]
    hidden_gradient, weight_gradient = torch.empty_like(hidden), torch.zeros_like(weight)
    for start in range(0, len(hidden), CHUNK):
        rows = slice(start, start + CHUNK)
        torch.mm(hidden[rows], weight.t(), out=buffers[0])
        torch.mm(teacher.hidden[rows], teacher.weight.t(), out=buffers[1])
        torch.mm(buffers[0], weight, out=hidden_gradient[rows])
        weight_gradient.addmm_(buffers[0].t(), hidden[rows])


def kept_share(run: Callable[[], Any]) -> float:
    """The mean share of the vocabulary that takes part in a chunk's products."""
    shares: list[float] = []
    choose = heads._columns_above

    def noting(gradient: Tensor, negligible: Tensor) -> Tensor | None:
        columns = choose(gradient, negligible)
        shares.append(1.0 if columns is None else len(columns) / gradient.shape[1])
        return columns

    heads._columns_above = noting
    try:
        run()
    finally:
        heads._columns_above = choose
    return statistics.mean(shares) if shares else 1.0


def relative_error(got: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> float:
    """The larger relative error, in norm, of the two gradients."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(got, exact, strict=True))


def table(report: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    lines = ["| implementation | seconds | of gemms | vocabulary kept | gradient error |", "|---|---|---|---|---|"]
    for row in report["results"]:
        kept = "" if row["kept"] is None else f"{row['kept']:.0%}"
        error = "" if row["gradient_error"] is None else f"{row['gradient_error']:.1e}"
        lines.append(f"| {row['implementation']} | {row['seconds']:.3f} | {row['of_gemms']:.2f} | {kept} | {error} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
