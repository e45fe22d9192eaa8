"""The benchmark runs, agrees with itself, and says nothing of the machine that it shouldn't."""

import json
import os
import platform
import subprocess
import sys

import pytest
import torch
from lantern_kernels.bench import linear, logits, measure
from lantern_kernels.bench.__main__ import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(linear.QUICK, "cpu", linear.Setting(rows=8, vocabulary=60, hidden=6, chunk=4))
        monkeypatch.setitem(logits.QUICK, "cpu", logits.Setting(rows=8, vocabulary=60, dtype="float32"))
        monkeypatch.setattr(linear, "IMPLEMENTATIONS", {k: v for k, v in linear.IMPLEMENTATIONS.items() if "trl" not in k})
        path = tmp_path_factory.mktemp("bench") / "new" / "report.json"
        assert main(["--quick", "--rounds", "2", "--json", str(path)]) == 0
    return json.loads(path.read_text())


def test_every_case_is_measured_against_the_products_alone(report):
    assert {row["case"] for row in report["linear"]["results"]} == set(linear.QUICK_CASES)
    for row in report["linear"]["results"]:
        assert row["seconds"] > 0
        assert (row["of_gemms"] == 1) == (row["implementation"] == "gemms")


def test_the_compared_losses_are_the_same_loss(report):
    errors = {(row["case"], row["implementation"]): row["gradient_error"] for row in report["linear"]["results"]}
    assert all(errors[case, name] < 1e-4 for case in linear.QUICK_CASES for name in ("lantern", "naive"))


def test_logits_are_measured_against_a_copy(report):
    results = report["logits"]["results"]
    assert {row["case"] for row in results} == set(logits.QUICK_CASES)
    assert all(row["gradient_error"] < 1e-4 for row in results if row["implementation"] != "copy")
    assert all(row["share_of_copy_rate"] > 0 for row in results if row["implementation"] == "lantern")


@pytest.mark.alone
def test_a_quick_run_is_quick_with_nothing_compiled_before(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-m", "lantern_kernels.bench", "--quick"],
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]


def test_what_runs_out_of_memory_is_a_row():
    def too_large():
        raise torch.OutOfMemoryError("CUDA out of memory")

    seconds = measure.in_turns({"fits": lambda: None, "too large": too_large}, 2, torch.device("cpu"))
    assert [len(seconds[label]) for label in ("fits", "too large")] == [2, 0]
    row = dict.fromkeys(("seconds", "of_gemms", "of_lantern", "gflop_per_s", "memory_mb", "gradient_error"))
    assert "| out of memory |" in linear.table({"results": [{"case": "kl", "implementation": "naive", **row}]})


@pytest.mark.parametrize("error", [0.5, float("nan")])
def test_a_wrong_gradient_fails_the_run(monkeypatch, error):
    section = {
        "setting": {"dtype": "float32"},
        "results": [{"case": "kl", "implementation": "lantern", "gradient_error": error}],
    }
    monkeypatch.setattr(linear, "measure", lambda device, rounds, quick: section)
    monkeypatch.setattr(linear, "table", lambda section: "")
    assert main(["--only", "linear"]) == 1


def test_the_tables_hold_every_result(report):
    for section in (linear, logits):
        results = report[section.__name__.rpartition(".")[2]]
        assert len(section.table(results).splitlines()) == 2 + len(results["results"])


def test_the_record_names_no_host_and_no_path(report):
    text = json.dumps(report)
    assert f'"{platform.node()}"' not in text
    assert "/home" not in text
    assert "/root" not in text


def test_memory_growth_is_measured_in_megabytes(monkeypatch):
    if sys.platform != "linux":
        pytest.skip("the peak of resident memory can be reset on Linux only")
    # Large enough that the allocator takes the gradient from the system, whatever this process freed before.
    setting = linear.Setting(rows=8, vocabulary=150_000, hidden=64, chunk=8)
    growth = linear.memory_growth(setting, torch.device("cpu"), "kl", "lantern")
    gradient_mb = 150_000 * 64 * 4 / 1e6
    assert 0.8 * gradient_mb < growth < 3 * gradient_mb
