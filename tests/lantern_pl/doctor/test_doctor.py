"""`lantern doctor` finds what is wrong with an installation, and nothing where all is well."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lantern_kernels import MixtureOutput
from support import Ran

from lantern_pl.doctor import installation, kernel_check, machine

Lantern = Callable[..., Ran]


def states(findings: Any) -> list[str]:
    return [finding.state for finding in findings]


def test_this_installation_has_no_problem(lantern: Lantern) -> None:
    ran = lantern("doctor", "--json")
    assert ran.code == 0, ran.out
    found = {each["check"]: each for each in json.loads(ran.out)}
    assert not [each for each in found.values() if each["state"] == "problem"]
    for check in ("Python", "versions", "bad releases", "start-up code", "C++ compiler", "losses on cpu", "disk", "plugins"):
        assert found[check]["state"] == "ok", found[check]
    assert "HF_HUB_OFFLINE" in found["model hub"]["found"]
    shown = lantern("doctor")
    assert shown.code == 0
    assert "✓" in shown.out
    assert "✗" not in shown.out


def test_a_trojaned_release_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lantern: Lantern) -> None:
    found = list(installation.releases([("Lightning", "2.6.3"), ("litellm", "1.82.7"), ("litellm", "1.83.0"), ("a", "1")]))
    assert [(each.check, each.state) for each in found] == [("Lightning", "problem"), ("litellm", "problem")]
    assert "replace every key" in found[0].advice
    # As it would lie in an environment.
    info = tmp_path / "litellm-1.82.8.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: litellm\nVersion: 1.82.8\n")
    monkeypatch.syspath_prepend(tmp_path)
    ran = lantern("doctor")
    assert ran.code == 1
    assert "1.82.8 is a release that steals secrets" in " ".join(ran.out.split())


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("evil.pth", "import base64; exec(base64.b64decode('cHJpbnQoKQ=='))\n", "problem"),
        ("__editable__.evil-1.0.pth", "import subprocess; subprocess.Popen(['x'])\n", "problem"),
        ("distutils-precedence.pth", "import os; os.system('x')\n", "problem"),
        ("odd.pth", "import\tthis\n", "problem"),
        ("helper.pth", "import evil_helper\n", "problem"),
        ("marked.pth", "\ufeffimport os; os.system('x')\n", "problem"),
        ("later.pth", "/some/where\r\nimport evil_helper\r\n", "problem"),
        ("paths.pth", "/some/where\n# import os\n", "ok"),
        ("__editable__.mine-1.0.pth", "import __editable___mine_1_0_finder; __editable___mine_1_0_finder.install()\n", "ok"),
    ],
)
def test_code_that_starts_by_itself_is_found(tmp_path: Path, name: str, content: str, expected: str) -> None:
    (tmp_path / name).write_text(content)
    found = list(installation.starting_code([tmp_path]))
    assert states(found) == [expected]
    if expected != "ok":
        assert found[0].found == str(tmp_path / name)


def test_versions_out_of_range_and_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = [
        "torch>=99",
        "nowhere-to-be-found>=1",
        "rich>=1",
        "fairlearn>=99; extra == 'audit'",
        "not-there-either; extra == 'audit'",
        "pytest==0.1; extra == 'bench'",
        "pywin32>=1; platform_system == 'Windows'",
    ]
    monkeypatch.setattr(installation.metadata, "requires", lambda _: needed)
    found = {each.check: each for each in installation.versions()}
    assert set(found) == {"torch", "nowhere-to-be-found", "fairlearn"}
    assert states(found.values()) == ["problem"] * 3
    assert f"{torch.__version__}, >=99 is needed" == found["torch"].found
    assert 'pip install "nowhere-to-be-found>=1"' in found["nowhere-to-be-found"].advice


def test_another_python_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    assert installation.python().state == "problem"


def test_a_missing_or_broken_compiler_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/bin/false")
    assert machine.compiler().state == "note"
    monkeypatch.setenv("CXX", "/nowhere/g++")
    assert machine.compiler().state == "note"
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "/nowhere")
    assert (machine.compiler().state, machine.compiler().found) == ("note", "none")


@pytest.mark.parametrize(("gigabytes", "state"), [(0.5, "problem"), (5, "note"), (500, "ok")])
def test_a_full_disk_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gigabytes: float, state: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=int(gigabytes * (1 << 30))))
    assert machine.disk(tmp_path).state == state


def test_a_hub_out_of_reach_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(machine, "_HUB", "http://127.0.0.1:9")  # nobody listens there
    found = machine.hub()
    assert found.state == "note"
    assert "HF_HUB_OFFLINE=1" in found.advice


@pytest.mark.parametrize("wrong", ["value", "gradient", "nan"])
def test_a_loss_that_is_wrong_is_a_problem(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    import lantern_kernels

    real = lantern_kernels.linear_mixture_loss

    def spoilt(student: Any, *rest: Any, **options: Any) -> MixtureOutput:
        output = real(student, *rest, **options)
        added = {"value": student.hidden.sum() * 0 + 1e-2, "gradient": student.hidden.sum() * 1e-4, "nan": float("nan")}
        loss = output.loss + added[wrong]
        return MixtureOutput(loss - loss.detach() + output.loss.detach() if wrong == "gradient" else loss, output.terms)

    monkeypatch.setattr(lantern_kernels, "linear_mixture_loss", spoilt)
    assert states(kernel_check.kernels())[0] == "problem"


def test_a_broken_plugin_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lantern: Lantern) -> None:
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lantern_pl.divergences]\nbroken = nowhere_at_all:Broken\n")
    monkeypatch.syspath_prepend(tmp_path)
    ran = lantern("doctor", "--json")
    assert ran.code == 1
    found = [each for each in json.loads(ran.out) if each["check"] == "plugin"]
    assert "lantern_pl.divergences.broken from broken 1.0 is broken" in found[0]["found"]
