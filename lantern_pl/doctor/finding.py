"""What a check has found."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "problem"]
"""note: works, but a person should know; problem: something will fail, or isn't safe."""


@dataclass(frozen=True)
class Finding:
    """One line of `lantern doctor`."""

    check: str
    state: State
    found: str
    advice: str = ""
    """What to do, for what isn't ok."""
