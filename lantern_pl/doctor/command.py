"""`lantern doctor`: one screen that says whether everything is as it should be."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import entry_points
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lantern_pl import plugins
from lantern_pl.doctor import installation, machine
from lantern_pl.doctor.finding import Finding, State
from lantern_pl.errors import CommandParser

_MARKS = {"ok": ("✓", "green"), "note": ("!", "yellow"), "problem": ("✗", "red")}


def doctor_command(argv: list[str]) -> int:
    """Run `lantern doctor ...`. Returns 1 where there is a problem, else 0."""
    parser = CommandParser(
        prog="lantern doctor",
        description="Look at this machine and at what is installed: Python and package versions, releases known to be bad, "
        "code that starts by itself, compiler, GPU, the losses against their formulas, disk, hub, plugins, embedded models. "
        "Exit code 1 on a problem.",
    )
    parser.add_argument("--json", action="store_true", help="the findings as JSON, for a machine")
    arguments = parser.parse_args(argv)
    found = list(findings())
    problems = sum(finding.state == "problem" for finding in found)
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        console = Console()
        console.print(_table(found))
        notes = sum(finding.state == "note" for finding in found)
        counts = (f"{count} {what}{'s'[: count != 1]}" for count, what in ((problems, "problem"), (notes, "note")) if count)
        console.print(f"{' and '.join(counts)}." if problems or notes else "All is well.", highlight=False)
    return int(problems > 0)


def findings() -> Iterator[Finding]:
    """Of all checks, in the order in which a person would ask."""
    yield installation.python()
    yield from installation.versions()
    yield from installation.releases()
    yield from installation.starting_code()
    yield machine.compiler()
    yield from machine.accelerators()
    from lantern_pl.doctor.kernel_check import kernels

    yield from kernels()
    yield machine.disk(Path.cwd())
    yield machine.hub()
    yield from _plugins()
    yield from _models()


def _plugins() -> Iterator[Finding]:
    from lantern_pl.plugin_command import listed

    rows = [row for kind, group in plugins.KINDS.items() for row in listed(kind, entry_points(group=group), check=True)]
    for row in rows:
        if row.problem:
            state: State = "problem" if row.state in ("broken", "ambiguous") else "note"
            yield Finding("plugin", state, f"{row.alias} from {row.distribution} {row.version} is {row.state}", row.problem)
    whole = [row for row in rows if not row.problem]
    others = sorted({row.distribution for row in whole} - {plugins.FIRST_PARTY})
    yield Finding("plugins", "ok", f"{len(whole)} load" + (f", from lantern-pl and {', '.join(others)}" if others else ""))


def _models() -> Iterator[Finding]:
    from importlib.util import find_spec

    from lantern_pl.embedded import MODELS, PREFIX

    there = [name for name, model in MODELS.items() if find_spec(model.package) is not None]
    missing = sorted(MODELS.keys() - set(there))
    if missing:
        names = " and ".join(f"{PREFIX}{name}" for name in missing)
        yield Finding("embedded models", "note", f"{names}: not installed", "The shipped configs use them: make models")
    else:
        yield Finding("embedded models", "ok", ", ".join(f"{PREFIX}{name}" for name in there))


def _table(found: list[Finding]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, show_header=False)
    for finding in found:
        mark, colour = _MARKS[finding.state]
        said = Text(finding.found)
        if finding.advice:
            said.append(f"\n{finding.advice}", style="bold")
        table.add_row(Text(mark, style=colour), finding.check, said)
    return table
