"""Clocks, memory, and what a record says of its machine."""

from __future__ import annotations

import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch

Label = TypeVar("Label")
Result = TypeVar("Result")


def within_memory(call: Callable[[], Result]) -> Result | None:
    """What the call returns; None if the device's memory doesn't suffice for it, which is a result too."""
    try:
        return call()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None


def in_turns(calls: Mapping[Label, Callable[[], Any]], rounds: int, device: torch.device) -> dict[Label, list[float]]:
    """Seconds of each call in each round, after a round to warm up; none of a call that ran out of memory."""
    seconds: dict[Label, list[float]] = {label: [] for label in calls}
    for round_ in range(rounds + 1):
        print(f"round {round_} of {rounds}", file=sys.stderr)
        for label in list(seconds):
            spent = within_memory(partial(_timed, calls[label], device))
            if spent is None:
                del seconds[label]
            elif round_:
                seconds[label].append(spent)
    return {label: seconds.get(label, []) for label in calls}


def _timed(call: Callable[[], Any], device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - start


def median(seconds: Sequence[float]) -> float | None:
    """None of what ran out of memory."""
    return statistics.median(seconds) if seconds else None


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """None where either ran out of memory."""
    return None if numerator is None or denominator is None else numerator / denominator


def wrong(section: Mapping[str, Any], most: float) -> list[str]:
    """Our own results whose gradient's error is more than it may be, or no number."""
    return [
        f"{row['case']}, {row['implementation']}: {row['gradient_error']:.1e} > {most:.0e}"
        for row in section["results"]
        if row["implementation"].startswith("lantern")
        and row["gradient_error"] is not None
        and not row["gradient_error"] <= most
    ]


LARGEST_ERROR = {"float32": 1e-4, "bfloat16": 2e-2}
"""Of a gradient, relative to its largest entry: in bf16 that of rounding it, and products of what was rounded."""


def synchronise(device: torch.device) -> None:
    """Wait for what the device still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def gpu_memory_growth(call: Callable[[], Any]) -> float:
    """MB by which a call raises the peak of the allocated memory over what is held before it."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def cpu_memory_growth(call: Callable[[], Any]) -> float | None:
    """MB by which a call raises the peak of this process's resident memory; None where that can't be measured."""
    if sys.platform != "linux":
        return None
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before = _status_mb("VmHWM")
    call()
    return _status_mb("VmHWM") - before


def _status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns in a process of its own, where nothing was allocated before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def cell(format_: str, value: Any) -> str:
    """A table's cell: empty for None."""
    return "" if value is None else format_.format(value)


def machine() -> dict[str, Any]:
    """Processor, threads and versions: nothing that tells one machine of a kind from another."""
    cpu = platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    versions = {"python": platform.python_version()}
    for package in ("torch", "triton", "trl", "liger-kernel"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    found: dict[str, Any] = {"cpu": cpu, "threads": torch.get_num_threads(), "versions": versions}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found
