"""Plugins: found by metadata, loaded when used, and one that breaks harms nobody else."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from support import Ran

from lantern_pl import plugins
from lantern_pl.errors import UserError
from lantern_pl.plugins import discover, load

DIVERGENCES = "lantern_pl.divergences"


def entry(name: str, value: str, distribution: str = "acme-plugin", version: str = "1.2") -> EntryPoint:
    """An entry point as an installed distribution would have it."""
    found = EntryPoint(name, value, DIVERGENCES)
    vars(found)["dist"] = SimpleNamespace(name=distribution, version=version)
    return found


@pytest.fixture
def plugin_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An importable module of a plugin, `acme`, with one good class."""
    module = ModuleType("acme")
    from lantern_pl.divergences import Divergence

    module.Good = type("Good", (Divergence,), {"lantern_api": 1})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "acme", module)
    return module


def _divergence() -> type:
    from lantern_pl.divergences import Divergence

    return Divergence


OURS = [entry("kl", "lantern_pl.divergences.first_party:KL", "lantern-pl", "0.1.0")]


def test_finding_plugins_imports_none() -> None:
    found = discover(DIVERGENCES, [*OURS, entry("far", "no_such_module:Far")])
    assert sorted(found) == ["far", "kl"]


def test_a_plugin_is_loaded_by_its_name(plugin_module: ModuleType) -> None:
    assert load(DIVERGENCES, "good", [entry("good", "acme:Good")]) is plugin_module.Good


def test_an_unknown_name_gets_the_nearest_ones() -> None:
    known = [entry(name, f"acme:{name}") for name in ("jeffreys", "tvd", "alpha")]
    with pytest.raises(UserError, match=r"There is no divergence called 'jefreys'\. Did you mean 'jeffreys'\?"):
        load(DIVERGENCES, "jefreys", known)
    with pytest.raises(UserError, match=r"There is no teacher called 'zzz'\. Known: alpha, jeffreys, tvd\."):
        load("lantern_pl.teachers", "zzz", known)


def test_two_claims_on_a_name_are_an_error_when_it_is_used_and_only_then(plugin_module: ModuleType) -> None:
    found = [entry("good", "acme:Good"), entry("two", "acme:Good"), entry("two", "other:Two", "other-plugin", "3.0")]
    assert load(DIVERGENCES, "good", found) is plugin_module.Good
    with pytest.raises(UserError) as error:
        load(DIVERGENCES, "two", found)
    for part in ("'two'", "acme-plugin 1.2 (acme:Good)", "other-plugin 3.0 (other:Two)", "uninstall one"):
        assert part in str(error.value)


def test_a_distribution_that_is_listed_twice_claims_a_name_once(plugin_module: ModuleType) -> None:
    """So it is where a distribution is installed both editable and from a wheel, its name spelled in two ways."""
    found = [entry("good", "acme:Good", "acme-plugin"), entry("good", "acme:Good", "acme_plugin")]
    assert load(DIVERGENCES, "good", found) is plugin_module.Good


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_first_party_name_cannot_be_shadowed(ours_first: bool) -> None:
    from lantern_pl.divergences.first_party import KL

    theirs = entry("kl", "acme:Good")
    assert load(DIVERGENCES, "kl", [*OURS, theirs] if ours_first else [theirs, *OURS]) is KL


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("raise RuntimeError('needs a newer acme')", "RuntimeError: needs a newer acme"),
        ("import no_such_dependency", "No module named 'no_such_dependency'"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
    ],
)
def test_a_plugin_that_breaks_at_import_is_fatal_only_when_selected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugin_module: ModuleType, code: str, cause: str
) -> None:
    (tmp_path / "broken_plugin.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_plugin", raising=False)
    found = [entry("broken", "broken_plugin:Broken", "broken-plugin", "0.3"), entry("good", "acme:Good")]
    assert load(DIVERGENCES, "good", found) is plugin_module.Good
    with pytest.raises(UserError) as error:
        load(DIVERGENCES, "broken", found)
    for part in ("'broken'", "broken-plugin 0.3", "broken_plugin:Broken", cause, "Update or uninstall"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (
            type("New", (_divergence(),), {"lantern_api": 2}),
            "lantern_api = 2, this lantern-pl needs a class with lantern_api = 1",
        ),
        (type("None", (_divergence(),), {}), "lantern_api = None"),
        (type("Other", (), {"lantern_api": 1}), "isn't a lantern_pl.divergences.Divergence"),
        (lambda: None, "is a function, a class is needed"),
        (SimpleNamespace(lantern_api=1), "is a SimpleNamespace, a class is needed"),
    ],
)
def test_what_is_no_plugin_of_this_version_is_refused(plugin_module: ModuleType, plugin: Any, message: str) -> None:
    plugin_module.Odd = plugin  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=re.escape("from acme-plugin 1.2 (acme:Odd)")) as error:
        load(DIVERGENCES, "odd", [entry("odd", "acme:Odd")])
    assert message in str(error.value)


