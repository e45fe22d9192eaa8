"""Discovery of teacher and divergence plugins through entry points.

A plugin is a class that a distribution registers in the entry-point group `lantern_pl.teachers` or
`lantern_pl.divergences`. Configs name it by its alias, `lantern_pl.divergences.js`; the alias is what dumped configs and
checkpoints keep, so a class can move without breaking them. Finding plugins reads metadata only; a plugin's code is
imported when its alias is used, and a broken one harms nobody who doesn't use it.

LANTERN_PLUGINS restricts whose plugins may load: `auto` (all), `none` (lantern-pl's own alone), or names of plugins or
distributions, as in `LANTERN_PLUGINS=acme-divergences,hellinger`. lantern-pl's own always may.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lantern_pl.errors import UserError, did_you_mean

API_VERSION = 1
FIRST_PARTY = "lantern-pl"
KINDS = {"divergence": "lantern_pl.divergences", "teacher": "lantern_pl.teachers"}
"""The entry-point group of each kind of plugin."""
RESTRICTION = "LANTERN_PLUGINS"

on_load: list[Callable[[type], None]] = []
"""Called with each plugin as an alias leads to it: what a config may import then includes that class."""

BASES = {"lantern_pl.divergences": "Divergence", "lantern_pl.teachers": "Teacher"}
"""What a plugin of each group derives from."""

_loaded: dict[str, tuple[type, EntryPoint]] = {}
"""By alias."""


class UnknownPlugin(UserError, AttributeError):
    """There is no plugin of a name. An AttributeError, since aliases are looked up as attributes."""


class UnusablePlugin(UserError, ImportError):
    """There is one, but it can't be used. An ImportError, so that `from lantern_pl.divergences import NAME` says why."""


def discover(group: str, found: Iterable[EntryPoint] | None = None) -> Mapping[str, list[EntryPoint]]:
    """Entry points of a group by name, without importing any. A first-party name has its first-party entry alone."""
    return _installed(group) if found is None else by_name(found)


def is_allowed(entry: EntryPoint, restriction: str | None = None) -> bool:
    """Whether LANTERN_PLUGINS (or the value given in its place) lets a plugin load."""
    if restriction is None:
        restriction = os.environ.get(RESTRICTION, "auto")
    names = {_normal(name) for name in restriction.split(",")}
    own = distribution(entry)
    return own == FIRST_PARTY or "auto" in names or bool(names & {_normal(entry.name), own})


def load(group: str, name: str, found: Iterable[EntryPoint] | None = None) -> type:
    """Import the one plugin called `name`.

    Raises UnknownPlugin if there is none, with the nearest names; UnusablePlugin if several distributions claim the name,
    if LANTERN_PLUGINS keeps it out, if its import fails, if it isn't a class, or if it was written for another version of
    the contract.
    """
    plugins = discover(group, found)
    kind = group.rpartition(".")[2].removesuffix("s")
    claims = plugins.get(name, [])
    if not claims:
        raise UnknownPlugin(f"There is no {kind} called {name!r}. {did_you_mean(name, plugins)}")
    entries = [entry for entry in claims if is_allowed(entry)]
    claimants = " and ".join(describe(entry) for entry in entries or claims)
    if not entries:
        raise UnusablePlugin(
            f"{RESTRICTION}={os.environ.get(RESTRICTION)} keeps out the {kind} {name!r} from {claimants}: add its "
            f"distribution there, as in {RESTRICTION}={distribution(claims[0])}, or set it to auto."
        )
    if len(entries) > 1:
        raise UnusablePlugin(
            f"The {kind} {name!r} is claimed by {claimants}: uninstall one of them, or name the other's distribution in "
            f"{RESTRICTION}."
        )
    plugin = _import(group, kind, entries[0])
    _loaded[f"{group}.{name}"] = plugin, entries[0]
    for told in on_load:
        told(plugin)
    return plugin


