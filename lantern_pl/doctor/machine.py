"""The machine: compiler, accelerator, disk, hub."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lantern_pl.doctor.finding import Finding

GIGABYTE = 1 << 30
_LITTLE_DISK, _NO_DISK = 10 * GIGABYTE, GIGABYTE
_HUB = "https://huggingface.co"


def compiler() -> Finding:
    """Whether a C++ compiler works, which torch's Inductor needs for the fast CPU path of the losses."""
    name = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    advice = "Losses on a CPU take up to a fifth longer without one; results are the same. Debian: apt install g++"
    if name is None:
        return Finding("C++ compiler", "note", "none", advice)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "try.cpp"
        source.write_text("#include <cmath>\nint main() { return std::isnan(1.0f); }\n")
        try:
            command = [name, str(source), "-o", str(source.with_suffix("")), "-fopenmp"]
            ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            return Finding("C++ compiler", "note", f"{name} can't be run: {error}", advice)
    if ran.returncode:
        reason = (ran.stderr.strip() or f"it ended with {ran.returncode}").splitlines()[-1]
        return Finding("C++ compiler", "note", f"{name} doesn't compile: {reason}", advice)
    return Finding("C++ compiler", "ok", name)


def accelerators() -> Iterator[Finding]:
    """A finding for each GPU, or that there is none."""
    import torch

    if not torch.cuda.is_available():
        found = f"none: torch {torch.__version__} computes on {torch.get_num_threads()} threads of the CPU"
        wants_one = torch.version.cuda is not None or torch.version.hip is not None
        if wants_one and Path("/proc/driver/nvidia").exists():
            yield Finding("GPU", "problem", "a driver, but torch sees no GPU", "Compare nvidia-smi's CUDA with torch's.")
        else:
            yield Finding("GPU", "ok", found)
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        found = f"{properties.name}, {free / GIGABYTE:.0f} of {total / GIGABYTE:.0f} GiB free, torch {torch.__version__}"
        if free < total / 10:
            yield Finding(f"GPU {index}", "note", found, "Nearly full: another process uses it (nvidia-smi says which).")
        else:
            yield Finding(f"GPU {index}", "ok", found)


def disk(folder: Path) -> Finding:
    """Whether there is room for runs and checkpoints where the command is called."""
    free = shutil.disk_usage(folder).free
    found = f"{free / GIGABYTE:.1f} GiB free in {folder}"
    if free < _NO_DISK:
        return Finding("disk", "problem", found, "Make room: a checkpoint that can't be written ends a run.")
    if free < _LITTLE_DISK:
        return Finding("disk", "note", found, "Little for checkpoints, which hold a student and twice as much for AdamW.")
    return Finding("disk", "ok", found)


def hub() -> Finding:
    """Whether models can be fetched from the hub. Not a problem where they can't: embedded ones and folders work."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return Finding("model hub", "ok", "off by HF_HUB_OFFLINE: models come from folders and wheels")
    import httpx

    try:
        answer = httpx.head(_HUB, timeout=5.0, follow_redirects=True)
    except httpx.HTTPError as error:
        found, advice = (
            f"{_HUB} can't be reached ({type(error).__name__})",
            "Offline, set HF_HUB_OFFLINE=1: errors come sooner.",
        )
        return Finding("model hub", "note", found, advice)
    if answer.status_code >= 500:
        return Finding("model hub", "note", f"{_HUB} answers {answer.status_code}", "Try later, or use models from folders.")
    return Finding("model hub", "ok", _HUB)
