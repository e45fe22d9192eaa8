"""The distributions that `lantern plugins new` writes: one folder of templates for each kind of plugin.

A template's path is that of the file it becomes, `NAME` and `PACKAGE` in it replaced, without `.jinja`.
"""

import keyword
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lantern_pl import __version__, plugins
from lantern_pl.errors import UserError


def write_distribution(kind: str, name: str, out: Path) -> Path:
    """Write a distribution with one plugin of a kind below `out`. Returns its folder.

    Raises UserError for a name that can't be one or is taken, and where the folder is there already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise UserError(f"{name!r} can't name a plugin: give lower-case letters and digits, with _ between words.")
    if claims := plugins.discover(plugins.KINDS[kind]).get(name):
        raise UserError(f"There is a {kind} {name!r} already, of {plugins.describe(claims[0])}: choose another name.")
    if name in plugins.reserved(plugins.KINDS[kind]):
        raise UserError(f"{name!r} is the name of a module of {plugins.KINDS[kind]}: choose another name.")
    title = f"lantern-{kind}-{name.replace('_', '-')}"
    folder = out / title
    if folder.exists():
        raise UserError(f"{folder} exists already: choose another NAME or --out, or remove it.")
    values = {
        "name": name,
        "class_name": "".join(part.capitalize() for part in name.split("_")),
        "title": title,
        "package": title.replace("-", "_"),
        "kind": kind,
        "group": plugins.KINDS[kind],
        "version": __version__,
        "api_version": plugins.API_VERSION,
    }
    templates = Path(__file__).parent / kind
    environment = Environment(
        loader=FileSystemLoader(templates), undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    for template in sorted(templates.rglob("*.jinja")):
        relative = template.relative_to(templates).as_posix()
        _write(folder / _target(relative, values), environment.get_template(relative).render(values))
    return folder


def _target(template: str, values: dict[str, Any]) -> str:
    return template.removesuffix(".jinja").replace("PACKAGE", values["package"]).replace("NAME", values["name"])


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise UserError(f"can't write {path}: {error.strerror or error}") from error
