"""What it saves to run the common beginnings of texts once: the `hf` teacher with share_prefixes and without, in turns.

    python kernels/bench/prefix_sharing.py [--pairs FILE] [--count 24] [--max-length 512] [--rounds 3] [--json PATH]

The teacher is SmolLM2-135M in fp32; the pairs are those of a file, or of the sample generator, ordered by their jobs, as a
labelling run meets them. The generator's have four candidates of each job, and short texts, some hundred tokens each.
Reported are medians of all batches together, the tokens that reached the model, padding included, and how far the signals
are apart.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lantern_kernels.bench.measure import in_turns, machine
from torch import Tensor

from lantern_pl.data.featurize import DecoderFeaturizer
from lantern_pl.data.pair import Pair
from lantern_pl.data.records import read_pairs
from lantern_pl.data.sample import make_pairs
from lantern_pl.tasks import Task
from lantern_pl.teachers.local_model import HFTeacher

MODEL = "embedded:smollm2-135m"
BATCHES = (4, 8)
CPU = torch.device("cpu")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, help="annotated pairs, as `lantern fit` reads them; else generated ones")
    parser.add_argument("--count", type=int, default=24, help="how many; of the generator's, eight have two jobs")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of the longest example")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds, after one to warm up")
    parser.add_argument("--json", type=Path, help="where to record the results")
    arguments = parser.parse_args()
    teachers = {sharing: HFTeacher(MODEL, share_prefixes=sharing).to(CPU) for sharing in (False, True)}
    pairs = pairs_by_job(arguments.pairs, arguments.count)
    length = arguments.max_length
    calls: dict[tuple[str, int, bool], Callable[[], Tensor]] = {}
    for size in BATCHES:
        for sharing, teacher in teachers.items():
            calls["score_tokens", size, sharing] = partial(score_tokens, teacher, batches(pairs, size), length)
            calls["level_probs", size, sharing] = partial(level_probs, teacher, batches(pairs, size))
    tokens: dict[tuple[str, int, bool], int] = {}
    signals: dict[tuple[str, int, bool], Tensor] = {}
    for label, call in calls.items():
        signals[label], tokens[label] = counted(teachers[label[2]], call)
    seconds = in_turns(calls, arguments.rounds, CPU)
    results = [
        {
            "signal": signal,
            "batch": size,
            "tokens": tokens[signal, size, False],
            "tokens_sharing": tokens[signal, size, True],
            "seconds": statistics.median(seconds[signal, size, False]),
            "seconds_sharing": statistics.median(seconds[signal, size, True]),
            "largest_difference": float((signals[signal, size, True] - signals[signal, size, False]).abs().max()),
        }
        for signal in ("score_tokens", "level_probs")
        for size in BATCHES
    ]
    report = {
        "what": f"hf teacher on {len(pairs)} pairs of {len({pair.job_id for pair in pairs})} jobs, SmolLM2-135M, fp32",
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
    """The results as a Markdown table. Differences are in logits of tokens, and in probabilities of levels."""
    lines = [
        "| signal | batch | tokens, whole | tokens, shared | seconds, whole | seconds, shared | faster by | difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["results"]:
        lines.append(
            f"| {row['signal']} | {row['batch']} | {row['tokens']} | {row['tokens_sharing']} | {row['seconds']:.1f} "
            f"| {row['seconds_sharing']:.1f} | {row['seconds'] / row['seconds_sharing']:.2f}x "
            f"| {row['largest_difference']:.0e} |"
        )
    return "\n".join(lines)


def pairs_by_job(file: Path | None, count: int) -> list[Pair]:
    """The first pairs, those of the same job side by side."""
    if file is not None:
        return sorted(read_pairs(file, Task()), key=lambda pair: pair.job_id)[:count]
    names = ("pair_id", "job_id", "candidate_id", "job_text", "candidate_text", "level", "explanation")
    pairs = [Pair(*(row[name] for name in names)) for row in make_pairs(count, seed=0)]
    return sorted(pairs, key=lambda pair: pair.job_id)


def batches(pairs: list[Pair], size: int) -> list[list[Pair]]:
    return [pairs[start : start + size] for start in range(0, len(pairs), size)]


def score_tokens(teacher: HFTeacher, batches: list[list[Pair]], max_length: int) -> Tensor:
    """The logits of some tokens, [N, 100], of all batches: the hidden states are the work, the head is the loss's."""
    features = DecoderFeaturizer(teacher.tokenizer, Task(), max_length)
    signals = [teacher.score_tokens(features.collate([features.encode(pair) for pair in batch]).tokens) for batch in batches]
    return torch.cat([signal.hidden @ signal.head.weight[:100].T for signal in signals])


def level_probs(teacher: HFTeacher, batches: list[list[Pair]]) -> Tensor:
    return torch.cat([teacher.level_probs(batch, Task()).probs for batch in batches])


def counted(teacher: HFTeacher, call: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """What the call returns, and the tokens that reach the teacher's model in it."""
    count = 0

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal count
        count += kwargs["input_ids"].numel()

    hook = teacher.lm.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    try:
        return call(), count
    finally:
        hook.remove()


if __name__ == "__main__":
    sys.exit(main())
