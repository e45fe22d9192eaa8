"""Teacher signals on disk: their size, how fast they are read, what recording costs, and what a fit gains by them.

    python kernels/bench/signals.py [--rounds 5] [--json PATH]

- Size and reading: 2M supervised tokens, k = 32 of 49,152, in examples of 64 tokens that are read in random order, 64 at
  once, from a warm cache, by two processes. Decoded are int32 ids and float32 log-probabilities, as the loss takes them.
- Recording: SmolLM2-135M on 8 pairs of the sample; the teacher's forward with its head, and all that is done besides.
- Fit: one training step of `training_step.py`'s setting, with the teacher online and from disk, taking turns.
- Rounding: each divergence on the recorded top 32 with exact and with one-byte log-probabilities.

Exit status 1, once all is printed and recorded, where a goal is missed.
"""

import argparse
import itertools
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lantern_kernels.bench.measure import machine
from training_step import BATCH, COMPLETION, LAYERS, MODEL, PROMPT

from lantern_pl.data.featurize import DecoderBatch, DecoderFeaturizer
from lantern_pl.data.records import read_pairs
from lantern_pl.data.sample import make_pairs, write_sample
from lantern_pl.depth_pruning import DepthPruning
from lantern_pl.divergences.contract import WeightedDivergence
from lantern_pl.divergences.first_party import JS
from lantern_pl.signal_sets import report as rounding
from lantern_pl.signal_sets.formats import TopKFormat, logits_of, store_ids
from lantern_pl.signal_sets.keys import example_key
from lantern_pl.signal_sets.manifest import Manifest, Tokens
from lantern_pl.signal_sets.reader import SignalSet
from lantern_pl.signal_sets.recording import Recorder, plan
from lantern_pl.signal_sets.shards import EXAMPLE_KEYS, ROW_ENDS
from lantern_pl.signal_sets.writer import SetWriter
from lantern_pl.signals import TokenBatch
from lantern_pl.students import DecoderStudent
from lantern_pl.tasks import Task
from lantern_pl.teachers.from_disk import CachedTeacher
from lantern_pl.teachers.local_model import HFTeacher
from lantern_pl.text import fingerprint, template_hash

VOCABULARY, K, PER_EXAMPLE = 49_152, 32, 64
SHARDS, EXAMPLES = 8, 4096

MOST_BYTES = {"plain": 165, "packed": 115}
LEAST_TOKENS_PER_S = 10e6
MOST_OVERHEAD = 0.05
"""Of recording, as a share of the teacher's forward."""
LEAST_GAIN = 1.6
"""Times that a training step from disk is faster than one with the teacher online."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each, after one warm-up; medians are shown")
    parser.add_argument("--json", type=Path, help="where to record the results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = {
            "reading": {
                "plain": reading(Path(folder) / "plain", False, arguments.rounds),
                "packed": reading(Path(folder) / "packed", True, arguments.rounds),
            },
            "recording": recording(Path(folder), arguments.rounds),
            "fit": fit(Path(folder) / "fit", arguments.rounds),
        }
    report = {
        "what": "teacher signals on disk, k = 32 with tail",
        "machine": machine(),
        "rounds": arguments.rounds,
        "results": results,
    }
    print(table(report))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    goals = missed(results)
    for goal in goals:
        print(f"Missed: {goal}", file=sys.stderr)
    return 1 if goals else 0


def missed(results: dict[str, Any]) -> list[str]:
    """The goals that the results don't reach, each with what was measured."""
    found = []
    for name, row in results["reading"].items():
        if row["bytes_per_token"] > MOST_BYTES[name]:
            found.append(f"{name}: {row['bytes_per_token']:.1f} B a token, at most {MOST_BYTES[name]}")
        if row["tokens_per_s"] < LEAST_TOKENS_PER_S:
            speed, least = row["tokens_per_s"] / 1e6, LEAST_TOKENS_PER_S / 1e6
            found.append(f"{name}: {speed:.1f}M tokens/s read and decoded, at least {least:.0f}M")
    overhead, gain = results["recording"]["overhead"], results["fit"]["faster"]
    if overhead > MOST_OVERHEAD:
        found.append(f"recording adds {overhead:.1%} to the teacher's forward, at most {MOST_OVERHEAD:.0%}")
    if gain < LEAST_GAIN:
        found.append(f"a training step from disk is {gain:.2f} times faster, at least {LEAST_GAIN}")
    return found


