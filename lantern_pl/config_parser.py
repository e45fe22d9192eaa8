"""What all commands that read configs share: a parser that teaches, and rules on what a config may import."""

import argparse
import dataclasses
import os
import sys
import typing
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace, set_loader, set_parsing_settings

from lantern_pl import plugins
from lantern_pl.config_errors import ConfigError, name_options
from lantern_pl.config_file import read_yaml
from lantern_pl.errors import UserError
from lantern_pl.option_spelling import as_declared
from lantern_pl.secret_values import refuse_secrets

# What a config may name: nothing else is imported because a config says so. Plugins are let in one by one as they load.
ALLOWED_IMPORTS = ["lantern_pl", "lightning", "torch.optim"]
# Of these, what does things by being imported or by being made.
_DENIED_IMPORTS = ["lantern_pl.__main__", "lantern_pl.cli", "lightning.pytorch.callbacks.lambda_function"]
ALLOW_VARIABLE = "LANTERN_ALLOW_IMPORTS"
HOW_TO_ALLOW = (
    f"A config may name classes of {', '.join(ALLOWED_IMPORTS)} and, by their aliases, plugins. To allow a package of your "
    f"own: {ALLOW_VARIABLE}=my_package lantern ..."
)


_parses = ContextVar("_parses", default=False)
"""Whether what is read now was given by someone, in a config or on the command line."""


class ConfigParser(ArgumentParser):
    """Errors are raised, and name the options that may be meant; help goes on to what an option's value consists of."""

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Namespace:  # type: ignore[override]
        """As ever, without secrets and without functions: what a config names is made, never called."""
        words = as_declared(sys.argv[1:] if args is None else args, self._option_string_actions)
        for key, value in _options(words):
            refuse_secrets({key: value}, "The command line")
        given = _parses.set(True)
        try:
            config = super().parse_args(words, *rest, **options)
        finally:
            _parses.reset(given)
        for key, function in _functions(config):
            self.error(f'Parser key "{key}": {function} is a function, and a config may name classes alone')
        return config

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        parts = [super().format_help(formatter)]
        for action in self._actions:
            if action.dest.endswith(".help"):
                continue
            for part in _dataclasses(getattr(action, "_typehint", None), "lantern_pl"):
                parser = ConfigParser(description="", usage=argparse.SUPPRESS, add_help=False)
                parser.add_class_arguments(part, action.dest)
                parser._remove_action(next(a for a in parser._actions if a.dest == action.dest))
                parts.append(parser.format_help())
        if any(action.dest in ("model", "teacher") for action in self._actions):
            parts.append(_plugins_by_kind())
        return "\n".join(parts)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        parsers = [self, *(parser for action in self._actions for parser in _subparsers(action))]
        raise ConfigError(name_options(message, [action.dest for parser in parsers for action in parser._actions])) from ex


def _plugins_by_kind() -> str:
    """The aliases of all installed plugins, for help; none is imported."""
    lines = ["Installed plugins, for class_path (`lantern plugins show NAME` says what one takes):"]
    for kind, group in plugins.KINDS.items():
        lines.append(f"  {kind}s: {', '.join(f'{group}.{name}' for name in plugins.usable(group))}")
    return "\n".join(lines) + "\n"


def _dataclasses(typehint: Any, package: str) -> list[type]:
    """Dataclasses of a package that a value of this type consists of."""
    if isinstance(typehint, type) and dataclasses.is_dataclass(typehint):
        return [typehint] if typehint.__module__.partition(".")[0] == package else []
    return [found for part in typing.get_args(typehint) for found in _dataclasses(part, package)]


def _subparsers(action: Any) -> list[Any]:
    choices = action.choices if isinstance(getattr(action, "choices", None), dict) else {}
    return [parser for parser in choices.values() if hasattr(parser, "_actions")]


def restrict_imports() -> None:
    """Let configs name classes of ALLOWED_IMPORTS, of LANTERN_ALLOW_IMPORTS, and plugins. Raises UserError for a variable
    that isn't a list of packages."""
    extra = [package for package in os.environ.get(ALLOW_VARIABLE, "").split(",") if package]
    try:
        set_parsing_settings(
            docstring_parse_attribute_docstrings=True,
            import_path_denylist=["*", *_DENIED_IMPORTS],
            import_path_allowlist=[*ALLOWED_IMPORTS, *extra],
        )
    except ValueError as error:
        raise UserError(f"{ALLOW_VARIABLE}={os.environ[ALLOW_VARIABLE]}: {error}") from error
    set_loader("yaml", _load_checked_yaml, (yaml.YAMLError,))
    if _let_in not in plugins.on_load:
        plugins.on_load.append(_let_in)


def _load_checked_yaml(text: str) -> Any:
    """What a config file, or a value of the command line, says. Raises YAMLError, and UserError for a secret."""
    value = read_yaml(text)
    # Later, jsonargparse reads again what it has dumped, with the classes' own defaults. A single text may be one, too.
    if _parses.get() and isinstance(value, dict | list):
        refuse_secrets(value)
    if isinstance(value, dict) and value and all(part is None for part in value.values()):
        # As in jsonargparse: a text such as {name} or "name:" is one.
        names = text.strip(" {}").replace(" ", "").split(",")
        if text.strip() == f"{next(iter(value))}:" or set(names) == set(value):
            return text
    return value


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The options of a command line and their values."""
    for word, following in zip(words, [*words, ""][1:], strict=True):
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            yield key, value if equals else "" if following.startswith("--") else following


def _functions(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """The functions among the values of a parsed config that it may have named, with their keys. A function of a package
    that the user has allowed is the user's own choice."""
    if isinstance(value, Namespace | dict):
        for name, part in vars(value).items() if isinstance(value, Namespace) else value.items():
            yield from _functions(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _functions(part, key)
    elif callable(value) and not isinstance(value, type):
        module = getattr(value, "__module__", None) or type(value).__module__
        if any(f"{module}.".startswith(f"{allowed}.") for allowed in ALLOWED_IMPORTS):
            yield key, f"{module}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _let_in(plugin: Any) -> None:
    """Allow a plugin's class, and dataclasses of its own that its arguments consist of."""
    try:
        hints = typing.get_type_hints(plugin.__init__).values()
    except Exception:  # annotations hold what they like; a plugin without dataclasses needs none of them
        hints = {}.values()
    parts = [part for hint in hints for part in _dataclasses(hint, plugin.__module__.partition(".")[0])]
    set_parsing_settings(import_path_allowlist=[f"{cls.__module__}.{cls.__qualname__}" for cls in (plugin, *parts)])
