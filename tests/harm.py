"""Harms files, as disks, editors and strangers do."""

import json
from pathlib import Path
from random import Random
from typing import Any


def harmed_bytes(content: bytes, rng: Random) -> bytes:
    """The bytes with something of them changed, cut, repeated or put in; most of all at the start, where headers are."""
    data = bytearray(content)
    start = rng.randrange(min(len(data), 600)) if rng.random() < 0.7 else rng.randrange(len(data))
    match rng.randrange(6):
        case 0:
            data[start] ^= 1 << rng.randrange(8)
        case 1:
            del data[start:]
        case 2:
            del data[start : start + rng.randrange(1, 64)]
        case 3:
            data[start:start] = rng.randbytes(rng.randrange(1, 64))
        case 4:
            data[start : start + 8] = rng.choice([b"\xff" * 8, b"\0" * 8, b"99999999", b'"}}]]{{"'])
        case 5:
            data += data[: rng.randrange(1, 200)]
    return bytes(data)


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / "manifest.json").write_text(json.dumps(manifest))
