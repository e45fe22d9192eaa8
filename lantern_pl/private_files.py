"""Files that are written whole or not at all, and for their owner alone: many hold texts of persons."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from lantern_pl.errors import UserError


def write_private(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Put a file in place with mode 0600. Whoever reads it sees the old one or the new one, never half of it, also after
    a power cut.

    Raises UserError where that fails; the old file stays then.
    """
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"can't write {path}: {error.strerror or error}. Nothing of it was changed.") from error


def write_private_text(path: Path, text: str) -> None:
    """The same for a text, in UTF-8."""
    write_private(path, lambda file: file.write(text.encode()))


def _sync_folder(folder: Path) -> None:
    """A renamed file is only sure to keep its new name once its folder was written."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
