"""What it would take to label and learn from a hundred million pairs: rates measured here, and the sum made from them.

    python kernels/bench/scale.py [--json PATH]

Measured are sizes and rates of this package on this machine: tokens and bytes of the sample's pairs, the label store, and
two small models on the CPU. `table` multiplies them by a plan of four steps. Hours of GPUs aren't measured: they are the
FLOPs of models of the paper's sizes, divided by what a GPU is assumed to do of them (`GPU_FLOPS`).
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lantern_kernels.bench.measure import machine

from lantern_pl.causal_lm import generate, load_causal_lm
from lantern_pl.data.featurize import DecoderFeaturizer
from lantern_pl.data.pair import Pair
from lantern_pl.data.records import read_pairs
from lantern_pl.data.sample import make_pairs, write_sample
from lantern_pl.labelling.account import Budget
from lantern_pl.labelling.config import LabelConfig
from lantern_pl.labelling.preflight import StageForecast, forecast
from lantern_pl.labelling.staged import StagedRun
from lantern_pl.labelling.store import Answered, LabelStore
from lantern_pl.pair_classifier import new_classifier
from lantern_pl.students import EncoderStudent
from lantern_pl.tasks import Task
from lantern_pl.tasks.guide import Guide
from lantern_pl.teachers.chat import Attempt
from lantern_pl.teachers.rule_based import RubricTeacher
from lantern_pl.text import load_tokenizer

LM, ENCODER = "embedded:smollm2-135m", "embedded:minilm-l6"
PAIRS, ANSWERS, GENERATED, WRITTEN = 192, 20_000, 8, 32
K = 32  # of the recorded signals

# The plan: pairs of each step, and the sizes of the paper's models.
MANY, BASE, TEXTS, LEVELS = 100_000_000, 100_000, 2_000_000, 20_000_000
PAIRS_PER_JOB, PAIRS_PER_CANDIDATE = 100, 10
PREDICTION_BYTES = 40
TEACHER, DECODER, CLASSIFIER = 7e9, 1.5e9, 0.4e9
# Assumed of one GPU of today, in FLOP/s that come of use: 40 % of some 990 dense ones in bf16 while it reads; a tenth of
# that while it writes, token by token, in large batches.
READING, WRITING = 4e14, 4e13


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to record the results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_sample(Path(folder) / "pairs", make_pairs(PAIRS, 0), 0)
        file = Path(folder) / "pairs" / "pairs.jsonl"
        pairs = read_pairs(file, Task())
        results = {
            "questions": questions(Path(folder) / "asked", file, pairs),
            "store": store(Path(folder) / "stored", pairs),
            "texts": texts(pairs),
            "models": models(pairs),
        }
    report = {"what": "sizes and rates for a sum of scale", "machine": machine(), "results": results}
    print(table(report))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def questions(folder: Path, file: Path, pairs: list[Pair]) -> dict[str, Any]:
    """Tokens that a question of each stage reads and writes, as `lantern label` forecasts them."""
    found = {}
    for stages in ("decomposed", "single"):
        config = LabelConfig(str(folder / stages), str(file), RubricTeacher(), guide=Guide(stages=stages))
        with LabelStore(folder / stages) as empty:
            rows = forecast(StagedRun(config, pairs, empty, Budget(None, None)))
        found[stages] = [_per_question(row) for row in rows]
    return found


def _per_question(row: StageForecast) -> dict[str, Any]:
    asked = row.questions
    return {
        "stage": row.stage,
        "per": row.per,
        "reads": row.prompt_tokens / asked,
        "writes": row.completion_tokens / asked,
    }


def store(folder: Path, pairs: list[Pair]) -> dict[str, float]:
    """Bytes of an answer in the label store, and how many it takes a second, each waited for until it's on the disk."""
    raw = json.dumps({"level": "high", "explanation": max((p.explanation or "" for p in pairs), key=len)})
    began = time.perf_counter()
    with LabelStore(folder) as kept:
        waiting = [
            kept.put(
                Answered(
                    key=f"{number:064x}", stage="explain", subject=f"p{number}", job_id=f"j{number // PAIRS_PER_JOB}",
                    candidate_id=f"c{number // PAIRS_PER_CANDIDATE}", pair_id=f"p{number}", sample=0, state="ok",
                    reason=None, raw=raw, parsed=json.loads(raw), finish_reason="stop", prompt_tokens=700,
                    completion_tokens=120, cost=None, repairs=0, teacher="scale", seconds=1.0,
                ),
                [Attempt(0.0, 1.0, "ok")],
            )
            for number in range(ANSWERS)
        ]  # fmt: skip
        for future in waiting:
            future.result()
        seconds = time.perf_counter() - began
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"bytes_per_answer": size / ANSWERS, "answers_per_s": ANSWERS / seconds}


