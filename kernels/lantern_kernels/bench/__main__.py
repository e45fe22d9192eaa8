"""What the losses cost on this machine, against the floor and against peers.

    python -m lantern_kernels.bench [--quick] [--rounds 7] [--only linear|logits] [--json PATH]

Two tables, each from one run that makes a forward and a backward of every implementation in turn, round after round, so
that whatever else a machine does harms all of them alike. Reported are medians, the largest error of a gradient against
float64 on a few rows, and the growth of the peak memory. The exit code is 1 if one of our own errors is too large.

linear: from hidden states and output embeddings.
  gemms        the four matrix products and nothing else, in chunks: the floor
  lantern      linear_mixture_loss as a long run has it; "lantern eager" is without a C++ compiler
  naive        full logits, log-softmaxes and kl_div, differentiated by autograd
  trl gkd      GKDTrainer.generalized_jsd_loss on full logits, where TRL is installed
  trl chunked  TRL's ChunkedDivergenceFunction

logits: from logits that are there.
  copy         a copy of as many bytes: the rate of the memory
  lantern      mixture_loss; its bytes are 10 or 14 per pair of bf16 logits on a GPU
  naive        as above; "naive compiled" is the same under torch.compile
  liger        its kernels for KL, JS and TVD, where it's installed, on a GPU
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from lantern_kernels.bench import linear, logits
from lantern_kernels.bench.measure import LARGEST_ERROR, machine, wrong


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lantern_kernels.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few small problems: to see that it runs")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, after one to warm up")
    parser.add_argument("--only", choices=["linear", "logits"], help="one of the two tables")
    parser.add_argument("--json", type=Path, help="where to record the results")
    arguments = parser.parse_args(argv)
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report: dict[str, object] = {"machine": machine(), "rounds": arguments.rounds}
    faults: list[str] = []
    for section in (linear, logits):
        name = section.__name__.rpartition(".")[2]
        if arguments.only in (None, name):
            report[name] = result = section.measure(device, arguments.rounds, quick=arguments.quick)
            print(f"\n{name}\n\n{section.table(result)}")
            faults += wrong(result, LARGEST_ERROR[result["setting"]["dtype"]])
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    for fault in faults:
        print(f"the gradient is wrong: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
