"""A llama.cpp server with the embedded model, and teachers of servers that fail."""

import asyncio
import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Requests to this machine must not go through a proxy.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"

import pytest
from fault_server import FaultServer
from lantern_teacher_litellm.teacher import LiteLLMTeacher

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def llama_server() -> Iterator[str]:
    """The address of a llama.cpp server with two slots, made by an example of another plugin."""
    script = REPOSITORY / "plugins" / "lantern-teacher-openai-logprobs" / "examples" / "serve_embedded.py"
    if importlib.util.find_spec("xllamacpp") is None or not script.exists():
        pytest.skip("xllamacpp, a llama.cpp server in a wheel, isn't installed, or the script that starts it isn't here")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, script, "--port", str(port), "--slots", "2", "--context", "2048"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    try:
        assert "Serving" in server.stdout.readline()
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def server() -> Iterator[FaultServer]:
    server = FaultServer()
    yield server
    server.stop()


@pytest.fixture
def teacher(server: FaultServer) -> Callable[..., LiteLLMTeacher]:
    """A teacher of the fault server, which doesn't probe."""

    def make(**arguments: Any) -> LiteLLMTeacher:
        return LiteLLMTeacher(**{"model": "openai/m", "base_url": server.url, "schema": "never", **arguments})

    return make


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been waited between attempts."""
    waits: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr("lantern_teacher_litellm.line.sleep", note)
    return waits
