"""The config that a checkpoint carries, as the lowest layer of a run that goes on from it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_warn

from lantern_pl import plugins
from lantern_pl.checkpoints import has_hash, newest_good, read_checkpoint
from lantern_pl.config_file import read_yaml
from lantern_pl.errors import UserError
from lantern_pl.run_folder import CHECKPOINTS, CONFIG, CONFIG_KEY, PLUGINS_KEY
from lantern_pl.secret_values import refuse_secrets

DEFAULT_RUN_DIR = "runs/unnamed"


@dataclass
class CheckpointLayer:
    """What a run from a checkpoint starts from: its path, the config in it, and that as a file for the parser.

    `lost` has the model's arguments that named plugins which are no more, and those plugins. They're not in the config.
    """

    path: str
    config: dict[str, Any]
    file: Path
    lost: dict[str, str]


@contextmanager
def checkpoint_layer(given: dict[str, str]) -> Iterator[CheckpointLayer | None]:
    """For a run from a checkpoint, else None."""
    path = given.get("ckpt_path")
    if path is None or path == "null":
        yield None
        return
    if path == "last":
        newest, skipped = newest_good(Path(given.get("run_dir", DEFAULT_RUN_DIR)) / CHECKPOINTS)
        path = str(newest)
        for said in skipped:
            rank_zero_warn(f"{said}: going on from {newest.name}, which is older.")
    config, used = _config_of_checkpoint(path)
    if not has_hash(Path(path)):
        rank_zero_warn(f"{path} has no .sha256 beside it: whether it's as it was written can't be told.")
    run_folder = Path(path).parent.parent
    if Path(path).parent.name == CHECKPOINTS and (run_folder / CONFIG).is_file():
        # Where the run is now: it may have been moved since.
        config["run_dir"] = str(run_folder)
    lost = {}
    for alias, described in plugins.lost(used).items():
        init_args = config["model"].get("init_args", {})
        for key in [key for key, value in init_args.items() if alias in _class_paths(value)]:
            del init_args[key]
            lost[key] = f"{alias} from {described}"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / CONFIG
        file.write_text(yaml.safe_dump(config))
        yield CheckpointLayer(path, config, file, lost)


def _config_of_checkpoint(path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The config that a checkpoint holds, and the plugins that were in use."""
    checkpoint = read_checkpoint(Path(path))
    if CONFIG_KEY not in checkpoint:
        raise UserError(f"The checkpoint {path!r} isn't one of lantern-pl: it holds no {CONFIG_KEY}.")
    try:
        config = read_yaml(checkpoint[CONFIG_KEY])
    except (yaml.YAMLError, TypeError) as error:
        raise UserError(f"The checkpoint {path!r} isn't one of lantern-pl: its config can't be read ({error}).") from error
    if not isinstance(config, dict):
        raise UserError(f"The checkpoint {path!r} isn't one of lantern-pl: its config holds no keys.")
    refuse_secrets(config, f"The config in the checkpoint {path!r}")
    return config, checkpoint.get(PLUGINS_KEY, {})


def _class_paths(value: Any) -> list[str]:
    """Every class_path in a part of a config."""
    if isinstance(value, list):
        return [found for part in value for found in _class_paths(part)]
    if not isinstance(value, dict):
        return []
    own = [value["class_path"]] if "class_path" in value else []
    return own + [found for part in value.values() for found in _class_paths(part)]
