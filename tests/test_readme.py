"""The READMEs hold what commands printed."""

import subprocess
import sys

from support import REPOSITORY


def test_tables_are_those_of_the_recorded_results() -> None:
    done = subprocess.run(
        [sys.executable, "kernels/bench/readme_tables.py", "--check"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_that_the_readme_names_exist() -> None:
    import re

    text = (REPOSITORY / "README.md").read_text()
    named = re.findall(r"\]\(((?!http)[^)#]+)\)", text) + re.findall(r"`((?:configs|lantern_pl|kernels)/[\w/.-]+)`", text)
    assert len(named) > 10
    assert [name for name in named if not (REPOSITORY / name).exists()] == []
