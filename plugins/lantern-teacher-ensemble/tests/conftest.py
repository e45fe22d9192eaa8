"""What the tests share: no hub, quiet threads, and small models with SmolLM2's tokenizer."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_lms(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Folders of two causal LMs of random weights, of different widths."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from lantern_pl.text import load_tokenizer

    tokenizer = load_tokenizer("embedded:smollm2-135m")

    def write(width: int) -> str:
        folder: Path = tmp_path_factory.mktemp("models") / f"tiny-{width}"
        torch.manual_seed(width)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            # Large enough for distributions that aren't all but uniform.
            initializer_range=0.5,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return write(16), write(24)
