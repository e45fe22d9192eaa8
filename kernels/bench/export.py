"""What an encoder gains by ONNX and by int8, and what it loses: torch, ONNX and int8 in turns, on pairs it never saw.

    python kernels/bench/export.py [--run runs/encoder] [--pairs 1000] [--json PATH]

The student of configs/encoder.yaml is exported by `lantern export`, and measured on pairs that the sample generator makes
from another seed: torch with the batch size with which it is fastest, ONNX Runtime pair by pair. Exits with 1 where int8
loses more than a point of macro-F1; how much faster it is, is a matter of the CPU.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lantern_kernels.bench.measure import machine

from lantern_pl.cli import main as lantern

FOLDER = Path("runs/bench")
EXPORTED = FOLDER / "encoder_exported"
MOST_LOST = 0.01
LEAST_LEARNED = 0.5
"""Macro-F1 in torch. A model that names one level whatever the pair has nothing to lose."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/encoder"), help="an encoder's run folder")
    parser.add_argument("--pairs", type=int, default=1000, help="to measure on")
    parser.add_argument("--json", type=Path, help="where to record the results")
    arguments = parser.parse_args()
    if not (arguments.run / "student").is_dir():
        raise SystemExit(f"There is no student in {arguments.run}: make runs/encoder/student, or give --run FOLDER.")
    export_student(arguments.run, arguments.pairs)
    summary = json.loads((EXPORTED / "export.json").read_text())
    report = {
        "what": "the student of configs/encoder.yaml, on sample pairs of another seed",
        "machine": machine(),
        "instructions": instructions(),
        **{name: summary[name] for name in ("measured_on", "speed", "quality", "largest_difference")},
    }
    print(table(report))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    f1 = {name: quality["macro_f1"] for name, quality in report["quality"].items()}
    lost = f1["torch"] - f1["int8"]
    if f1["torch"] < LEAST_LEARNED:
        print(f"The student's macro-F1 is {f1['torch']:.3f}: it has learned too little to lose any.", file=sys.stderr)
    if lost > MOST_LOST:
        print(f"int8 loses {lost:.3f} of macro-F1, more than {MOST_LOST}.", file=sys.stderr)
    return int(lost > MOST_LOST or f1["torch"] < LEAST_LEARNED)


def export_student(run: Path, pairs: int) -> None:
    """Export it, measured on so many new pairs. Raises RuntimeError where a step fails."""
    data = FOLDER / f"encoder_{pairs}_pairs"
    steps = [
        ["data", "sample", f"--pairs={pairs}", "--seed=1", f"--out={data}"],
        ["export", str(run), f"--out={EXPORTED}", f"--pairs={data}/pairs.jsonl", f"--max_pairs={pairs}"],
    ]
    for step in steps:
        if code := lantern(step):
            raise RuntimeError(f"lantern {' '.join(step)} ended with {code}")


def instructions() -> str:
    """Whether the CPU adds products of four int8 pairs in one instruction: those that don't gain less by int8."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "unknown"
    return "VNNI" if "vnni" in flags else "AVX2 without VNNI" if "avx2" in flags else "no AVX2"


def table(report: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    lines = ["| | pairs/s | of torch | macro-F1 | the same level as torch |", "|---|---|---|---|---|"]
    batch = report["measured_on"]["torch_batch"]
    names = {"torch": f"torch, {batch} at once", "onnx": "ONNX, fp32", "int8": "ONNX, int8"}
    for name, speed in report["speed"].items():
        quality = report["quality"][name]
        lines.append(
            f"| {names[name]} | {speed['pairs_per_second']:.0f} | {speed['of_torch']:.2f}x | {quality['macro_f1']:.3f} "
            f"| {quality['same_level']:.1%} |"
        )
    on = report["measured_on"]
    return (
        "\n".join(lines) + f"\n\n{on['pairs']} held-out pairs, {on['threads']} threads, a CPU with {report['instructions']}."
    )


if __name__ == "__main__":
    sys.exit(main())
