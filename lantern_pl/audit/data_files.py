"""Reads the audit's lists, its own and a user's: YAML without aliases, of a bounded size."""

from pathlib import Path
from typing import Any

import yaml

from lantern_pl import config_file
from lantern_pl.errors import UserError, did_you_mean

FOLDER = Path(__file__).parent / "data"
MAX_BYTES = 1_000_000


def locate(name: str, built_in: tuple[str, ...]) -> Path:
    """The file of a list: a built-in one by its name, or a path. Raises UserError where it's neither."""
    if name in built_in:
        return FOLDER / f"{name}.yaml"
    path = Path(name)
    if not path.is_file():
        raise UserError(f"There is no list {name!r}, built in or as a file. {did_you_mean(name, built_in)}")
    return path


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a list's file. Raises UserError where it isn't one."""
    try:
        data = path.read_bytes()
        if len(data) > MAX_BYTES:
            raise UserError(f"{path} has {len(data):,} bytes; a list may have {MAX_BYTES:,}.")
        found = config_file.read_yaml(data.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{path} isn't a text file in UTF-8.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path} isn't valid YAML{where}: {getattr(error, 'problem', error)}.") from error
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror or error}.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no keys; lantern_pl/audit/data has examples of lists.")
    return found
