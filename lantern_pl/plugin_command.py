"""`lantern plugins`: what is installed, what one plugin takes and can do, and a distribution to start one's own from."""

import inspect
import json
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from lantern_pl import plugins
from lantern_pl.errors import CommandParser, UserError, did_you_mean


@dataclass(frozen=True)
class Listed:
    """One claim on a plugin's name, as `lantern plugins list --json` prints it; fields are only ever added."""

    kind: str
    """teacher or divergence."""
    name: str
    alias: str
    """What a config writes as class_path."""
    distribution: str
    version: str
    value: str
    """The entry point's, module:class."""
    state: str
    """installed: its alias leads to it; ok or broken instead where it was imported (--check); shadowed: the name is
    lantern-pl's own; ambiguous: another distribution claims the name too; off: LANTERN_PLUGINS keeps it out."""
    problem: str | None = None
    """What is wrong and what to do, where something is."""


def plugins_command(argv: list[str]) -> int:
    """Run `lantern plugins ...`; `argv` is what follows `plugins`. Raises UserError, and SystemExit after help."""
    parser = CommandParser(prog="lantern plugins", description="Teachers and divergences, our own and third parties'.")
    commands = parser.add_subparsers(required=True, metavar="list|show|new", dest="command")
    listing = commands.add_parser(
        "list",
        help="what is installed",
        description="Every installed plugin, read from metadata: none is imported without --check. "
        f"{plugins.RESTRICTION}=none, or =NAME,NAME, restricts what may load.",
    )
    listing.add_argument("--json", action="store_true", help="for programs; the fields are described in plugins/README.md")
    listing.add_argument("--check", action="store_true", help="import each, and exit with 1 if one is broken")
    show = commands.add_parser("show", help="what a plugin is, takes and can do", description="Imports that one plugin.")
    show.add_argument("name", metavar="NAME", help="as in `lantern plugins list`")
    new = commands.add_parser(
        "new",
        help="write a distribution with a plugin, its tests and a config",
        description="Writes a complete distribution that installs and passes its tests as it is: change it into yours.",
        epilog="example: lantern plugins new divergence le_cam --out ..",
    )
    new.add_argument("kind", choices=sorted(plugins.KINDS), help="what to write")
    new.add_argument("name", metavar="NAME", help="the plugin's name in configs, such as le_cam")
    new.add_argument("--out", type=Path, default=Path("."), metavar="DIR", help="where to put its folder; default: here")
    arguments = parser.parse_args(argv)
    if arguments.command == "list":
        return _list(arguments.check, arguments.json)
    if arguments.command == "show":
        return _show(arguments.name)
    from lantern_pl.plugin_templates import write_distribution

    folder = write_distribution(arguments.kind, arguments.name, arguments.out)
    print(
        f"Written to {folder}. Next: pip install -e '{folder}[dev]', then pytest {folder}; its README says how it goes on."
    )
    return 0


def listed(kind: str, found: Iterable[EntryPoint], check: bool = False) -> list[Listed]:
    """All claims on names of one kind of plugin, by name; with `check`, those that can load are imported."""
    found = list(found)
    group = plugins.KINDS[kind]
    named = plugins.by_name(found)
    rows = []
    for entry in sorted(found, key=lambda entry: (entry.name, plugins.distribution(entry))):
        claims = named[entry.name]
        allowed = [claim for claim in claims if plugins.is_allowed(claim)]
        state, problem = "installed", None
        own = plugins.distribution(entry)
        if own not in map(plugins.distribution, claims):
            state, problem = "shadowed", "the name is one of lantern-pl's own: rename the entry point"
        elif entry.name in plugins.reserved(group):
            state, problem = "shadowed", "the name is that of a module of lantern-pl: rename the entry point"
        elif not plugins.is_allowed(entry):
            state, problem = "off", f"{plugins.RESTRICTION} doesn't name it"
        elif len(allowed) > 1:
            others = ", ".join(plugins.describe(claim) for claim in allowed if plugins.distribution(claim) != own)
            state, problem = "ambiguous", f"also claimed by {others}: uninstall one of them"
        elif check:
            try:
                plugins.load(group, entry.name, found)
                state = "ok"
            except UserError as error:
                state, problem = "broken", str(error)
        version = entry.dist.version if entry.dist else "?"
        row = Listed(
            kind, entry.name, f"{group}.{entry.name}", plugins.distribution(entry), version, entry.value, state, problem
        )
        if row not in rows:  # a distribution that is installed twice
            rows.append(row)
    return rows


