"""What an encoder gains by ONNX and by int8, and what it loses: torch, ONNX and int8 in turns, on held-out pairs.

    python kernels/bench/export.py [--pairs 1600] [--json PATH]

A student from MiniLM (configs/encoder.yaml, on fewer pairs) is trained on most of the sample generator's pairs, exported by
`lantern export`, and measured on the rest: torch with the batch size with which it is fastest, ONNX Runtime pair by pair.
Exits with 1 where int8 loses more than a point of macro-F1; how much faster it is, is a matter of the CPU.
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
_HELD_OUT = 0.25


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1600, help="for training, and a quarter of them to measure on")
    parser.add_argument("--json", type=Path, help="where to record the results")
    arguments = parser.parse_args()
    export_student(arguments.pairs)
    summary = json.loads((EXPORTED / "export.json").read_text())
    report = {
        "what": f"encoder student from MiniLM, trained on {arguments.pairs} sample pairs less those it's measured on",
        "machine": machine(),
        "instructions": instructions(),
        **{name: summary[name] for name in ("measured_on", "speed", "quality", "largest_difference")},
    }
    print(table(report))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    lost = report["quality"]["torch"]["macro_f1"] - report["quality"]["int8"]["macro_f1"]
    if lost > MOST_LOST:
        print(f"int8 loses {lost:.3f} of macro-F1, more than {MOST_LOST}.", file=sys.stderr)
    return int(lost > MOST_LOST)


def export_student(pairs: int) -> None:
    """Train and export it. Raises RuntimeError where a step fails."""
    data, run = FOLDER / "encoder_data", FOLDER / "encoder"
    fit = ["fit", "--config=configs/encoder.yaml", f"--run_dir={run}", f"--data.path={data}/pairs.jsonl"]
    fit += [f"--data.test_fraction={_HELD_OUT}", "--data.val_fraction=0.02", "--trainer.accelerator=cpu"]
    steps = [
        ["data", "sample", f"--pairs={pairs}", "--seed=0", f"--out={data}"],
        [*fit, "--model.optimization.learning_rate=2e-4"],
        ["export", str(run), f"--out={EXPORTED}"],
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