def table(report: dict[str, Any]) -> str:
    """The results as Markdown tables."""
    results = report["results"]
    lines = [
        "| signals of k = 32 on disk | B a token | M tokens/s read | M tokens/s read and decoded |",
        "|---|---|---|---|",
    ]
    for name, row in results["reading"].items():
        speeds = f"{row['raw_tokens_per_s'] / 1e6:.1f} | {row['tokens_per_s'] / 1e6:.1f}"
        lines.append(f"| {name} | {row['bytes_per_token']:.1f} | {speeds} |")
    made, step = results["recording"], results["fit"]
    lines += [
        "",
        "| | seconds | |",
        "|---|---|---|",
        f"| the teacher's forward, 8 pairs | {made['forward_s']:.2f} | |",
        f"| what recording adds | {made['added_s']:.2f} | {made['overhead']:+.1%} |",
        f"| training step, teacher online | {step['online_s']:.2f} | |",
        f"| training step, from disk | {step['cached_s']:.2f} | {step['faster']:.2f}x faster |",
        f"| of which reading | {step['reading_s']:.4f} | {step['reading_s'] / step['cached_s']:.2%} |",
        "",
        "| divergence, nats a token | whole | top 32 and tail | of the whole | rounded to a byte each |",
        "|---|---|---|---|---|",
    ]
    for name, row in made["rounding"].items():
        figures = f"{row['whole']:.5f} | {row['top_k']:.5f} | {row['top_k'] / row['whole']:.0%}"
        lines.append(f"| {name} | {figures} | {row['stored'] - row['top_k']:+.5f} |")
    return "\n".join(lines)


def _median(action: Callable[[], Any], rounds: int) -> float:
    seconds = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def _write(folder: Path, tokens: Tokens, shards: list[tuple[dict[str, torch.Tensor], int, int]]) -> None:
    writer = SetWriter(folder, {})
    for number, (arrays, examples, rows) in enumerate(shards):
        writer.add(number, arrays, examples, rows, 0)
    writer.finish(Manifest(teacher={}, task={}, data={}, request={}, tokens=tokens, shards=writer.shards))


