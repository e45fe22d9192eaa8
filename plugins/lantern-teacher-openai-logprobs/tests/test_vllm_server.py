"""vLLM's prompt log-probabilities, from a server that answers in its format. vLLM itself isn't run."""

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lantern_pl.errors import UserError
from lantern_pl.signals import TokenBatch

Make = Callable[..., Any]


def test_each_row_is_what_follows_the_tokens_up_to_its_position(
    serve: Make, vllm: Any, teacher: Make, batch: TokenBatch, model: Make
) -> None:
    signal = teacher(serve(vllm).url).score_tokens(batch)
    expected = [
        model(batch.input_ids[row, : position + 1].tolist())[:5] for row, position in batch.positions.nonzero().tolist()
    ]
    assert signal.ids.tolist() == [[token for token, _ in row] for row in expected]
    torch.testing.assert_close(signal.log_probs, torch.tensor([[said for _, said in row] for row in expected]))
    left = 1 - signal.log_probs.double().exp().sum(-1)
    torch.testing.assert_close(signal.tail_log_mass.double().exp(), left, rtol=1e-5, atol=1e-7)


def test_a_batch_takes_one_request_per_row(serve: Make, vllm: Any, teacher: Make, batch: TokenBatch) -> None:
    server = serve(vllm)
    able = teacher(server.url).to(torch.device("cpu"))
    before = server.count("POST /v1/completions")
    able.score_tokens(batch)
    assert server.count("POST /v1/completions") - before == 3
    _, body = server.asked[-1]
    assert {key: body[key] for key in ("model", "prompt_logprobs", "temperature", "add_special_tokens")} == {
        "model": "m",
        "prompt_logprobs": 5,
        "temperature": 1.0,
        "add_special_tokens": False,
    }


def test_rows_do_not_depend_on_the_rest_of_the_batch(serve: Make, vllm: Any, teacher: Make, batch: TokenBatch) -> None:
    able = teacher(serve(vllm).url)
    together = able.score_tokens(batch)
    parts = [(slice(row, row + 1), slice(0, int(batch.attention_mask[row].sum()))) for row in range(3)]
    alone = [
        able.score_tokens(TokenBatch(batch.input_ids[part], batch.attention_mask[part], batch.positions[part]))
        for part in parts
    ]
    assert torch.cat([signal.ids for signal in alone]).tolist() == together.ids.tolist()
    assert torch.cat([signal.log_probs for signal in alone]).tolist() == together.log_probs.tolist()


def test_a_batch_without_supervised_tokens(serve: Make, vllm: Any, teacher: Make, batch: TokenBatch) -> None:
    nothing = TokenBatch(batch.input_ids, batch.attention_mask, torch.zeros_like(batch.positions))
    assert teacher(serve(vllm).url).score_tokens(nothing).ids.shape == (0, 5)


def test_more_than_max_logprobs_is_refused_with_the_limit(serve: Make, vllm: Any, teacher: Make) -> None:
    with pytest.raises(UserError, match="greater than max allowed: 6") as error:
        teacher(serve(vllm).url, top_k=20).to(torch.device("cpu"))
    assert "Set top_k to 6 or less, or start vLLM with --max-logprobs 20." in str(error.value)


def test_rows_of_a_padded_embedding_take_no_tokens_place(
    serve: Make, vllm: Any, teacher: Make, batch: TokenBatch, model: Make
) -> None:
    """The server names three of them before anything else; it's asked for more than top_k, so enough tokens are left."""

    def padded(body: dict[str, Any]) -> tuple[int, Any]:
        status, said = vllm["POST /v1/completions"]({**body, "prompt_logprobs": min(body["prompt_logprobs"] - 3, 6)})
        for place in said["choices"][0]["prompt_logprobs"][1:]:
            place |= {str(49_152 + extra): {"logprob": -5.0} for extra in range(3)}
        return status, said

    able = teacher(serve({**vllm, "POST /v1/completions": padded}).url)
    row, position = batch.positions.nonzero().tolist()[0]
    expected = model(batch.input_ids[row, : position + 1].tolist())[:5]
    assert able.score_tokens(batch).ids[0].tolist() == [token for token, _ in expected]


def test_a_server_that_adds_a_token_is_refused(serve: Make, vllm: Any, teacher: Make) -> None:
    """The same log-probabilities, one place later."""
    answer = vllm["POST /v1/completions"]

    def with_bos(body: dict[str, Any]) -> tuple[int, Any]:
        return answer({**body, "prompt": [1, *body["prompt"]]})

    with pytest.raises(UserError, match=r"aren't about the \d+ token ids that were sent: it added or changed tokens"):
        teacher(serve({**vllm, "POST /v1/completions": with_bos}).url).to(torch.device("cpu"))


def test_a_row_too_long_for_the_server_is_refused_with_what_it_said(
    serve: Make, vllm: Any, teacher: Make, batch: TokenBatch
) -> None:
    server = serve(dict(vllm))
    able = teacher(server.url).to(torch.device("cpu"))
    message = "This model's maximum context length is 8 tokens."
    server.answers["POST /v1/completions"] = lambda body: (400, {"error": {"message": message, "code": 400}})
    with pytest.raises(UserError, match="maximum context length is 8 tokens") as error:
        able.score_tokens(batch)
    assert "--max-model-len" in str(error.value)


def test_the_identity_is_what_is_served_not_where(serve: Make, vllm: Any, teacher: Make) -> None:
    one, other = teacher(serve(vllm).url), teacher(serve(vllm).url + "/v1/", timeout=5.0, max_concurrency=1)
    assert one.identity() == {"model": "m", "tokenizer": one.tokenizer_fingerprint, "top_k": 5}
    assert one.cache_key() == other.cache_key()
    json.dumps(one.identity())
    assert teacher(serve(vllm).url, top_k=4).cache_key() != one.cache_key()
    # With a name, no server is asked.
    assert teacher("http://127.0.0.1:9", model="other").cache_key() != one.cache_key()


def test_a_server_that_does_not_tell_its_tokenizer_is_used_with_a_warning(
    serve: Make, vllm: Any, teacher: Make, caplog: pytest.LogCaptureFixture
) -> None:
    del vllm["POST /tokenize"]
    able = teacher(serve(vllm).url)
    with caplog.at_level(logging.WARNING):
        able.to(torch.device("cpu")).to(torch.device("cpu"))
    assert [record.getMessage().count("can't be checked") for record in caplog.records] == [1]
