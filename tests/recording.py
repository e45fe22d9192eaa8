"""Tests write down what they have found, for the tables of docs/reliability.md."""

import json
import os
from pathlib import Path
from typing import Protocol

import pytest

VARIABLE = "LANTERN_RECORD"


class Record(Protocol):
    def __call__(self, what: str, *, found: str, goal: str) -> None: ...


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """Add a line to the file that LANTERN_RECORD names, if it names one: what was tried, what was found, what is wanted.
    A later one of the same name replaces it in the table."""

    def write(what: str, *, found: str, goal: str) -> None:
        if path := os.environ.get(VARIABLE):
            line = json.dumps({"what": what, "found": found, "goal": goal, "test": request.node.nodeid})
            with Path(path).open("a") as file:
                file.write(line + "\n")

    return write


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that record are those that `make reliability` runs."""
    for item in items:
        if "record" in getattr(item, "fixturenames", ()):
            item.add_marker("reliability")
