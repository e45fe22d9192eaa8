"""Keys and passwords in configs: refused where they're given, left out where a config is written or shown.

A config is kept in run folders, in checkpoints and in reports, and is passed on with them.
"""

import re
from collections.abc import Iterator
from typing import Any

from lantern_pl.errors import UserError

_NAME = re.compile(
    r"(^|[._-])(api[_-]?key|(secret|private|access)([_-]?(access[_-]?)?key)|secret|private|passwords?|passwd|passphrase"
    r"|authorization|credentials?|token|(access|auth|api|bearer|refresh|hf|hub)[_-]?token)$",
    re.IGNORECASE,
)
"""Of an option that holds a secret. Those that name an environment variable (api_key_env, api_key_variable) aren't."""
_IN_URL = re.compile(r"\s*([a-z][a-z0-9+.-]*://)[^/?#\s]*@", re.IGNORECASE)


def secrets_in(value: Any, key: str = "") -> Iterator[str]:
    """The keys of a config, with dots between, whose values are secrets."""
    if isinstance(value, dict):
        for name, part in value.items():
            inner = f"{key}.{name}" if key else str(name)
            if _is_secret(str(name), part):
                yield inner
            else:
                yield from secrets_in(part, inner)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from secrets_in(part, key)
    elif isinstance(value, str) and _IN_URL.match(value):
        yield key


def refuse_secrets(value: Any, where: str = "A config") -> None:
    """Raise UserError for a config, or a part of one, that holds a secret; the message names its key alone."""
    for key in secrets_in(value):
        raise UserError(
            f"{where} may hold no secrets, and {key or 'it'} holds one: put it into an environment variable, and give the "
            "name of that where the option is for a name (api_key_variable, api_key_env). Of an address, leave out user and "
            "password."
        )


def without_secrets(value: Any) -> Any:
    """A config without the keys of secrets, and with addresses that hold none."""
    if isinstance(value, dict):
        return {name: without_secrets(part) for name, part in value.items() if not _is_secret(str(name), part)}
    if isinstance(value, list | tuple):
        return [without_secrets(part) for part in value]
    return _IN_URL.sub(r"\1", value) if isinstance(value, str) else value


def _is_secret(name: str, value: Any) -> bool:
    return bool(_NAME.search(name)) and value not in (None, "") and not isinstance(value, bool)
