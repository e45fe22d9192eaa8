"""Compile the Triton functions for GPUs that aren't here, and print the name of each that does.

    python extra_ahead_of_time.py sm_90 gfx942

A script of its own, since a process either interprets Triton or compiles it. Triton bundles NVIDIA's assembler, so any
x86-64 Linux machine can do this.
"""

import sys

import triton
import triton.language as tl
from lantern_divergences_extra.divergences import Alpha, Jeffreys, SkewKL, SkewReverseKL, SquaredHellinger
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CONSTANTS = ("ENTRY", "PARAMETERS", "BLOCK")


@triton.jit
def entries_of_a_block(LOG_P, LOG_Q, VALUE, SLOPE, ENTRY: tl.constexpr, PARAMETERS: tl.constexpr, BLOCK: tl.constexpr):
    """As lantern_kernels calls an entry: on a block of float32, with a tuple of compile-time parameters."""
    at = tl.arange(0, BLOCK)
    log_p = tl.load(LOG_P + at)
    log_q = tl.load(LOG_Q + at)
    value, slope = ENTRY(log_p, log_q, tl.exp(log_p), tl.exp(log_q), PARAMETERS)
    tl.store(VALUE + at, value)
    tl.store(SLOPE + at, slope)


def main() -> None:
    for target in sys.argv[1:]:
        gpu = GPUTarget("cuda", int(target[3:]), 32) if target.startswith("sm_") else GPUTarget("hip", target, 64)
        for divergence in (SkewKL(), SkewReverseKL(), Jeffreys(), Alpha(), SquaredHellinger()):
            entry, parameters = divergence.triton_entry()
            values = {"ENTRY": entry, "PARAMETERS": tuple(map(tl.constexpr, parameters)), "BLOCK": 1024}
            names = entries_of_a_block.arg_names
            source = ASTSource(
                fn=entries_of_a_block,
                signature={name: "constexpr" if name in CONSTANTS else "*fp32" for name in names},
                constexprs={(names.index(name),): values[name] for name in CONSTANTS},
            )
            triton.compile(source, target=gpu)
            print(target, divergence.name)


if __name__ == "__main__":
    main()
