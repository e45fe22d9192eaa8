"""Causal language models as teachers and decoder students use them: hidden states and a head, never all logits at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from lantern_pl.depth_pruning import DepthPruning, keep_layers
from lantern_pl.errors import UserError
from lantern_pl.model_files import load_config, locate
from lantern_pl.signals import OutputHead, TokenBatch

Precision = Literal["auto", "float32", "bfloat16"]


def load_causal_lm(model: str, dtype: torch.dtype, layers: DepthPruning | None = None) -> PreTrainedModel:
    """A causal LM in eval mode, cut to `layers` if given. Raises UserError if it can't be loaded or cut."""
    load_config(model)
    try:
        safe = {"use_safetensors": True, "trust_remote_code": False}
        lm = AutoModelForCausalLM.from_pretrained(locate(model), dtype=dtype, **safe)
    except (OSError, ValueError) as error:
        raise UserError(f"The model {model!r} can't be loaded as a causal LM: {error}") from error
    if layers is not None:
        keep_layers(lm, layers)
    # A checkpoint's own sampling settings would make the greedy decoding used here warn or fail.
    lm.generation_config.update(do_sample=False, temperature=None, top_p=None, top_k=None)
    lm.eval()
    check_output_head(lm)
    return lm


def output_head(lm: PreTrainedModel) -> OutputHead:
    """The model's head with all that the model does to logits: bias, scale, soft cap."""
    linear: Any = lm.get_output_embeddings()
    if type(linear) is not nn.Linear:
        raise UserError(
            f"The output head of {type(lm).__name__} is a {type(linear).__name__}, a plain linear layer is needed. "
            "If it is a LoRA target, leave the head out of lora.target_modules."
        )
    config = lm.config.get_text_config()
    scale = 1.0
    for attribute, invert in (("logit_scale", False), ("lm_head_multiplier", False), ("logits_scaling", True)):
        value = getattr(config, attribute, None)
        if value is not None:
            scale *= 1 / value if invert else value
    softcap = getattr(config, "final_logit_softcapping", None)
    return OutputHead(linear.weight, linear.bias, softcap=softcap, scale=scale)


@torch.no_grad()
def check_output_head(lm: PreTrainedModel) -> None:
    """Raise UserError unless hidden states and `output_head` give the model's own logits, on a few tokens.

    A model that transforms its logits in a way that isn't known here would otherwise be trained on wrong ones, silently.
    """
    head = output_head(lm)
    ids = torch.arange(8, device=head.weight.device).remainder(lm.config.get_text_config().vocab_size)[None]
    hidden = lm.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    logits = nn.functional.linear(hidden, head.weight, head.bias).float() * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    expected = lm(input_ids=ids, use_cache=False).logits.float()
    tolerance = 1e-3 if head.weight.dtype == torch.float32 else 5e-2
    if not torch.allclose(logits, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())):
        raise UserError(
            f"{type(lm).__name__} changes its logits in a way that lantern-pl doesn't know: hidden states and head give "
            f"other logits (largest difference {float((logits - expected).abs().max()):.3g}). It can't be used."
        )


def hidden_at_positions(lm: nn.Module, batch: TokenBatch) -> Tensor:
    """The backbone's last hidden states [N, d] at the batch's supervised positions."""
    return layers_at_positions(lm, batch, [])[0]


def layers_at_positions(lm: nn.Module, batch: TokenBatch, layers: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """The backbone's last hidden states [N, d] at the batch's supervised positions, and those of `layers`, in one pass.

    Layers are counted as transformers counts `hidden_states`: 0 is the embeddings' output, -1 the last layer's.
    """
    backbone: Any = lm.get_decoder()  # type: ignore[operator]
    out = backbone(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        use_cache=False,
        output_hidden_states=bool(layers),
    )
    return out.last_hidden_state[batch.positions], [out.hidden_states[layer][batch.positions] for layer in layers]


@dataclass(frozen=True)
class Generated:
    """A completion. `tokens`: how many were generated; `ended`: whether the model ended it, or the length limit did."""

    text: str
    tokens: int
    ended: bool


def generate(lm: Any, tokenizer: Any, prompts: list[str], max_new_tokens: int) -> list[Generated]:
    """Greedy completions of prompts that were already put through the chat template."""
    encoded = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
    stops = stop_tokens(lm, tokenizer)
    answers = complete(lm, encoded, max_new_tokens, stops, tokenizer.pad_token_id)
    texts = ([token for token in ids if token not in stops] for ids in answers)
    return [
        Generated(tokenizer.decode(text, skip_special_tokens=True).strip(), len(ids), ids[-1] in stops)
        for ids, text in zip(answers, texts, strict=True)
    ]


@torch.no_grad()
def complete(
    lm: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stops: Sequence[int],
    pad: int,
    temperature: float = 0.0,
) -> list[list[int]]:
    """Ids that follow each prompt, up to and with the first of `stops`.

    The most probable ones at temperature 0, else drawn by torch's global generator from the model's distribution.
    """
    if not prompts:
        return []
    width = max(map(len, prompts))
    device = next(lm.parameters()).device
    input_ids = torch.full((len(prompts), width), pad, device=device)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(prompts):  # left-padded: generation goes on from the right end
        input_ids[row, width - len(ids) :] = torch.tensor(ids, device=device)
        attention_mask[row, width - len(ids) :] = 1
    # Both are of the model's whole distribution: what its own settings may hold to bend it is off.
    straight = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    drawn = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0, "min_p": None, "typical_p": 1.0}
    out = lm.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stops),
        pad_token_id=pad,
        synced_gpus=False,  # of processes that share a sharded model, each has all of it by now
        **straight,
        **(drawn if temperature else {"do_sample": False}),
    )
    return [_up_to_stop(ids, stops) for ids in out[:, width:].tolist()]


def _up_to_stop(ids: list[int], stops: Sequence[int]) -> list[int]:
    end = next((at for at, token in enumerate(ids) if token in stops), len(ids))
    return ids[: end + 1]


def stop_tokens(lm: Any, tokenizer: Any) -> list[int]:
    """Ids that end an answer: the tokenizer's end of sequence and those of the model's generation config."""
    configured = lm.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({i for i in [*ids, tokenizer.eos_token_id] if i is not None})


def resolve_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on accelerators and float32 on CPU, where bfloat16 is slow without special instructions."""
    if precision == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype: torch.dtype = getattr(torch, precision)
    return dtype