def reading(folder: Path, packed: bool, rounds: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    rows = EXAMPLES * PER_EXAMPLE
    shards = []
    for _ in range(SHARDS):
        # Any signals do but those that name a token twice, which reading refuses.
        ids = (torch.randint(VOCABULARY, (rows, 1), generator=generator) + torch.arange(K) * 1531) % VOCABULARY
        arrays = store_ids(ids, VOCABULARY, packed)
        arrays["log_probs"] = torch.randint(200, (rows, K), generator=generator).to(torch.uint8)
        arrays["tail_log_mass"] = -torch.rand(rows, generator=generator).half() - 0.01
        arrays[EXAMPLE_KEYS] = torch.randint(0, 256, (EXAMPLES, 16), generator=generator).to(torch.uint8)
        arrays[ROW_ENDS] = torch.arange(1, EXAMPLES + 1) * PER_EXAMPLE
        shards.append((arrays, EXAMPLES, rows))
    about = {"tokenizer": "", "chat_template": "", "vocab_size": VOCABULARY, "temperature": 1.0}
    _write(folder, Tokens(mode="top_k", k=K, log_probs="u8", packed=packed, **about), shards)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    order = np.random.default_rng(0).permutation(SHARDS * EXAMPLES)
    # Neighbours in the reading order lie in any shard, as in a shuffled epoch.
    batches = np.split(order, len(order) // PER_EXAMPLE)
    total = SHARDS * rows
    halves = [(folder, decode, batches[start::2], rounds) for decode in (False, True) for start in (0, 1)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        seconds = [max(pool.map(read_by_one, halves[start : start + 2])) for start in (0, 2)]
    raw, decoded = seconds
    return {
        "tokens": total,
        "bytes_per_token": size / total,
        "raw_tokens_per_s": total / raw,
        "tokens_per_s": total / decoded,
    }


def read_by_one(work: tuple[Path, bool, list[np.ndarray], int]) -> float:
    """Median seconds in which one process, on one core, reads its batches."""
    folder, decode, batches, rounds = work
    torch.set_num_threads(1)
    signals = SignalSet(folder, verify=False)
    action = signals.tokens if decode else signals.arrays_of

    def read() -> None:
        for batch in batches:
            action(batch)

    return _median(read, rounds)


def recording(folder: Path, rounds: int) -> dict[str, Any]:
    write_sample(folder / "pairs", make_pairs(16, 0), 0)
    pairs = read_pairs(folder / "pairs" / "pairs.jsonl", Task())[:8]
    teacher = HFTeacher(MODEL).to(torch.device("cpu"))
    featurizer = DecoderFeaturizer(teacher.tokenizer, Task(), 512)
    examples = [featurizer.encode(pair) for pair in pairs]
    form = TopKFormat(K, VOCABULARY, "u8", False, 1.0)
    recorder = Recorder(teacher, Task(), featurizer, form, levels=False, seed=0, batch_size=4)
    items = plan(pairs, examples, levels=False)

    batches = [featurizer.collate([item.example for item in items[start : start + 4] if item.example]) for start in (0, 4)]

    def forward() -> None:
        for batch in batches:
            project(teacher.score_tokens(batch.tokens))

    def project(signal: Any) -> None:
        with torch.no_grad():
            for _ in logits_of(signal):
                pass

    forward_s = _median(forward, rounds)
    # What recording adds is measured with the backbone's answers at hand: their noise is larger than that.
    signals = [teacher.score_tokens(batch.tokens) for batch in batches]
    answers = itertools.cycle(signals)
    teacher.score_tokens = lambda batch: next(answers)  # type: ignore[method-assign]
    added = []
    writer, numbers = SetWriter(folder / "recorded", {}), itertools.count()
    for _ in range(4 * rounds + 1):
        began = time.perf_counter()
        for signal in signals:
            project(signal)
        between = time.perf_counter()
        for _, made in recorder.shard(items):
            if made is not None:
                writer.add(next(numbers), made.arrays, made.examples, made.tokens, made.pairs)
        added.append(time.perf_counter() - between - (between - began))
    added_s = statistics.median(added[1:])
    del teacher.score_tokens
    found = rounding.measure(teacher, featurizer, form, examples, None)
    return {
        "forward_s": forward_s,
        "added_s": added_s,
        "overhead": added_s / forward_s,
        "rounding": found["divergences"],
    }


def fit(folder: Path, rounds: int) -> dict[str, float]:
    torch.manual_seed(0)
    ids = torch.randint(0, VOCABULARY, (BATCH, PROMPT + COMPLETION))
    positions = torch.zeros_like(ids, dtype=torch.bool)
    positions[:, PROMPT - 1 : -1] = True
    batch = DecoderBatch(TokenBatch(ids, torch.ones_like(ids), positions), ids[:, PROMPT:].flatten(), pairs=[])
    online = HFTeacher(MODEL).to(torch.device("cpu"))
    form = TopKFormat(K, VOCABULARY, "u8", False, 1.0)
    arrays = form.encode(online.score_tokens(batch.tokens), seed=0)
    keys = [list(example_key(row, PROMPT)) for row in ids.tolist()]
    arrays |= {EXAMPLE_KEYS: torch.tensor(keys, dtype=torch.uint8), ROW_ENDS: torch.arange(1, BATCH + 1) * COMPLETION}
    assert online.tokenizer_fingerprint == fingerprint(online.tokenizer)
    about = {"tokenizer": online.tokenizer_fingerprint, "chat_template": template_hash(online.tokenizer)}
    tokens = Tokens(mode="top_k", k=K, log_probs="u8", vocab_size=VOCABULARY, temperature=1.0, **about)
    _write(folder, tokens, [(arrays, BATCH, BATCH * COMPLETION)])
    cached = CachedTeacher(str(folder))
    steps = {"online": _step(online, batch), "cached": _step(cached, batch)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            seconds[name].append(_median(step, 1) if not seconds[name] else _once(step))
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    ratios = [a / b for a, b in zip(seconds["online"][1:], seconds["cached"][1:], strict=True)]
    return {
        "online_s": medians["online"],
        "cached_s": medians["cached"],
        "faster": statistics.median(ratios),
        "reading_s": _median(lambda: cached.score_tokens(batch.tokens), rounds),
    }


def _once(action: Callable[[], Any]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _step(teacher: Any, batch: DecoderBatch) -> Callable[[], None]:
    mixture = [WeightedDivergence(JS())]
    student = DecoderStudent(MODEL, layers=DepthPruning(LAYERS), teacher=teacher, mixture=mixture, cross_entropy=0.0)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)

    def step() -> None:
        student.summed_loss(batch)[0].loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    sys.exit(main())
