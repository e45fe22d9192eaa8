"""The benchmark runs, agrees with itself, and says nothing of the machine that it shouldn't."""

import json
import platform

import pytest
from lantern_kernels import bench


@pytest.fixture
def report(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "QUICK", bench.Setting(rows=8, vocabulary=60, hidden=6, chunk=4))
    monkeypatch.setattr(bench, "IMPLEMENTATIONS", {k: v for k, v in bench.IMPLEMENTATIONS.items() if "trl" not in k})
    path = tmp_path / "new" / "report.json"
    assert bench.main(["--quick", "--rounds", "2", "--json", str(path)]) == 0
    assert "| js | lantern |" in capsys.readouterr().out
    return json.loads(path.read_text())


def test_every_case_is_measured_against_the_products_alone(report):
    assert {row["case"] for row in report["results"]} == set(bench.CASES)
    for row in report["results"]:
        assert row["seconds"] > 0
        assert (row["of_gemms"] == 1) == (row["implementation"] == "gemms")


def test_the_compared_losses_are_the_same_loss(report):
    errors = {(row["case"], row["implementation"]): row["gradient_error"] for row in report["results"]}
    assert all(errors[case, name] < 1e-4 for case in bench.CASES for name in ("lantern", "naive"))


def test_the_record_names_no_host_and_no_path(report):
    text = json.dumps(report)
    assert f'"{platform.node()}"' not in text
    assert "/home" not in text
    assert "/root" not in text


def test_memory_growth_is_measured_in_megabytes(monkeypatch):
    if bench.sys.platform != "linux":
        pytest.skip("the peak of resident memory can be reset on Linux only")
    # Large enough that the allocator takes the gradient from the system, whatever this process freed before.
    setting = bench.Setting(rows=8, vocabulary=150_000, hidden=64, chunk=8)
    growth = bench.memory_growth(setting, "kl", "lantern")
    gradient_mb = 150_000 * 64 * 4 / 1e6
    assert 0.8 * gradient_mb < growth < 3 * gradient_mb