def test_an_entry_point_without_such_a_class_is_broken(plugin_module: ModuleType) -> None:
    with pytest.raises(UserError, match=r"can't be imported: AttributeError: .*Missing"):
        load(DIVERGENCES, "missing", [entry("missing", "acme:Missing")])


# Aliases


def test_aliases_resolve_in_both_orders_of_import() -> None:
    """Importing a submodule sets an attribute of the package, which hides an alias of the same name."""
    code = """
import importlib, pkgutil, sys
from importlib.metadata import entry_points

PACKAGES = "lantern_pl.divergences", "lantern_pl.teachers"

def by_alias():
    for name in PACKAGES:
        package = importlib.import_module(name)
        aliases = [entry.name for entry in entry_points(group=name)]
        assert len(aliases) >= 3
        for alias in aliases:
            assert isinstance(getattr(package, alias), type), alias

def by_file():
    for name in PACKAGES:
        for module in pkgutil.iter_modules(importlib.import_module(name).__path__):
            importlib.import_module(f"{name}.{module.name}")

by_alias(); by_file(); by_alias()
for name in [name for name in sys.modules if name.startswith("lantern_")]:
    del sys.modules[name]
by_file(); by_alias()
from lantern_pl.divergences import tvd
from lantern_pl.divergences.first_party import TVD
assert tvd is TVD
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("group", ["lantern_pl.divergences", "lantern_pl.teachers"])
def test_no_file_of_the_package_bears_the_name_of_an_alias(group: str) -> None:
    package = __import__(group, fromlist=["__path__"])
    files = {path.stem for path in Path(package.__path__[0]).iterdir()}
    assert not files & set(discover(group))
    assert set(discover(group)) <= set(dir(package))
    assert "contract" in dir(package)


# A distribution of a third party, really installed


@pytest.fixture(scope="session")
def third_party(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to put on PYTHONPATH: pip has installed a distribution with a divergence and a broken one into it."""
    source = tmp_path_factory.mktemp("acme")
    (source / "pyproject.toml").write_text("""\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "acme-divergences"
version = "4.2"

[project.entry-points."lantern_pl.divergences"]
hellinger = "acme_divergences:Hellinger"
broken = "acme_broken:Broken"
""")
    package = source / "acme_divergences"
    package.mkdir()
    (package / "__init__.py").write_text("from acme_divergences.hellinger import Hellinger\n")
    (package / "hellinger.py").write_text('''\
from lantern_pl.divergences import PointwiseDivergence


class Hellinger(PointwiseDivergence):
    """Squared Hellinger distance.

    Args:
        factor: what it is multiplied by.
    """

    lantern_api = 1
    name = "hellinger"

    def __init__(self, factor: float = 1.0):
        if factor <= 0:
            raise ValueError(f"factor is {factor}, expected a number above 0")
        self.factor = factor

    def value_and_slope(self, log_p, log_q, p, q):
        root_p, root_q = (log_p / 2).exp(), (log_q / 2).exp()
        return 0.5 * self.factor * (root_q - root_p) ** 2, 0.5 * self.factor * (root_q - root_p) * root_q
''')
    (source / "acme_broken.py").write_text("raise RuntimeError('acme is broken')\n")
    (source / "pyproject.toml").open("a").write(
        '[tool.setuptools]\npackages = ["acme_divergences"]\npy-modules = ["acme_broken"]\n'
    )
    target = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", target, source],
        check=True,
        capture_output=True,
    )
    return target


