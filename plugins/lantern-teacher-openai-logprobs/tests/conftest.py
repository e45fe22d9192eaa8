"""A llama.cpp server with the embedded model, and small servers that answer as a test wants."""

import importlib.util
import json
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Requests to this machine must not go through a proxy.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"

import pytest
import torch
from lantern_teacher_openai_logprobs.teacher import OpenAILogprobsTeacher

from lantern_pl.signals import TokenBatch
from lantern_pl.text import load_tokenizer

DISTRIBUTION = Path(__file__).parent.parent
TOKENIZER = "embedded:smollm2-135m"

Answer = tuple[int, Any]
Answers = dict[str, Callable[[dict[str, Any]], Answer]]


@pytest.fixture(scope="session")
def llama_server() -> Iterator[str]:
    """The address of a llama.cpp server with two slots."""
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("xllamacpp, a llama.cpp server in a wheel, isn't installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, DISTRIBUTION / "examples" / "serve_embedded.py", "--port", str(port), "--slots", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    try:
        assert "Serving" in server.stdout.readline()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


class Stub:
    """A server that answers "METHOD /path" from a table, and remembers what it was asked."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.reply("GET", {})

            def do_POST(self) -> None:
                self.reply("POST", json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def reply(self, method: str, body: dict[str, Any]) -> None:
                question = f"{method} {self.path}"
                stub.asked.append((question, body))
                stub.headers.append(dict(self.headers))
                status, said = stub.answers.get(question, nothing_there)(body)
                content = said.encode() if isinstance(said, str) else json.dumps(said).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def count(self, question: str) -> int:
        return sum(asked == question for asked, _ in self.asked)


def nothing_there(body: dict[str, Any]) -> Answer:
    return 404, {"error": {"message": "Not Found", "type": "NotFoundError", "param": None, "code": 404}}


@pytest.fixture
def serve() -> Iterator[Callable[[Answers], Stub]]:
    """Start a server that answers from a table."""
    running: list[Stub] = []

    def start(answers: Answers) -> Stub:
        running.append(Stub(answers))
        return running[-1]

    yield start
    for stub in running:
        stub.http.shutdown()
        stub.http.server_close()


@pytest.fixture(scope="session")
def teacher() -> Callable[..., OpenAILogprobsTeacher]:
    """A teacher of SmolLM2's tokenizer that asks for few tokens."""

    def make(url: str, **arguments: Any) -> OpenAILogprobsTeacher:
        return OpenAILogprobsTeacher(**{"base_url": url, "tokenizer": TOKENIZER, "top_k": 5, **arguments})

    return make


def next_tokens(prefix: list[int]) -> list[tuple[int, float]]:
    """What the model of the vLLM stub says after a prefix: eight tokens with their log-probabilities, best first."""
    draw = random.Random(repr(prefix))
    weights = sorted((draw.random() ** 3 + 1e-3 for _ in range(8)), reverse=True)
    return [
        (token, float(torch.tensor(0.9 * weight / sum(weights)).log()))
        for token, weight in zip(draw.sample(range(1000, 2000), 8), weights, strict=True)
    ]


@pytest.fixture
def model() -> Callable[[list[int]], list[tuple[int, float]]]:
    return next_tokens


@pytest.fixture
def vllm() -> Answers:
    """Answers in vLLM's format: that of CompletionResponse and ErrorResponse in its OpenAI entry points."""

    def completions(body: dict[str, Any]) -> Answer:
        count, prompt = body["prompt_logprobs"], body["prompt"]
        if count > 6:
            message = f"Requested prompt logprobs of {count}, which is greater than max allowed: 6"
            return 400, {"error": {"message": message, "type": "BadRequestError", "param": "prompt_logprobs", "code": 400}}
        places: list[Any] = [None]
        for at in range(1, len(prompt)):
            # The prompt's own token comes first, whatever its rank.
            named = {prompt[at]: -11.5, **dict(next_tokens(prompt[:at])[:count])}
            places.append({str(token): {"logprob": said, "rank": 99, "decoded_token": "x"} for token, said in named.items()})
        choice = {
            "index": 0,
            "text": " a",
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
            "token_ids": None,
            "prompt_logprobs": places,
            "prompt_token_ids": None,
        }
        usage = {"prompt_tokens": len(prompt), "total_tokens": len(prompt) + 1, "completion_tokens": 1}
        return 200, {
            "id": "cmpl-1",
            "object": "text_completion",
            "created": 1,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }

    return {"GET /v1/models": models("m"), "POST /tokenize": tokenize, "POST /v1/completions": completions}


def models(*names: str) -> Callable[[dict[str, Any]], Answer]:
    return lambda body: (200, {"object": "list", "data": [{"id": name, "object": "model"} for name in names]})


def tokenize(body: dict[str, Any]) -> Answer:
    ids = load_tokenizer(TOKENIZER).encode(body["prompt"], add_special_tokens=body["add_special_tokens"])
    return 200, {"count": len(ids), "max_model_len": 8192, "tokens": ids, "token_strs": None}


@pytest.fixture(scope="session")
def batch() -> TokenBatch:
    """Three rows of different lengths; of the last one the last token's successor is asked for too."""
    texts = (
        "Must have: Python and Kubernetes. The candidate has six years of Python.",
        "A senior nurse",
        "Level: high. The candidate meets all of",
    )
    rows = [load_tokenizer(TOKENIZER).encode(text) for text in texts]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask, positions = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    for row, first, last in ((0, 4, 9), (1, 0, 2), (2, 5, len(rows[2]))):
        positions[row, first:last] = True
    return TokenBatch(ids, mask, positions)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been waited between attempts."""
    waits: list[float] = []
    monkeypatch.setattr("lantern_teacher_openai_logprobs.server.time.sleep", waits.append)
    return waits