def _list(check: bool, as_json: bool) -> int:
    rows = [row for kind, group in plugins.KINDS.items() for row in listed(kind, entry_points(group=group), check)]
    if as_json:
        print(json.dumps({"lantern_api": plugins.API_VERSION, "plugins": [asdict(row) for row in rows]}, indent=2))
    else:
        print(
            _table(
                [
                    ("kind", "alias", "from", "state"),
                    *((r.kind, r.alias, f"{r.distribution} {r.version}", r.state) for r in rows),
                ]
            )
        )
        for row in rows:
            if row.problem:
                print(f"\n{row.alias} ({row.distribution} {row.version}): {row.problem}")
    return int(check and any(row.state == "broken" for row in rows))


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _show(name: str) -> int:
    given, name = name.rpartition(".")[::2]
    kinds = {
        kind: group for kind, group in plugins.KINDS.items() if given in ("", group) and name in plugins.discover(group)
    }
    if not kinds:
        known = {known for group in plugins.KINDS.values() for known in plugins.discover(group)}
        raise UserError(f"There is no plugin called {name!r}. {did_you_mean(name, known)}")
    print("\n\n".join(_described(kind, group, name) for kind, group in kinds.items()))
    return 0


def _described(kind: str, group: str, name: str) -> str:
    plugin = plugins.load(group, name)
    from docstring_parser import parse

    entry = plugins.entry_of(plugin)
    where = plugins.describe(entry) if entry else plugin.__module__
    documented = parse(inspect.getdoc(plugin) or "")
    helps = {parameter.arg_name: " ".join((parameter.description or "").split()) for parameter in documented.params}
    text = "\n\n".join(part for part in (documented.short_description, documented.long_description) if part)
    lines = [f"{group}.{name}, a {kind} from {where}", "", text, ""]
    parameters = _parameters(plugin)
    lines.append("arguments:" if parameters else "arguments: none")
    for parameter in parameters:
        default = "required" if parameter.default is parameter.empty else f"default: {parameter.default!r}"
        annotation = "any" if parameter.annotation is parameter.empty else inspect.formatannotation(parameter.annotation)
        lines.append(f"  {parameter.name} ({annotation}; {default})")
        if helps.get(parameter.name):
            lines.append(textwrap.indent(textwrap.fill(helps[parameter.name], 100), "      "))
    return "\n".join([*lines, "", *(f"{what}: {value}" for what, value in _abilities(kind, plugin).items())])


def _parameters(plugin: type) -> list[inspect.Parameter]:
    parameters = inspect.signature(plugin).parameters.values()
    return [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _abilities(kind: str, plugin: Any) -> dict[str, str]:
    """What the plugin declares: with its default arguments where it has them, since a bound may depend on them."""
    if kind == "teacher":
        return {"capabilities": ", ".join(sorted(plugin.capabilities)) or "said by each instance"}
    from lantern_kernels.divergences import has_triton_entry

    from lantern_pl.divergences.contract import PointwiseDivergence

    try:
        divergence = plugin()
        bound = "none" if divergence.upper_bound is None else f"{divergence.upper_bound:g}"
    except Exception:  # it has arguments that must be given, or doesn't work
        divergence, bound = plugin.__new__(plugin), "depends on its arguments"
    pointwise = isinstance(divergence, PointwiseDivergence)
    fused = pointwise and has_triton_entry(divergence)
    return {
        "form": "pointwise" if pointwise else "general",
        "on a GPU": "fused with other terms into one launch" if fused else "computed by torch, in chunks",
        "upper bound": bound,
        "tokenizers": "teacher's and student's must be the same" if divergence.same_tokenizer else "may differ",
    }
