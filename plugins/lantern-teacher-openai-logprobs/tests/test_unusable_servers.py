"""Servers that fail, refuse or can't: what a user is told."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lantern_teacher_openai_logprobs.server import ATTEMPTS

from lantern_pl.errors import UserError
from lantern_pl.signals import TokenBatch

Make = Callable[..., Any]
CPU = torch.device("cpu")
KEY = "sk-very-secret"


def models(*names: str) -> Callable[[dict[str, Any]], tuple[int, Any]]:
    return lambda body: (200, {"object": "list", "data": [{"id": name} for name in names]})


def test_where_no_server_is_the_message_says_how_to_start_one(teacher: Make, no_waiting: list[float]) -> None:
    with pytest.raises(UserError, match=r"No server answers at http://127\.0\.0\.1:9 ") as error:
        teacher("http://127.0.0.1:9/v1").to(CPU)
    assert "vllm serve" in str(error.value)
    assert "llama-server" in str(error.value)
    assert no_waiting == []


def test_a_server_without_log_probs_is_refused_with_what_was_tried(serve: Make, vllm: Any, teacher: Make) -> None:
    """As the OpenAI-compatible gateways: prompt_logprobs is ignored, and there is no /completion."""
    vllm["POST /v1/completions"] = lambda body: (200, {"choices": [{"index": 0, "text": " a", "logprobs": None}]})
    with pytest.raises(UserError, match="gives no log-probabilities of given tokens") as error:
        teacher(serve(vllm).url).to(CPU)
    for part in (
        "prompt_logprobs (vLLM): its answer has no",
        "n_probs (llama.cpp): HTTP 404: Not Found",
        "model.teacher null",
    ):
        assert part in str(error.value)


def test_fewer_log_probs_than_asked_are_refused(serve: Make, vllm: Any, teacher: Make) -> None:
    answer = vllm["POST /v1/completions"]
    vllm["POST /v1/completions"] = lambda body: answer({**body, "prompt_logprobs": 2})
    # The prompt's own token is named besides the two.
    with pytest.raises(UserError, match="names 3 tokens where top_k=5 were asked: set top_k to 3"):
        teacher(serve(vllm).url).to(CPU)


def test_fewer_log_probs_than_asked_are_refused_in_a_batch_too(
    serve: Make, vllm: Any, teacher: Make, batch: TokenBatch
) -> None:
    server = serve(dict(vllm))
    able = teacher(server.url).to(CPU)
    answer = vllm["POST /v1/completions"]
    server.answers["POST /v1/completions"] = lambda body: answer({**body, "prompt_logprobs": 2})
    with pytest.raises(UserError, match="names 3 tokens of the vocabulary at a position where top_k=5 were asked"):
        able.score_tokens(batch)


def test_another_tokenizer_is_refused(serve: Make, vllm: Any, teacher: Make) -> None:
    vllm["POST /tokenize"] = lambda body: (200, {"tokens": [7, 8, 9]})
    with pytest.raises(UserError, match=r"The model 'm' at .* has another tokenizer than the student") as error:
        teacher(serve(vllm).url).to(CPU)
    assert "[7, 8, 9]" in str(error.value)


def test_the_model_is_one_of_those_that_the_server_has(serve: Make, vllm: Any, teacher: Make) -> None:
    vllm["GET /v1/models"] = models("qwen3-8b", "smollm2")
    url = serve(vllm).url
    with pytest.raises(UserError, match=r"has 2 models: give one of them as model\. Known: qwen3-8b, smollm2\."):
        teacher(url).to(CPU)
    with pytest.raises(UserError, match=r"has no model 'smolm2'\. Did you mean 'smollm2'\?"):
        teacher(url, model="smolm2").to(CPU)
    assert teacher(url, model="smollm2").to(CPU).identity()["model"] == "smollm2"


@pytest.mark.parametrize("answer", [(200, "<html>hello</html>"), (404, "no"), (200, {"models": []}), (200, [1])])
def test_something_else_than_such_a_server(serve: Make, teacher: Make, answer: tuple[int, Any]) -> None:
    with pytest.raises(UserError, match="Is base_url that of an OpenAI-compatible server"):
        teacher(serve({"GET /v1/models": lambda body: answer}).url).to(CPU)


# Failures that pass


def test_a_busy_server_is_asked_again(serve: Make, vllm: Any, teacher: Make, no_waiting: list[float]) -> None:
    states = [(503, {"error": {"message": "Loading model", "code": 503}}), (429, "slow down"), (500, "oops")]
    listed = vllm["GET /v1/models"]
    vllm["GET /v1/models"] = lambda body: states.pop(0) if states else listed(body)
    assert teacher(serve(vllm).url).to(CPU).identity()["model"] == "m"
    assert no_waiting == [0.5, 1.0, 2.0]


def test_a_dropped_connection_is_made_again(
    serve: Make, vllm: Any, teacher: Make, no_waiting: list[float], batch: TokenBatch
) -> None:
    server = serve(dict(vllm))
    able = teacher(server.url).to(CPU)
    answer, drops = vllm["POST /v1/completions"], [ConnectionAbortedError, ConnectionAbortedError]

    def flaky(body: dict[str, Any]) -> tuple[int, Any]:
        if drops:
            raise drops.pop()
        return answer(body)

    server.http.handle_error = lambda request, client: None
    server.answers["POST /v1/completions"] = flaky
    assert len(able.score_tokens(batch).ids) == int(batch.positions.sum())
    assert len(no_waiting) == 2


def test_a_server_that_stays_busy_ends_in_one_message(
    serve: Make, vllm: Any, teacher: Make, no_waiting: list[float], batch: TokenBatch
) -> None:
    server = serve(dict(vllm))
    able = teacher(server.url, max_concurrency=1).to(CPU)
    server.answers["POST /v1/completions"] = lambda body: (503, {"error": "no capacity"})
    before = server.count("POST /v1/completions")
    with pytest.raises(
        UserError, match=rf"failed {ATTEMPTS} times at /v1/completions; the last time: HTTP 503: no capacity"
    ):
        able.score_tokens(batch)
    # The other rows weren't tried any more.
    assert server.count("POST /v1/completions") - before <= 2 * ATTEMPTS


def test_a_server_that_takes_too_long_ends_in_one_message(
    serve: Make, vllm: Any, teacher: Make, no_waiting: list[float], batch: TokenBatch
) -> None:
    server, slow = serve(dict(vllm)), threading.Event()
    able = teacher(server.url, timeout=0.2, max_concurrency=1).to(CPU)
    server.answers["POST /v1/completions"] = lambda body: (200, {"late": slow.wait(1)})
    with pytest.raises(UserError, match=r"the last time: ReadTimeout.*a longer timeout helps"):
        able.score_tokens(batch)


# Keys


def test_the_key_is_sent_and_never_shown(
    serve: Make,
    vllm: Any,
    teacher: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    no_waiting: list[float],
) -> None:
    monkeypatch.setenv("TEST_SERVER_KEY", KEY)
    server = serve(vllm)
    able = teacher(server.url, api_key_variable="TEST_SERVER_KEY").to(CPU)
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    assert KEY not in repr(able.identity())
    # Even a server that sends it back.
    told = []
    for answer in ((401, KEY), (400, f"bad {KEY}"), (503, f"busy {KEY}"), (200, f"{KEY} no JSON")):
        failing = serve({"GET /v1/models": lambda body, answer=answer: answer})
        with pytest.raises(UserError) as error:
            teacher(failing.url, api_key_variable="TEST_SERVER_KEY").to(CPU)
        told.append(str(error.value))
    assert "doesn't accept the key" in told[0]
    assert KEY not in caplog.text + "".join(told)


def test_a_missing_key_is_asked_for(serve: Make, teacher: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    url = serve({"GET /v1/models": lambda body: (401, {"error": "Unauthorized"})}).url
    with pytest.raises(UserError, match="wants a key: put it into an environment variable"):
        teacher(url).to(CPU)
    monkeypatch.delenv("NOT_SET_HERE", raising=False)
    with pytest.raises(UserError, match="The environment variable that api_key_variable names isn't set"):
        teacher(url, api_key_variable="NOT_SET_HERE").to(CPU)
    monkeypatch.setenv("NOT_SET_HERE", f"{KEY}\n")
    with pytest.raises(UserError, match="holds a blank") as error:
        teacher(url, api_key_variable="NOT_SET_HERE").to(CPU)
    assert KEY not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"api_key_variable": KEY}, "isn't the name of an environment variable"),
        ({"base_url": f"http://user:{KEY}@localhost"}, "base_url holds more than an address"),
        ({"base_url": f"http://localhost/v1?key={KEY}"}, "base_url holds more than an address"),
        ({"base_url": "localhost:8000"}, "base_url is 'localhost:8000': give the address of a server"),
        ({"top_k": 0}, "top_k is 0: give 1 to 49152"),
        ({"top_k": 50_000}, "top_k is 50000: give 1 to 49152"),
        ({"timeout": 0.0}, "timeout is 0.0 and max_concurrency 8"),
        ({"max_concurrency": 0}, "max_concurrency 0"),
    ],
)
def test_arguments_that_make_no_sense(teacher: Make, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        teacher(**{"url": "http://localhost:8000", **arguments})
    assert KEY not in str(error.value)