def _import(group: str, kind: str, entry: EntryPoint) -> type:
    try:
        plugin = entry.load()
    except (Exception, SystemExit) as error:
        raise UnusablePlugin(
            f"The {kind} {entry.name!r} from {describe(entry)} can't be imported: {type(error).__name__}: {error}. "
            "Update or uninstall that distribution."
        ) from error
    if not isinstance(plugin, type):
        raise UnusablePlugin(
            f"The {kind} {entry.name!r} from {describe(entry)} is a {type(plugin).__name__}, a class is needed: its entry "
            "point must name the class itself. Update or uninstall that distribution."
        )
    base = getattr(import_module(group), BASES[group])
    if not issubclass(plugin, base):
        raise UnusablePlugin(
            f"The {kind} {entry.name!r} from {describe(entry)} isn't a {group}.{base.__name__}: it must derive from that "
            "class. Update or uninstall that distribution."
        )
    version = getattr(plugin, "lantern_api", None)
    if version != API_VERSION:
        raise UnusablePlugin(
            f"The {kind} {entry.name!r} from {describe(entry)} has lantern_api = {version!r}, this lantern-pl needs a class "
            f"with lantern_api = {API_VERSION}: install versions that go together."
        )
    return plugin


def origin(plugin: object) -> str:
    """Where an object's class came from, for messages: its plugin's distribution, version and entry point if it has one."""
    entry = entry_of(type(plugin))
    return f"{entry.name!r} from {describe(entry)}" if entry else type(plugin).__name__


def entry_of(plugin: type) -> EntryPoint | None:
    """The entry point that led to a class, or to the nearest of its bases that one has led to."""
    for cls in plugin.__mro__:
        for loaded_class, entry in _loaded.values():
            if loaded_class is cls:
                return entry
    return None


def loaded() -> dict[str, str]:
    """The aliases that this process has used, and where each leads: what a checkpoint notes."""
    return {alias: describe(entry) for alias, (_, entry) in _loaded.items()}


def usable(group: str) -> list[str]:
    """Names of a group that a config may use, in order: LANTERN_PLUGINS lets them in, and one distribution has them."""
    reserved_ = reserved(group)
    claims = {name: [e for e in entries if is_allowed(e)] for name, entries in discover(group).items()}
    return sorted(name for name, entries in claims.items() if len(entries) == 1 and name not in reserved_)


def reserved(group: str) -> set[str]:
    """Names of the package's own modules, which can't be aliases: importing one sets the attribute of that name."""
    spec = find_spec(group)
    folders = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    return {path.stem for folder in folders for path in Path(folder).iterdir() if path.suffix == ".py"}


def lost(before: Mapping[str, str]) -> dict[str, str]:
    """Of the plugins that `loaded` told at an earlier time, those that aren't there any more."""
    groups = {alias: alias.rpartition(".")[::2] for alias in before}
    return {alias: before[alias] for alias, (group, name) in groups.items() if name not in discover(group)}


def describe(entry: EntryPoint) -> str:
    """Distribution, version and entry-point value, for messages and manifests."""
    version = entry.dist.version if entry.dist else "?"
    return f"{distribution(entry)} {version} ({entry.value})"


def alias_lookup(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` (PEP 562) of a package whose attributes are the plugins of the group of its name."""

    def lookup(name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return load(package, name)

    return lookup, lambda: sorted({*discover(package), *vars(sys.modules[package])})


@cache
def _installed(group: str) -> Mapping[str, list[EntryPoint]]:
    # This reads the metadata of every installed distribution, and parsing one config asks some hundred times.
    return by_name(entry_points(group=group))


def by_name(found: Iterable[EntryPoint]) -> dict[str, list[EntryPoint]]:
    """Entry points by name, each claimant once; a first-party one alone."""
    named: dict[str, list[EntryPoint]] = {}
    for entry in found:
        named.setdefault(entry.name, []).append(entry)
    for name, entries in named.items():
        own = [entry for entry in entries if distribution(entry) == FIRST_PARTY]
        # The same distribution can be listed twice when it is installed both editable and from a wheel.
        unique = {(distribution(entry), entry.value): entry for entry in own[:1] or entries}
        named[name] = list(unique.values())
    return named


def distribution(entry: EntryPoint) -> str:
    """The distribution's name in its normal form."""
    return _normal(entry.dist.name) if entry.dist else "an unknown distribution"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
