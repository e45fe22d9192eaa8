"""Places and small types that tests import; fixtures are in conftest.py."""

from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
OPEN_DATA = REPOSITORY.parent / "shared" / "data" / "job_fit_open" / "pairs.jsonl"


@dataclass(frozen=True)
class Ran:
    """How a command ended: its exit code and what it printed."""

    code: int
    out: str
    err: str
