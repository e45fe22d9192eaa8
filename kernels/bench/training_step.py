"""One whole training step of decoder distillation, against TRL's losses, side by side in one run.

    python kernels/bench/training_step.py [--rounds 5] [--json PATH]

Teacher SmolLM2-135M, student its first 10 layers, batch 2 of 448 prompt and 64 completion tokens, JS ½, fp32, AdamW.
Each implementation lives in a process of its own, for its memory; they take turns, so noise harms all alike.

- lantern: DecoderStudent's loss: supervised positions are selected ahead of the head, gradient in the forward.
- trl gkd: what GKDTrainer.compute_loss of TRL does: full logits of both models at all positions.
- trl chunked: TRL's ChunkedDivergenceFunction on the hidden states of all positions, masked afterwards.
- trl chunked, completion: the same on completion positions only, as TRL's on-policy DistillationTrainer calls it.
"""

import argparse
import json
import multiprocessing as mp
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from lantern_kernels.bench.measure import machine

MODEL = "embedded:smollm2-135m"
LAYERS, BATCH, PROMPT, COMPLETION = 10, 2, 448, 64
IMPLEMENTATIONS = ("lantern", "trl gkd", "trl chunked", "trl chunked, completion")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each implementation, after one warm-up")
    parser.add_argument("--json", type=Path, help="where to record the results")
    arguments = parser.parse_args()
    context = mp.get_context("spawn")
    workers = {}
    for name in IMPLEMENTATIONS:
        here, there = context.Pipe()
        process = context.Process(target=work, args=(name, there), daemon=True)
        process.start()
        there.close()
        here.recv()  # loaded
        workers[name] = here
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in IMPLEMENTATIONS}
    for round_ in range(arguments.rounds + 1):
        for name, pipe in workers.items():
            pipe.send("step")
            steps[name].append(pipe.recv())
            print(f"round {round_}  {name:26} {steps[name][-1]['seconds']:6.2f} s", file=sys.stderr, flush=True)
    for pipe in workers.values():
        pipe.send("stop")
    results = {
        name: {
            "seconds": statistics.median(step["seconds"] for step in rows[1:]),
            "memory_growth_mb": max(step["growth_mb"] for step in rows),
            "loss_first_step": rows[0]["loss"],
        }
        for name, rows in steps.items()
    }
    report = {
        "what": "training step, SmolLM2-135M teacher, first 10 layers as student, 2 x (448 + 64) tokens, JS 1/2, fp32",
        "machine": machine(),
        "rounds": arguments.rounds,
        "results": results,
    }
    print(table(report))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def table(report: dict[str, Any]) -> str:
    """The results as a Markdown table, each against lantern's."""
    own = report["results"]["lantern"]
    lines = [
        "| one training step | seconds | lantern is faster by | memory growth, MB | lantern's share |",
        "|---|---|---|---|---|",
    ]
    for name, row in report["results"].items():
        faster = "" if name == "lantern" else f"{row['seconds'] / own['seconds']:.1f}x"
        share = "" if name == "lantern" else f"{own['memory_growth_mb'] / row['memory_growth_mb']:.2f}"
        lines.append(f"| {name} | {row['seconds']:.2f} | {faster} | {row['memory_growth_mb']:.0f} | {share} |")
    return "\n".join(lines)


def work(name: str, pipe: Any) -> None:
    """Load both models, then make a step whenever asked."""
    import torch

    from lantern_pl.causal_lm import load_causal_lm
    from lantern_pl.depth_pruning import DepthPruning

    torch.manual_seed(0)
    ids = torch.randint(0, 49152, (BATCH, PROMPT + COMPLETION))
    if name == "lantern":
        step = lantern_step(ids)
    else:
        student = load_causal_lm(MODEL, torch.float32, DepthPruning(LAYERS)).train()
        teacher = load_causal_lm(MODEL, torch.float32).requires_grad_(False)
        losses = {
            "trl gkd": gkd_loss,
            "trl chunked": chunked_loss,
            "trl chunked, completion": chunked_completion_loss,
        }
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)

        def step() -> float:
            loss = losses[name](student, teacher, ids)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return float(loss.detach())

    pipe.send("loaded")
    loaded = memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    while pipe.recv() == "step":
        start = time.perf_counter()
        loss = step()
        seconds = time.perf_counter() - start
        pipe.send({"seconds": seconds, "growth_mb": memory_mb("VmHWM") - loaded, "loss": loss})


def lantern_step(ids: Any) -> Any:
    """A step of DecoderStudent on a batch as its own featurizer makes it, without the Trainer around it."""
    import torch
    from lantern_kernels import chunk

    from lantern_pl.data.featurize import DecoderBatch
    from lantern_pl.depth_pruning import DepthPruning
    from lantern_pl.divergences.contract import WeightedDivergence
    from lantern_pl.divergences.first_party import JS
    from lantern_pl.signals import TokenBatch
    from lantern_pl.students import DecoderStudent
    from lantern_pl.teachers.local_model import HFTeacher

    chunk._LOGITS_BEFORE_COMPILING = 0  # as it is after the first steps of a run
    student = DecoderStudent(
        MODEL,
        layers=DepthPruning(LAYERS),
        teacher=HFTeacher(MODEL).to(torch.device("cpu")),
        mixture=[WeightedDivergence(JS())],
        cross_entropy=0.0,
    )
    positions = torch.zeros_like(ids, dtype=torch.bool)
    positions[:, PROMPT - 1 : -1] = True
    batch = DecoderBatch(TokenBatch(ids, torch.ones_like(ids), positions), ids[:, PROMPT:].flatten(), pairs=[])
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)

    def step() -> float:
        output, rows = student.summed_loss(batch)
        output.loss.backward()
        for parameter in student.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(1 / rows)
        optimizer.step()
        optimizer.zero_grad()
        return float(output.loss.detach()) / rows

    return step


def gkd_loss(student: Any, teacher: Any, ids: Any) -> Any:
    import torch
    from trl.experimental.gkd import GKDTrainer

    mask, labels = torch.ones_like(ids), ids.clone()
    labels[:, :PROMPT] = -100
    student_logits = student(input_ids=ids, attention_mask=mask).logits
    with torch.no_grad():
        teacher_logits = teacher(input_ids=ids, attention_mask=mask).logits
    return GKDTrainer.generalized_jsd_loss(
        student_logits[:, :-1], teacher_logits[:, :-1], labels[:, 1:], beta=0.5, num_items_in_batch=BATCH * COMPLETION
    )


def chunked_loss(student: Any, teacher: Any, ids: Any, first: int = 0) -> Any:
    import torch
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    mask = torch.ones_like(ids)
    hidden = student.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    with torch.no_grad():
        teacher_hidden = teacher.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    completion = torch.zeros_like(ids)
    completion[:, PROMPT:] = 1
    loss, _, _ = _chunked_divergence_loss(
        hidden[:, first:-1],
        teacher_hidden[:, first:-1],
        student.lm_head.weight,
        teacher.lm_head.weight,
        completion[:, first + 1 :],
        0.5,
        num_items_in_batch=BATCH * COMPLETION,
    )
    return loss


def chunked_completion_loss(student: Any, teacher: Any, ids: Any) -> Any:
    return chunked_loss(student, teacher, ids, first=PROMPT - 1)


def memory_mb(field: str) -> float:
    """A memory figure of this process: VmRSS (now) or VmHWM (its peak)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    sys.exit(main())
