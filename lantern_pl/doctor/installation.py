"""What is installed: the right versions, none that is known to be bad, no code that starts by itself."""

import platform
import re
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from lantern_pl.doctor.finding import Finding

OLDEST, NEWEST = (3, 11), (3, 13)
KNOWN_BAD = {
    "lightning": {"2.6.2", "2.6.3"},
    "litellm": {"1.82.7", "1.82.8"},
}
"""Releases on PyPI that held code of thieves, which sent away keys and passwords."""

_STARTS_CODE = re.compile(r"import[ \t]")
"""As Python's `site` module tells a line of a .pth file that is run from one that is a path."""
_KNOWN_CODE = re.compile(
    r"import (__editable__\w+); \1\.install\(\)"
    r"|import os; var = 'SETUPTOOLS_USE_DISTUTILS'; enabled = os\.environ\.get\(var, '(local|stdlib)'\) == 'local'; "
    r"enabled and __import__\('_distutils_hack'\)\.(add_shim|do_override)\(\);?"
    r"|import _virtualenv"
)
"""What pip's editable installs, setuptools and virtualenv leave. By the code, for a name may be borrowed."""


def python() -> Finding:
    """Whether this Python is one that lantern-pl is tested on."""
    found = f"{platform.python_version()} at {sys.executable}"
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        return Finding("Python", "problem", found, "Python 3.11 to 3.13 is needed: make a new environment with it.")
    return Finding("Python", "ok", found)


def versions(distribution: str = "lantern-pl") -> Iterator[Finding]:
    """A finding for each requirement that isn't met, or one that all are. Of extras, what is installed must fit too."""
    try:
        needed = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        yield Finding("versions", "problem", f"{distribution} isn't installed", "pip install -c constraints.txt -e .")
        return
    count, wrong = 0, []
    for requirement in map(Requirement, needed):
        of_extra = requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})
        if of_extra and not _is_of_installed_extra(requirement):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            if not of_extra:
                wrong.append(Finding(requirement.name, "problem", "not installed", f'pip install "{_plain(requirement)}"'))
            continue
        count += 1
        if version not in requirement.specifier and canonicalize_name(requirement.name) != "lantern-pl":
            advice = f'pip install "{_plain(requirement)}", or make install anew from constraints.txt'
            wrong.append(Finding(requirement.name, "problem", f"{version}, {requirement.specifier} is needed", advice))
    yield from wrong or [Finding("versions", "ok", f"{count} packages are in the ranges that {distribution} needs")]


def _is_of_installed_extra(requirement: Requirement) -> bool:
    """Whether an extra's requirement holds on this machine at all, whichever extra it is of."""
    marker = str(requirement.marker)
    extras = re.findall(r'extra == "([^"]+)"', marker)
    # Benchmarks pin their peers exactly; another version of these harms nobody else.
    return any(extra != "bench" and requirement.marker.evaluate({"extra": extra}) for extra in extras)  # type: ignore[union-attr]


def _plain(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"


def releases(installed: Iterable[tuple[str, str]] | None = None) -> Iterator[Finding]:
    """A finding for each installed release that is known to be bad, or one that there is none.

    Args:
        installed: name and version of each distribution; by default those of this environment.
    """
    if installed is None:
        installed = ((each.metadata["Name"], each.version) for each in metadata.distributions())
    bad = [
        (name, version)
        for name, version in installed
        if any(Version(version) == Version(known) for known in KNOWN_BAD.get(canonicalize_name(name or ""), ()))
    ]
    for name, version in bad:
        yield Finding(
            name,
            "problem",
            f"{version} is a release that steals secrets",
            f"Uninstall it, and replace every key and password that this machine could read: pip uninstall {name}",
        )
    if not bad:
        known = ", ".join(f"{name} {' and '.join(sorted(bad))}" for name, bad in KNOWN_BAD.items())
        yield Finding("bad releases", "ok", f"none of {known}")


def starting_code(folders: Iterable[Path] | None = None) -> Iterator[Finding]:
    """A finding for each .pth file whose code Python runs at every start, or one that there are only known ones.

    Args:
        folders: where to look; by default where this Python looks.
    """
    folders = [Path(entry) for entry in sys.path if entry.endswith("packages")] if folders is None else folders
    known, found = [], []
    for path in sorted({path for folder in folders for path in folder.glob("*.pth")}):
        code = [line for line in path.read_text("utf-8-sig", errors="replace").splitlines() if _STARTS_CODE.match(line)]
        if not code:
            continue
        if all(_KNOWN_CODE.fullmatch(line.strip()) for line in code):
            known.append(path.name)
        else:
            advice = "It runs code whenever Python starts: look at it, and at the package that it came with."
            found.append(Finding("start-up code", "problem", str(path), advice))
    said = f"{len(known)} .pth files of pip and setuptools" if known else "no .pth file with code"
    yield from found or [Finding("start-up code", "ok", said)]
