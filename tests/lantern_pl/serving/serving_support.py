"""`lantern serve` in a process of its own, and a completions server that does as it's told."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import httpx

from lantern_pl.serving.load import free_port
from lantern_pl.text import load_tokenizer

JOB = "Nurse for intensive care. Must have: a nursing degree, 3 years in intensive care."
CANDIDATE = "Registered nurse with a nursing degree. 5 years in intensive care, now leading a shift."
PAIR = {"job_text": JOB, "candidate_text": CANDIDATE}
ERROR_TYPES = {
    400: {"bad_request"},
    401: {"unauthorized"},
    404: {"not_found"},
    405: {"method_not_allowed"},
    408: {"body_timeout"},
    413: {"too_large"},
    415: {"unsupported_media_type"},
    422: {"invalid"},
    429: {"too_many_requests"},
    500: {"internal"},
    501: {"not_served"},
    503: {"overloaded", "decoder_unavailable", "not_ready"},
    504: {"timeout"},
}


class Service:
    """A running service. `log`: a file with all that it printed."""

    def __init__(self, log: Path, *options: object, **variables: str) -> None:
        self.log = log
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "lantern_pl", "serve", "--port", str(self.port), *map(str, options)]
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **variables})
        end = time.monotonic() + 240
        while "Serving variant" not in log.read_text():
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)

    def post(self, route: str, body: Any = None, **more: Any) -> httpx.Response:
        return httpx.post(self.url + route, json=body, timeout=60, **more)

    def get(self, route: str, **more: Any) -> httpx.Response:
        return httpx.get(self.url + route, timeout=60, **more)

    def lines(self) -> list[dict[str, Any]]:
        """What was logged, one object for each request."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def line_of(self, request_id: str) -> dict[str, Any]:
        """A request's line, which is written after its answer was sent."""
        end = time.monotonic() + 10
        while not (found := [line for line in self.lines() if line["id"] == request_id]):
            assert time.monotonic() < end, f"no line of {request_id}"
            time.sleep(0.05)
        (line,) = found
        return line

    def figure(self, name: str, **labels: str) -> float:
        """A figure of /metrics, 0 where it isn't there yet."""
        return self.figure_of({}, name, **labels)

    def figure_of(self, key: dict[str, str], name: str, **labels: str) -> float:
        """The same, asked for with a key."""
        for line in self.get("/metrics", headers=key).text.splitlines():
            if line.startswith(name + "{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
                return float(line.rpartition(" ")[2])
        return 0.0

    def raw(self, content: bytes, timeout: float = 20) -> bytes:
        """Send bytes, and read until the service closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(content)
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
        return b"".join(parts)

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal; returns its exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def running(log: Path, *options: object, **variables: str) -> Iterator[Service]:
    service = Service(log, *options, **variables)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.end()


def check_error(response: httpx.Response, status: int) -> str:
    """Check an error's form; returns its message."""
    assert response.status_code == status, response.text
    assert "x-request-id" in response.headers, response.text
    error = response.json()["error"]
    assert set(error) == {"type", "message", "request_id"}
    assert error["type"] in ERROR_TYPES[status]
    assert error["request_id"] == response.headers["x-request-id"]
    assert not error["message"].count("\n")
    return str(error["message"])


def events(response: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    """Server-sent events: names and contents."""
    found = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


class StubDecoder:
    """Streams a completion in the form of vLLM and llama.cpp. The prompt holds "[say ...]": what it says, word by word; and
    maybe "[do x]": error, garbage, break off, hang, run on (to the length limit)."""

    def __init__(self) -> None:
        stub = self
        self.asked: list[dict[str, Any]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                stub.asked.append({"path": self.path, "authorization": self.headers.get("authorization"), **body})
                prompt = load_tokenizer("embedded:smollm2-135m").decode(body["prompt"])
                says = prompt.partition("[say ")[2].partition("]")[0].replace("\\n", "\n")
                does = prompt.partition("[do ")[2].partition("]")[0]
                if does == "error":
                    self.send_error(500, prompt[:50].replace("\n", " "))
                    return
                self.send_response(200)
                self.end_headers()
                if does == "garbage":
                    self.wfile.write(b'data: {"what": "ever"}\n\n')
                    return
                if does == "hang":
                    time.sleep(4)
                for word in says.split(" "):
                    self.send(text=word if word is says.split(" ")[0] else " " + word)
                if does != "break off":
                    self.send(text="", finish_reason="length" if does == "run on" else "stop")
                    self.wfile.write(b"data: [DONE]\n\n")

            def send(self, **choice: Any) -> None:
                self.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
                self.wfile.flush()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()
