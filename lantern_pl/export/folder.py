"""The folder of an export: made beside its place, and put there whole."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lantern_pl.errors import UserError
from lantern_pl.export.onnx_runtime import INTERFACE, SUMMARY
from lantern_pl.run_folder import move_aside


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `out` at the end. An earlier export there is moved aside to `OUT.1`.

    Raises UserError where `out` holds anything else, or can't be written.
    """
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / SUMMARY).is_file())):
        raise UserError(f"--out is {str(out)!r}, which holds other things than an export: choose a folder of its own.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as beside:
            folder = Path(beside) / "export"
            folder.mkdir(mode=0o755)
            yield folder
            if out.exists() and any(out.iterdir()):
                print(f"The earlier export was moved to {move_aside(out)}.")
            elif out.exists():
                out.rmdir()
            shutil.move(folder, out)
    except OSError as error:
        raise UserError(f"can't write {out}: {error.strerror or error}. Nothing was left there.") from error


def write_interface(about: dict[str, Any], folder: Path) -> None:
    """Put lantern.json there."""
    (folder / INTERFACE).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Size in bytes and sha256 of each file, by its path within the folder."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": digest}
    return found
