"""Compile the kernels for GPUs that aren't here, and print as JSON what each would use there.

    python ahead_of_time.py sm_90 gfx942

A script of its own, since a process either interprets Triton or compiles it. Triton bundles NVIDIA's assembler and its
object dumper, so any x86-64 Linux machine can do this.
"""

import importlib.util
import json
import linecache
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import triton
import triton.language as tl
from lantern_kernels import JS, KL, TVD, ReverseKL
from lantern_kernels.gpu.entries import plain, sources
from lantern_kernels.gpu.launch import BLOCK, KINDS, NUM_WARPS
from lantern_kernels.gpu.rows import row_gradient, row_sums
from lantern_kernels.gpu.top_k import tail_gradient, tail_sums
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

POINTERS = {
    "S": "*bf16", "T": "*bf16", "OUT": "*bf16", "TARGETS": "*i64", "WEIGHTS": "*fp32", "UPSTREAM": "*fp32",
    "FACTORS": "*fp32", "VALUES": "*fp32", "SUMS": "*fp32", "MEMBERS": "*u8", "SCALARS": "*fp32",
}  # fmt: skip
INTEGERS = ("s_stride", "t_stride", "out_stride", "members_stride", "s_columns", "t_columns", "columns", "rows")
ALL = (KL(), ReverseKL(), JS(), TVD())


class Case(NamedTuple):
    """A mixture, and what the kernels for it are told at compile time. One that isn't `everywhere` is for two targets."""

    divergences: Sequence[Any]
    with_targets: bool = False
    accurate: bool = False
    capped: bool = False
    dtypes: tuple[str, str] = ("bf16", "bf16")
    everywhere: bool = True


TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
OF_EACH_VENDOR = ("sm_90", "gfx942")
MIXTURES = {
    "kl": Case([KL()]),
    "kl + reverse_kl + ce": Case([KL(), ReverseKL()], with_targets=True),
    "js": Case([JS()]),
    "js 0.1": Case([JS(0.1)], everywhere=False),
    "tvd": Case([TVD()], everywhere=False),
    "all + ce": Case(ALL, with_targets=True),
    "ce": Case([], with_targets=True, everywhere=False),
    "all + ce, accurate": Case(ALL, with_targets=True, accurate=True, everywhere=False),
    "all + ce, capped, fp16 and fp32": Case(ALL, True, capped=True, dtypes=("fp16", "fp32"), everywhere=False),
}


def cases(among=TARGETS):
    """Targets with the mixtures that are compiled for them."""
    return [(to, name) for to in among for name, case in MIXTURES.items() if case.everywhere or to in OF_EACH_VENDOR]


def constants(case, assembly):
    entries = [divergence.triton_entry() for divergence in case.divergences]
    functions = tuple(entry if case.accurate else plain(entry, assembly) for entry, _ in entries)
    return {
        "ENTRIES": functions,
        "SOURCES": sources(functions),
        "PARAMETERS": tuple(tuple(map(tl.constexpr, parameters)) for _, parameters in entries),
        "WITH_TARGETS": case.with_targets,
        "S_SCALED": case.capped,
        "T_SCALED": case.capped,
        "S_CAPPED": case.capped,
        "T_CAPPED": case.capped,
        "ASSEMBLY": assembly,
        "BLOCK": BLOCK,
    }


def source_of(kernel, consts, dtypes=("bf16", "bf16")):
    """What is compiled; pointers and integers are multiples of 16, as those of real vocabularies are."""
    pointers = {**POINTERS, "S": f"*{dtypes[0]}", "OUT": f"*{dtypes[0]}", "T": f"*{dtypes[1]}"}
    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in consts:
            signature[name] = "constexpr"
        elif name in pointers or name in INTEGERS:
            signature[name] = pointers.get(name, "i32")
            attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32"
    constexprs = {(kernel.arg_names.index(name),): value for name, value in consts.items()}
    return ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attributes)


def build(kernel, consts, target, dtypes=("bf16", "bf16")):
    """A compiled kernel."""
    gpu = GPUTarget("cuda", int(target[3:]), 32) if target.startswith("sm_") else GPUTarget("hip", target, 64)
    return triton.compile(source_of(kernel, consts, dtypes), target=gpu, options={"num_warps": NUM_WARPS})


