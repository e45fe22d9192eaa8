"""Heads of many architectures, depth pruning, and generation."""

import dataclasses

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    PhiConfig,
    Qwen3Config,
)

from lantern_pl import causal_lm
from lantern_pl.causal_lm import check_output_head, generate, load_causal_lm, output_head
from lantern_pl.depth_pruning import DepthPruning, keep_layers
from lantern_pl.errors import UserError
from lantern_pl.text import chat_prompt, fingerprint, load_tokenizer

SHAPE = {"vocab_size": 101, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
NEW = SHAPE | {"num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
ARCHITECTURES = {
    "plain, q-norm": Qwen3Config(**NEW, num_key_value_heads=2),
    "soft cap, alternating layers": Gemma2Config(**NEW, num_key_value_heads=2, head_dim=16, final_logit_softcapping=3.0),
    "logits multiplied": CohereConfig(**NEW, num_key_value_heads=2, logit_scale=0.25),
    "logits divided": GraniteConfig(**NEW, num_key_value_heads=2, logits_scaling=8.0),
    "bias on the head": PhiConfig(**NEW),
    "other names": GPT2Config(**SHAPE, n_layer=4, n_embd=64, n_head=4),
    "other names again": GPTNeoXConfig(**NEW),
}


def untrained(config) -> nn.Module:
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config).eval()
    for parameter in lm.parameters():
        nn.init.normal_(parameter, std=0.3)
    return lm


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_hidden_states_and_head_give_the_models_own_logits(name: str) -> None:
    check_output_head(untrained(ARCHITECTURES[name]))


@pytest.mark.parametrize(
    "wrong",
    [{"scale": 1.1}, {"softcap": 3.0}, {"bias": torch.full((101,), 0.5).scatter(0, torch.tensor([3]), 2.0)}],
    ids=str,
)
def test_a_model_that_changes_its_logits_otherwise_is_refused(wrong: dict, monkeypatch) -> None:
    lm = untrained(ARCHITECTURES["plain, q-norm"])
    real = output_head(lm)
    monkeypatch.setattr(causal_lm, "output_head", lambda _: dataclasses.replace(real, **wrong))
    with pytest.raises(UserError, match="doesn't know"):
        check_output_head(lm)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_depth_pruning_leaves_an_ordinary_model(name: str, tmp_path) -> None:
    lm = untrained(ARCHITECTURES[name])
    keep_layers(lm, DepthPruning(keep=2, choose="even"))
    lm.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.arange(1, 7)[None]
    with torch.no_grad():
        assert torch.allclose(again(ids).logits, lm(ids).logits, atol=1e-4)
        # The key-value cache goes by the new layer numbers.
        cached = lm(ids[:, :-1], use_cache=True)
        step = lm(ids[:, -1:], past_key_values=cached.past_key_values).logits[:, -1]
        assert torch.allclose(step, lm(ids).logits[:, -1], atol=1e-4)


@pytest.mark.parametrize(
    ("keep", "choose", "expected"),
    [(3, "first", [0, 1, 2]), (4, "even", [0, 10, 19, 29]), (1, "even", [0]), (30, "even", [*range(30)])],
)
def test_kept_layers(keep: int, choose: str, expected: list[int]) -> None:
    assert DepthPruning(keep, choose).indices(30) == expected


@pytest.mark.parametrize("keep", [0, -1, 31])
def test_more_layers_than_there_are_is_refused(keep: int) -> None:
    with pytest.raises(UserError, match="30 layers"):
        DepthPruning(keep).indices(30)


def test_generation_does_not_depend_on_the_batch(small_lm: str) -> None:
    lm, tokenizer = load_causal_lm("embedded:smollm2-135m", torch.float32), load_tokenizer(small_lm)
    prompts = [chat_prompt(tokenizer, q) for q in ("Name three fruits.", "What is the capital of France? One word.")]
    together = generate(lm, tokenizer, prompts, 12)
    assert together == [generate(lm, tokenizer, [prompt], 12)[0] for prompt in prompts]
    assert "Paris" in together[1].text


def test_a_completion_says_whether_the_model_has_ended_it(small_lm: str) -> None:
    lm, tokenizer = load_causal_lm(small_lm, torch.float32), load_tokenizer(small_lm)
    (cut,) = generate(lm, tokenizer, ["Java and"], 3)
    assert (cut.ended, cut.tokens) == (False, 3)
    first = tokenizer.encode(tokenizer.decode(lm(torch.tensor([tokenizer.encode("Java and")])).logits[0, -1].argmax()))
    lm.generation_config.eos_token_id = first
    (ended,) = generate(lm, tokenizer, ["Java and"], 3)
    assert (ended.ended, ended.tokens, ended.text) == (True, 1, "")


def test_fingerprints_tell_tokenizers_apart(small_lm: str) -> None:
    smollm, minilm = load_tokenizer("embedded:smollm2-135m"), load_tokenizer("embedded:minilm-l6")
    assert fingerprint(smollm) == fingerprint(load_tokenizer(small_lm))
    assert fingerprint(smollm) != fingerprint(minilm)
