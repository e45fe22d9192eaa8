"""`lantern audit`: asks the models about pairs, swapped texts and attacks, and says what the answers can carry."""

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import jsonargparse
from rich.console import Console

from lantern_pl.audit.config import AuditConfig
from lantern_pl.config_errors import explain_all
from lantern_pl.config_parser import HOW_TO_ALLOW, ConfigParser, restrict_imports
from lantern_pl.errors import UserError
from lantern_pl.model_files import quiet_transformers
from lantern_pl.private_files import write_private_text

FLAGGED = 3
"""The exit code with `fail_on_flags` where something was flagged."""


def audit_command(argv: list[str]) -> int:
    """Run `lantern audit ...`; `argv` is what follows `audit`. Raises UserError, and SystemExit after help."""
    quiet_transformers()
    config = read_config(argv)
    missing = [name for name in ("fairlearn", "scipy") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'lantern audit needs {missing[0]}: pip install "lantern-pl[audit]"')
    from lantern_pl.audit.run import audit

    console = Console()
    report = audit(config, console)
    if config.out:
        out = Path(config.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_private_text(out, json.dumps(report.as_json(), indent=1, ensure_ascii=False) + "\n")
        console.print(f"Findings and tables: {out}", soft_wrap=True)
    return FLAGGED if config.fail_on_flags and report.flagged else 0


def read_config(argv: Sequence[str]) -> AuditConfig:
    """The config of a command line. Raises UserError, and SystemExit after help."""
    parser = ConfigParser(
        prog="lantern audit", usage="lantern audit --config FILE [--KEY VALUE ...]", description=AuditConfig.__doc__
    )
    restrict_imports()
    parser.add_argument("--config", action=jsonargparse.ActionConfigFile, help="YAML with the keys below")
    parser.add_class_arguments(AuditConfig)
    with explain_all(HOW_TO_ALLOW):
        made = parser.instantiate(parser.parse_args(list(argv)))
    return AuditConfig(**{key.name: made[key.name] for key in fields(AuditConfig)})
