"""Reads YAML that may come from strangers, with errors that name the place."""

from pathlib import Path
from typing import Any

import yaml

from lantern_pl.errors import UserError

MOST_BYTES = 1 << 20
MOST_DEPTH = 50
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_yaml(text: str) -> None:
    """Raise YAMLError for what no config needs and a few bytes of which can fill the memory or the stack: references to
    other parts (each may double what there is), deep nesting, or megabytes."""
    if len(text) > MOST_BYTES:
        raise yaml.YAMLError(f"it has {len(text)} characters, at most {MOST_BYTES} are read")
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        mark: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem=f"it refers to another part (*{event.anchor}), which isn't allowed; write that part out",
                problem_mark=mark,
            )
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"it's nested over {MOST_DEPTH} deep", problem_mark=mark)


def read_yaml(text: str) -> Any:
    """Plain values. Raises YAMLError, also for what `check_yaml` refuses."""
    check_yaml(text)
    return yaml.load(text, Loader=_LOADER)


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