@pytest.fixture
def with_third_party(third_party: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The distribution is installed, as far as this process can tell."""
    monkeypatch.syspath_prepend(third_party)
    plugins._installed.cache_clear()
    yield
    plugins._installed.cache_clear()


def mixture(divergence: str, factor: float = 1.0) -> str:
    return f"--model.mixture=[{{divergence: {{class_path: {divergence}, init_args: {{factor: {factor}}}}}, weight: 0.7}}]"


def test_a_third_party_divergence_trains_a_student_by_its_alias(third_party: Path, tiny_decoder_config: Path) -> None:
    alias = "lantern_pl.divergences.hellinger"
    ran = subprocess.run(
        [sys.executable, "-m", "lantern_pl", "fit", "--config", tiny_decoder_config, mixture(alias, 2.0)],
        env={**os.environ, "PYTHONPATH": str(third_party)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    run = tiny_decoder_config.parent / "run"
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert resolved["model"]["init_args"]["mixture"] == [
        {"divergence": {"class_path": alias, "init_args": {"factor": 2.0}}, "weight": 0.7, "label": None}
    ]
    manifest = json.loads((run / "student" / "manifest.json").read_text())
    assert 0 < manifest["metrics"]["trained"]["hellinger"] < 2
    assert manifest["student"]["loss"]["mixture"] == {"hellinger": 0.7}
    assert manifest["plugins"]["lantern_pl.divergences"]["hellinger"] == [
        "acme-divergences 4.2 (acme_divergences:Hellinger)"
    ]


@pytest.mark.usefixtures("with_third_party")
@pytest.mark.parametrize(
    ("divergence", "factor", "parts"),
    [
        ("lantern_pl.divergences.helinger", 1.0, ["model.mixture.divergence", "'helinger'", "'hellinger'"]),
        (
            "lantern_pl.divergences.broken",
            1.0,
            ["'broken'", "acme-divergences 4.2", "acme_broken:Broken", "acme is broken", "uninstall"],
        ),
        ("lantern_pl.divergences.hellinger", -1.0, ["factor is -1.0, expected a number above 0"]),
        # Not by the class's own path: only an alias admits a plugin.
        ("acme_divergences.Hellinger", 1.0, ["'acme_divergences.Hellinger' may not be imported", "LANTERN_ALLOW_IMPORTS"]),
    ],
)
def test_a_third_party_divergence_that_cannot_be_used_is_one_message(
    lantern: Callable[..., Ran], tiny_decoder_config: Path, divergence: str, factor: float, parts: list[str]
) -> None:
    ran = lantern("fit", "--config", tiny_decoder_config, mixture(divergence, factor))
    assert ran.code == 2
    assert "Traceback" not in ran.err
    for part in parts:
        assert part in ran.err


@pytest.mark.usefixtures("with_third_party")
def test_from_import_says_why_a_plugin_is_broken() -> None:
    with pytest.raises(ImportError, match="can't be imported: RuntimeError: acme is broken"):
        from lantern_pl.divergences import broken  # noqa: F401
    from lantern_pl.divergences import hellinger

    assert hellinger.name == "hellinger"


def test_packages_of_a_users_own_are_let_in_by_name(
    lantern: Callable[..., Ran], tiny_decoder_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_own.py").write_text(
        "from lantern_pl.divergences import Divergence\n"
        "class Mine(Divergence):\n"
        "    name = 'mine'\n"
        "    def __init__(self, factor: float): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ("fit", "--config", tiny_decoder_config, mixture("my_own.Mine"), "--print_config")
    assert "'my_own.Mine' may not be imported" in lantern(*arguments).err
    assert "my_own" not in sys.modules
    monkeypatch.setenv("LANTERN_ALLOW_IMPORTS", "other_package,my_own")
    ran = lantern(*arguments)
    assert ran.code == 0, ran.err
    assert "class_path: my_own.Mine" in ran.out


@pytest.mark.parametrize("value", ["*", "../elsewhere", "jsonargparse"])
def test_what_may_be_imported_is_given_as_package_names(
    lantern: Callable[..., Ran], tiny_decoder_config: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("LANTERN_ALLOW_IMPORTS", value)
    ran = lantern("fit", "--config", tiny_decoder_config)
    assert ran.code == 2
    assert ran.err.startswith(f"lantern: LANTERN_ALLOW_IMPORTS={value}")
