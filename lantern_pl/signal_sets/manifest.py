"""The manifest of a signal set: what was asked of whom about what, and the shards with their checksums."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lantern_pl.errors import UserError
from lantern_pl.signal_sets.formats import Format, HiddenFormat, LogProbs, SampledFormat, TopKFormat
from lantern_pl.signals import OutputHead

MANIFEST, UNFINISHED = "manifest.json", "unfinished.json"
_LARGEST = 64 << 20
"""Bytes. A shard takes some 200: this is enough for hundreds of thousands of them."""
Count = Field(ge=0, le=1 << 48)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Tokens(_Part):
    """What token signals there are: their form, and what the teacher's tokens are."""

    mode: Literal["top_k", "sampled", "hidden"]
    temperature: float = Field(gt=0, allow_inf_nan=False)
    vocab_size: int = Field(ge=2, le=1 << 24)
    tokenizer: str
    chat_template: str
    k: int | None = Field(default=None, ge=1, le=1 << 24)
    log_probs: LogProbs | None = None
    packed: bool = False
    rounds: int | None = Field(default=None, ge=1, le=255)
    widest: int | None = Field(default=None, ge=1, le=255)
    width: int | None = Field(default=None, ge=1, le=1 << 20)
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    softcap: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    def format(self, head: OutputHead | None = None) -> Format:
        """How its arrays are written and read. Raises UserError where a number that the mode needs is missing."""
        if self.mode == "top_k" and self.k is not None and self.log_probs is not None and self.k <= self.vocab_size:
            return TopKFormat(self.k, self.vocab_size, self.log_probs, self.packed, self.temperature)
        if self.mode == "sampled" and self.rounds is not None:
            return SampledFormat(self.rounds, self.vocab_size, self.packed, self.temperature, self.widest)
        if self.mode == "hidden" and self.width is not None and self.dtype is not None:
            return HiddenFormat(self.width, self.dtype, self.vocab_size, head)
        raise UserError(f"its mode {self.mode!r} lacks a number that it needs, or has k above the vocabulary")


class Shard(_Part):
    """A file of the set."""

    file: str = Field(pattern=r"^[a-z0-9-]+\.safetensors$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Count
    examples: int = Count
    tokens: int = Count
    pairs: int = Count


class Manifest(_Part):
    """Everything about a set. `teacher`, `task`, `data`, `request` and `report` are for people and for comparing."""

    format: Literal[1] = 1
    kind: Literal["signals"] = "signals"
    teacher: dict[str, Any]
    task: dict[str, Any]
    data: dict[str, Any]
    request: dict[str, Any]
    tokens: Tokens | None = None
    levels: list[str] | None = None
    head: Shard | None = None
    shards: list[Shard]
    report: dict[str, Any] | None = None

    @property
    def examples(self) -> int:
        return sum(shard.examples for shard in self.shards)

    @property
    def token_count(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def pairs(self) -> int:
        return sum(shard.pairs for shard in self.shards)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished set. Raises UserError where there is none, or where it isn't one."""
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / UNFINISHED).is_file():
            raise UserError(f"The signal set {str(folder)!r} isn't finished: run the `lantern cache` that makes it again.")
        raise UserError(f"{str(folder)!r} holds no signal set: there is no {MANIFEST}. `lantern cache --help` makes one.")
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"The manifest {str(path)!r} has {path.stat().st_size} bytes: that isn't one of a signal set.")
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise UserError(
            f"The manifest {str(path)!r} isn't one of a signal set: {where}: {first['msg']}. Make the set anew."
        ) from error
    except OSError as error:
        raise UserError(f"The manifest {str(path)!r} can't be read: {error.strerror}.") from error


def dump(manifest: Manifest) -> str:
    return json.dumps(manifest.model_dump(exclude_none=True), indent=2, ensure_ascii=False) + "\n"


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
