"""Where the files of a model are: an embedded model, a folder, or a name on the model hub."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig
from transformers.utils import logging as transformers_logging

from lantern_pl import embedded
from lantern_pl.errors import UserError
from lantern_pl.export.onnx_runtime import INTERFACE, read_interface

MANIFEST = "manifest.json"


def quiet_transformers() -> None:
    """Leave out what transformers says while it loads: its bars would interleave with ours."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def locate(model: str) -> str:
    """What to give to transformers for a model reference.

    `embedded:NAME` is a model from an installed wheel; anything that exists is a folder; the rest is a name on the hub.
    Raises UserError for an unknown embedded name, and for what looks like a path and doesn't exist.
    """
    if model.startswith(embedded.PREFIX):
        return str(embedded.resolve(model))
    if Path(model).is_dir():
        if not (Path(model) / "config.json").is_file():
            raise UserError(f"{model!r} is a folder without config.json: it holds no model that transformers can load.")
        return model
    if Path(model).exists() or model.startswith((".", "/", "~")) or model.count("/") > 1 or model.endswith("/student"):
        raise UserError(
            f"There is no model folder {model!r}. Give a folder that holds config.json, a name on the model hub such as "
            f"'Qwen/Qwen3-0.6B', or one of {', '.join(embedded.PREFIX + name for name in embedded.MODELS)}."
        )
    return model


def load_config(model: str) -> PretrainedConfig:
    """The transformers config of a model reference. Raises UserError if it can't be had."""
    try:
        return AutoConfig.from_pretrained(locate(model), trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"The model {model!r} can't be loaded: {reason}. Is the name right, and is the hub reachable from here? "
            f"Without a hub use a folder or {embedded.PREFIX}smollm2-135m."
        ) from error


def read_manifest(model: str) -> dict[str, Any] | None:
    """The manifest of a student folder that this package has written, None for any other model. Raises UserError for one
    that can't be read."""
    path = Path(locate(model)) / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f"{path} isn't JSON: the folder was damaged. Write the student anew, by its run's command."
        ) from error
    if not isinstance(manifest, dict):
        raise UserError(f"{path} isn't the manifest of a student: give the folder of one.")
    return manifest


@dataclass(frozen=True)
class Training:
    """What a student was trained for. max_length: its longest input in tokens; task: levels, prompt and answer."""

    max_length: int
    task: dict[str, Any]


def training_of(model: str) -> Training | None:
    """As a student's folder says, of its run or its export; None for any other model."""
    folder, manifest = Path(locate(model)), read_manifest(model)
    about = manifest or (read_interface(folder) if (folder / INTERFACE).is_file() else {})
    length = (about.get("data") or about).get("max_length")
    return Training(length, about.get("task") or {}) if isinstance(length, int) else None


def adapter_identity(adapter: str) -> str:
    """What tells an adapter from others: the hash of its folder's weights and settings."""
    folder, digest = Path(adapter), hashlib.sha256()
    for path in (*sorted(folder.glob("*.safetensors")), folder / "adapter_config.json"):
        digest.update(path.read_bytes())
    return f"sha256 {digest.hexdigest()[:16]}"


def weights_identity(model: str) -> str:
    """What tells these weights from others: the commit of a hub model, the hash of a folder's safetensors files."""
    folder = Path(locate(model))
    if not folder.is_dir():
        return f"commit {getattr(load_config(model), '_commit_hash', None)}"
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256 {digest.hexdigest()[:16]}"