def texts(pairs: list[Pair]) -> dict[str, float]:
    """Tokens of a pair for a decoder, supervised and in all, and for an encoder."""
    featurizer = DecoderFeaturizer(load_tokenizer(LM), Task(), 1024)
    examples = [featurizer.encode(pair) for pair in pairs]
    student = EncoderStudent(ENCODER).featurizer(Task(), 512)
    return {
        "supervised": sum(len(e.input_ids) - e.answer_start for e in examples) / len(pairs),
        "decoder": sum(len(e.input_ids) for e in examples) / len(pairs),
        "encoder": sum(len(student.encode(pair).input_ids) for pair in pairs) / len(pairs),
    }


@torch.inference_mode()
def models(pairs: list[Pair]) -> dict[str, float]:
    """Pairs a second that the two embedded models answer on this machine's CPU."""
    tokenizer, lm = load_tokenizer(LM), load_causal_lm(LM, torch.float32, None).eval()
    featurizer = DecoderFeaturizer(tokenizer, Task(), 1024)
    prompts = [featurizer.prompt(pair) for pair in pairs[:GENERATED]]
    began = time.perf_counter()
    written = sum(answer.tokens for answer in generate(lm, tokenizer, prompts, WRITTEN))
    writing = time.perf_counter() - began
    student = EncoderStudent(ENCODER)
    classifier = new_classifier(ENCODER, student.levels, "cls", 1, 0.0, None).eval()
    encode = student.featurizer(Task(), 512)
    examples = [encode.encode(pair) for pair in pairs]
    classifier(encode.collate(examples[:4]).inputs)
    began = time.perf_counter()
    for start in range(0, len(examples), 4):
        classifier(encode.collate(examples[start : start + 4]).inputs)
    classifying = time.perf_counter() - began
    return {
        "decoder_parameters": float(sum(p.numel() for p in lm.parameters())),
        "decoder_tokens_per_s": written / writing,
        "encoder_parameters": float(sum(p.numel() for p in classifier.parameters())),
        "encoder_pairs_per_s": len(examples) / classifying,
    }


