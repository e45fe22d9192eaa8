"""Causal language models as teachers and decoder students use them: hidden states and a head, never all logits at once."""

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
        lm = AutoModelForCausalLM.from_pretrained(locate(model), dtype=dtype, trust_remote_code=False)
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
    backbone: Any = lm.get_decoder()  # type: ignore[operator]
    out = backbone(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    hidden: Tensor = out.last_hidden_state
    return hidden[batch.positions]


@torch.no_grad()
def generate(lm: Any, tokenizer: Any, prompts: list[str], max_new_tokens: int) -> list[str]:
    """Greedy completions of prompts that were already put through the chat template."""
    if not prompts:
        return []
    encoded = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
    width = max(len(ids) for ids in encoded)
    device = next(lm.parameters()).device
    input_ids = torch.full((len(encoded), width), tokenizer.pad_token_id, device=device)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(encoded):  # left-padded: generation goes on from the right end
        input_ids[row, width - len(ids) :] = torch.tensor(ids, device=device)
        attention_mask[row, width - len(ids) :] = 1
    out = lm.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=stop_tokens(lm, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )
    return [text.strip() for text in tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)]


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
