"""`lantern serve` under load: how much of the bare model's throughput is left, latencies, and memory over many requests.

    python kernels/bench/service.py [--encoder FOLDER] [--requests 3000] [--int8_requests 20000] [--json PATH]

64 clients ask for one pair each, and again once they have their answer. The bare model is the same one, in torch by
batches of 32 and in int8 pair by pair, on the same texts, in the same order and sorted by length, tokenizing included.
Clients, service and model share the machine. By default the encoder is what kernels/bench/export.py has exported.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import export
from lantern_kernels.bench.measure import machine

from lantern_pl.serving.load import measure, sample_texts

CLIENTS = 64


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, default=export.EXPORTED, help="an exported encoder")
    parser.add_argument("--requests", type=int, default=3_000, help="to the service that runs torch")
    parser.add_argument("--int8_requests", type=int, default=20_000, help="to the one that runs int8")
    parser.add_argument("--bare_seconds", type=float, default=10.0, help="of each of the bare model's three measurements")
    parser.add_argument("--json", type=Path, help="where to record the results")
    arguments = parser.parse_args()
    if not arguments.encoder.is_dir():
        raise SystemExit(f"{arguments.encoder} isn't there: run kernels/bench/export.py first, or give --encoder FOLDER.")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    texts = sample_texts()
    report = {
        "what": f"{CLIENTS} clients, a pair in each request",
        "machine": machine(),
        "results": [
            measure(
                str(arguments.encoder), "torch", texts, CLIENTS, arguments.requests, bare_seconds=arguments.bare_seconds
            ),
            measure(
                str(arguments.encoder), "int8", texts, CLIENTS, arguments.int8_requests, bare_seconds=arguments.bare_seconds
            ),
        ],
    }
    print(table(report))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return int(any(set(row["service"]["statuses"]) != {"200"} for row in report["results"]))


def table(report: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| | requests | pairs/s | of the bare model | of it, sorted | p50, ms | p99, ms | first quarter, MB | last, MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["results"]:
        service, memory = row["service"], row["memory"]
        lines.append(
            f"| {row['form']} | {row['requests']} | {service['pairs_a_second']:.0f} | {row['share_of_bare']:.0%} "
            f"| {row['share_of_bare_sorted']:.0%} | {service['p50_ms']:.0f} | {service['p99_ms']:.0f} "
            f"| {memory['first_quarter_mb']:.0f} | {memory['last_quarter_mb']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