def keys_of_an_edited_entry(folder):
    """What Triton's cache on disk knows the gradient's kernel by, before and after an edit of a third party's entry."""
    keys = []
    for factor in (1.0, 2.0):
        path = Path(folder) / "edited.py"
        path.write_text(
            f"import triton\n\n\n@triton.jit\ndef entry(log_p, log_q, p, q, parameters):\n    return p, {factor} * q\n"
        )
        spec = importlib.util.spec_from_file_location("edited", path)
        module = importlib.util.module_from_spec(spec)
        linecache.clearcache()
        spec.loader.exec_module(module)

        class Edited:
            def triton_entry(self, entry=module.entry):
                return entry, ()

        keys.append(source_of(row_gradient, constants(Case([Edited()]), True)).hash())
    return keys


def usage(binary, target):
    """Registers, stack and spills, and the instructions that touch global memory."""
    if not target.startswith("sm_"):
        assembly = binary.asm["amdgcn"]
        counts = {"spills": int(re.search(r"\.vgpr_spill_count:\s*(\d+)", assembly)[1])}
        counts["stack"] = int(re.search(r"\.private_segment_fixed_size:\s*(\d+)", assembly)[1])
        memory = re.findall(r"\b((?:global|buffer)_(?:load|store)_\w+)", assembly)
        wide = "dwordx4"
    else:
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(binary.asm["cubin"])
            file.flush()
            resources = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
            assembly = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout
        found = dict(re.findall(r"\b(REG|STACK):(\d+)", resources.stdout + resources.stderr))
        counts = {"registers": int(found["REG"]), "stack": int(found["STACK"])}
        # A maximum that drops NaN would hide a student that has diverged.
        counts["nan_dropping"] = len(re.findall(r"\b(?:max|min)\.f32", binary.asm["ptx"]))
        counts["spills"] = len(re.findall(r"\b(?:STL|LDL)\b", assembly))
        memory = re.findall(r"\b((?:LDG|STG)\.[.\w]*)", assembly)
        wide = ".128"
        counts |= {"instructions": count(assembly), "loops": loops(assembly)}
    loads = [name for name in memory if "load" in name or name.startswith("LDG")]
    stores = [name for name in memory if name not in loads]
    counts |= {"wide_loads": sum(wide in name for name in loads), "loads": len(loads)}
    counts |= {"wide_stores": sum(wide in name for name in stores), "stores": len(stores)}
    return counts


def instructions(assembly):
    """Address and text of each of SASS' instructions, without what pads the end."""
    found = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(\S[^;]*);", assembly)]
    return [(at, text) for at, text in found if text != "NOP"]


def count(assembly):
    return len(instructions(assembly))


def loops(assembly):
    """Instructions in each loop's body, in the order of the code: from the target of a backward branch to the branch."""
    code = instructions(assembly)
    backward = [(int(to, 16), at) for at, text in code for to in re.findall(r"\bBRA(?:\.\w+)* .*?0x([0-9a-f]+)", text)]
    return [sum(start <= at <= end for at, _ in code) for start, end in sorted(backward) if start < end]


def main():
    os.environ.pop("TRITON_INTERPRET", None)
    report = {}
    for target in sys.argv[1:]:
        assembly = target.startswith("sm_")
        for name in [name for to, name in cases() if to == target]:
            case = MIXTURES[name]
            consts = constants(case, assembly)
            kinds = [KINDS.get(divergence.triton_entry.__func__, 0) for divergence in case.divergences]
            sweeps = {
                "KINDS": tuple(map(tl.constexpr, kinds)),
                "ONE_SWEEP": not case.accurate and all(kinds),
                "TEMPERED": case.with_targets,
            }
            report[f"{target}: sums of {name}"] = usage(build(row_sums, {**consts, **sweeps}, target, case.dtypes), target)
            report[f"{target}: gradient of {name}"] = usage(build(row_gradient, consts, target, case.dtypes), target)
        consts = {"WITH_TARGETS": True, "S_SCALED": False, "S_CAPPED": False, "ASSEMBLY": assembly, "BLOCK": BLOCK}
        report[f"{target}: sums of top-k + ce"] = usage(build(tail_sums, consts, target), target)
        report[f"{target}: gradient of top-k + ce"] = usage(build(tail_gradient, consts, target), target)
    with tempfile.TemporaryDirectory() as folder:
        report["keys of an edited entry"] = keys_of_an_edited_entry(folder)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