def table(report: dict[str, Any]) -> str:
    """The measured rates, and what the plan's steps take by them, as Markdown tables."""
    rates = _rates(report)
    of_texts, of_models = rates["texts"], rates["models"]
    lines = ["| measured | |", "|---|---|"]
    for row in [*rates["stages"], {**rates["single"], "stage": f"{rates['single']['stage']}, all in one"}]:
        tokens = f"{row['reads']:.0f} read, {row['writes']:.0f} written"
        lines.append(f"| tokens of a question, {row['stage']} (one per {row['per']}) | {tokens} |")
    size = {name: f"{of_models[f'{name}_parameters'] / 1e6:.0f}M" for name in ("encoder", "decoder")}
    lines += [
        f"| tokens of a pair, decoder | {of_texts['decoder']:.0f}, {of_texts['supervised']:.0f} of them supervised |",
        f"| tokens of a pair, encoder | {of_texts['encoder']:.0f} |",
        f"| questions a second through litellm into the store, one process | {rates['asked_per_s']:.0f} |",
        f"| answers a second that the store takes | {rates['store']['answers_per_s']:,.0f} |",
        f"| bytes of an answer in the store | {rates['store']['bytes_per_answer']:.0f} |",
        f"| bytes of a supervised token's signal, k = {K}, packed | {rates['signal']:.0f} |",
        f"| pairs a second of a {size['encoder']} encoder on this CPU | {of_models['encoder_pairs_per_s']:.0f} |",
        f"| tokens a second that a {size['decoder']} decoder writes on this CPU | {of_models['decoder_tokens_per_s']:.0f} |",
        "",
        "| step | pairs | questions | tokens read | tokens written | kept | hours of one |",
        "|---|---|---|---|---|---|---|",
    ]
    for step in plan(rates):
        counts = (step.pairs, step.questions, step.reads, step.writes)
        cells = [step.name, *map(_short, counts), f"{_short(step.kept)}B", f"{_short(step.hours)} {step.of}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _rates(report: dict[str, Any]) -> dict[str, Any]:
    """What was measured here, and what the other benchmarks have recorded."""
    found = report["results"]
    results = Path(__file__).parent.parent / "results"
    signals = json.loads((results / "signals_cpu.json").read_text())["results"]["reading"]["packed"]
    asked = json.loads((results / "labelling_cpu.json").read_text())["teacher and store"]["requests/s"]
    return {
        **found,
        "stages": found["questions"]["decomposed"],
        "single": found["questions"]["single"][0],
        "signal": signals["bytes_per_token"],
        "asked_per_s": statistics.median(asked),
    }


class Step(NamedTuple):
    """A step of the plan: what it reads, writes and keeps, and how many hours one GPU or process takes for it."""

    name: str
    pairs: float
    questions: float
    reads: float
    writes: float
    kept: float
    hours: float
    of: str = "GPU"


def plan(rates: dict[str, Any]) -> list[Step]:
    """From an LLM's labels of few pairs to an encoder's of all, and the LLM asked about all of them instead."""
    answer = rates["texts"]["supervised"]
    prompt, whole = rates["texts"]["decoder"] - answer, rates["texts"]["decoder"]
    pair = rates["texts"]["encoder"]
    stored = rates["store"]["bytes_per_answer"]

    def llm(name: str, pairs: float) -> Step:
        asked = {"job": pairs / PAIRS_PER_JOB, "candidate": pairs / PAIRS_PER_CANDIDATE, "pair": pairs}
        questions = sum(asked[row["per"]] for row in rates["stages"])
        reads, writes = (sum(asked[row["per"]] * row[what] for row in rates["stages"]) for what in ("reads", "writes"))
        hours = questions / rates["asked_per_s"] / 3600
        return Step(name, pairs, questions, reads, writes, questions * stored, hours, "process")

    def writes(name: str, pairs: float, parameters: float) -> Step:
        hours = pairs * 2 * parameters * (prompt / READING + answer / WRITING) / 3600
        return Step(name, pairs, pairs, pairs * prompt, pairs * answer, pairs * stored, hours)

    def reads(name: str, pairs: float, tokens: float, parameters: float, passes: float, kept: float) -> Step:
        # A forward takes 2 FLOP a weight and token, a forward with its backward 6.
        return Step(name, pairs, 0, pairs * tokens, 0, kept, passes * 2 * parameters * pairs * tokens / READING / 3600)

    return [
        llm("an LLM labels", BASE),
        writes("the in-house teacher (7B) labels", TEXTS, TEACHER),
        reads("`lantern cache` keeps its signals", TEXTS, whole, TEACHER, 1, TEXTS * answer * rates["signal"]),
        reads("the decoder (1.5B) learns, an epoch", TEXTS, whole, DECODER, 3, 2 * DECODER),
        writes("the decoder labels", LEVELS, DECODER),
        reads("the encoder (0.4B) learns, an epoch", LEVELS, pair, CLASSIFIER, 3, 2 * CLASSIFIER),
        reads("**the encoder answers about all**", MANY, pair, CLASSIFIER, 1, MANY * PREDICTION_BYTES),
        llm("instead: the LLM answers about all", MANY),
    ]


def _short(value: float) -> str:
    """Three digits and a unit, such as 1.24M."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}" if value else ""


if __name__ == "__main__":
    sys.exit(main())
