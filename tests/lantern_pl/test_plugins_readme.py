"""plugins/README.md as a newcomer follows it: every command, in an environment where nothing of the plugins is yet."""

import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml
from support import REPOSITORY

README = (REPOSITORY / "plugins" / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a fresh virtual environment, beside which lantern-pl and its dependencies are installed."""
    folder = tmp_path_factory.mktemp("newcomer")
    venv.create(folder / "env", with_pip=False)
    libraries = next((folder / "env" / "lib").glob("python*/site-packages"))
    # Ours are seen, and not copied: installing torch anew takes minutes.
    (libraries / "beside.pth").write_text(f"import site; site.addsitedir({sysconfig.get_paths()['purelib']!r})\n")
    for command, module in (("pip", "pip"), ("lantern", "lantern_pl"), ("pytest", "pytest")):
        script = folder / "env" / "bin" / command
        script.write_text(f'#!/bin/sh\nexec "{folder}/env/bin/python" -m {module} "$@"\n')
        script.chmod(0o755)
    return folder


def run(command: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "PATH": f"{folder / 'env' / 'bin'}:{os.environ['PATH']}",
        "VIRTUAL_ENV": str(folder / "env"),
        # setuptools is there; in isolation pip would fetch it from the network.
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    return subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_every_command_does_what_it_says(newcomer: Path) -> None:
    commands = [command for block in BLOCKS for command in block.splitlines()]
    assert len(commands) >= 12
    for command in commands:
        done = run(command, newcomer)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        if command == "lantern plugins list --check":
            assert re.search(r"lantern_pl\.divergences\.le_cam +lantern-divergence-le-cam 0\.1\.0 +ok", done.stdout)
            assert re.search(r"lantern_pl\.teachers\.overlap +lantern-teacher-overlap 0\.1\.0 +ok", done.stdout)
    for run_dir, metric in (("le_cam", "le_cam"), ("overlap", "kl")):
        manifest = yaml.safe_load((newcomer / "runs" / run_dir / "student" / "manifest.json").read_text())
        metrics = manifest["metrics"]
        assert 0 < metrics["trained"][metric] < metrics["untrained"][metric], "the student has learnt from the plugin"
    assert list((newcomer / "dist").glob("lantern_divergence_le_cam-0.1.0-*.whl"))


@pytest.mark.slow
def test_a_wheel_installs_into_another_environment(newcomer: Path) -> None:
    """Runs after the commands above, on the wheel that they leave."""
    (wheel,) = (newcomer / "dist").glob("*.whl")
    site = newcomer / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel]
    subprocess.run(pip, check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-m", "lantern_pl", "plugins", "show", "le_cam"],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert "from lantern-divergence-le-cam 0.1.0" in done.stdout, done.stderr


def test_the_distributions_that_are_named_are_here() -> None:
    named = re.findall(r"\]\((lantern-[\w-]+)\)", README)
    assert sorted(named) == sorted(path.name for path in (REPOSITORY / "plugins").iterdir() if path.is_dir())
    for name in named:
        folder = REPOSITORY / "plugins" / name
        for part in ("pyproject.toml", "README.md", "configs", "tests"):
            assert (folder / part).exists(), f"{name} lacks {part}"


@pytest.mark.parametrize("field", ["kind", "name", "alias", "distribution", "version", "value", "state", "problem"])
def test_every_field_of_the_json_is_described(field: str) -> None:
    from lantern_pl.plugin_command import Listed

    assert f"`{field}`" in README
    assert field in Listed.__dataclass_fields__
