"""Places and small types that tests import; fixtures are in conftest.py."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
OPEN_DATA = REPOSITORY.parent / "shared" / "data" / "job_fit_open" / "pairs.jsonl"

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""
CHROMEDRIVER = shutil.which("chromedriver") or ""
# On a machine of its own the checks have a browser installed: where that went wrong they are to fail.
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER) and os.environ.get("CI") != "true",
    reason="there is no chromium with its chromedriver here",
)

# For `python -c`, with a `lantern` command's arguments: runs it, then prints its peak memory in KiB. Not ru_maxrss,
# which begins with what the process that started this one had.
PEAK_OF_LANTERN = """\
import sys
from lantern_pl.cli import main
code = main(sys.argv[1:])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


@dataclass(frozen=True)
class Ran:
    """How a command ended: its exit code and what it printed."""

    code: int
    out: str
    err: str
