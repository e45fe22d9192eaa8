"""Reads YAML that may come from strangers, with errors that name the place."""

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from lantern_pl.errors import UserError

MOST_BYTES = 1 << 20
MOST_DEPTH = 50
_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _PlainLoader(_BASE):
    """Texts, numbers, true, false and null. YAML 1.1 would also make dates, and numbers of any length and of base 60
    (12:30 is 750): some of those raise all kinds of errors, others take quadratic time. They stay texts here."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


for _tag, _form in {
    "null": r"~|null|Null|NULL|",
    "bool": r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF",
    "int": r"[-+]?(0b[01]{1,64}|0x[0-9a-fA-F]{1,16}|0[0-7_]{0,21}|[1-9][0-9_]{0,30})",
    "float": r"[-+]?([0-9][0-9_]{0,30}\.[0-9_]{0,30}([eE][-+]?[0-9]{1,4})?|[0-9][0-9_]{0,30}[eE][-+]?[0-9]{1,4}"
    r"|\.[0-9][0-9_]{0,30}([eE][-+]?[0-9]{1,4})?|\.(inf|Inf|INF))|\.(nan|NaN|NAN)",
}.items():
    _PlainLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_form})\Z"), None)


def check_yaml(text: str) -> None:
    """Raise YAMLError for what no config needs: a few bytes of it can fill the memory or the stack (references to other
    parts, each of which may double what there is, deep nesting, megabytes), or make objects (tags)."""
    if len(text) > MOST_BYTES:
        raise yaml.YAMLError(f"it has {len(text)} characters, at most {MOST_BYTES} are read")
    depth = 0
    for event in yaml.parse(text, Loader=_PlainLoader):
        mark: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem=f"it refers to another part (*{event.anchor}), which isn't allowed; write that part out",
                problem_mark=mark,
            )
        if getattr(event, "tag", None):
            raise yaml.MarkedYAMLError(
                problem="it has a tag (!), which isn't allowed; quote what is text", problem_mark=mark
            )
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"it's nested over {MOST_DEPTH} deep", problem_mark=mark)


def read_yaml(text: str) -> Any:
    """Plain values. Raises YAMLError, also for what `check_yaml` refuses."""
    check_yaml(text)
    return yaml.load(text, Loader=_PlainLoader)


def read_config(path: str) -> dict[str, Any]:
    """The keys of a config file. Raises UserError, which names the place."""
    try:
        if (size := Path(path).stat().st_size) > MOST_BYTES:
            raise UserError(f"The config {path!r} has {size} bytes, at most {MOST_BYTES} are read.")
        config = read_yaml(Path(path).read_text())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"The config {path!r} isn't valid YAML{where}: {error.problem}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"The config {path!r} isn't valid YAML: {error}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"The config {path!r} isn't a text file in UTF-8.") from error
    except OSError as error:
        raise UserError(f"The config {path!r} can't be read: {error.strerror}.") from error
    if not isinstance(config, dict):
        raise UserError(f"The config {path!r} holds no keys; expected run_dir, model, data and trainer.")
    return config
