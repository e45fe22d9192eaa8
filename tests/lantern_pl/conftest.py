"""Models of a few thousand weights with real tokenizers: for what depends on the machinery, not on the weights."""

from pathlib import Path

import pytest
from small_configs import save_with_tokenizer, write_decoder_config, write_encoder_config, write_pairs

SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a causal LM of random weights and SmolLM2's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from lantern_pl.text import load_tokenizer

    tokenizer = load_tokenizer("embedded:smollm2-135m")
    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZE,
        vocab_size=len(tokenizer),
        num_key_value_heads=1,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-lm"
    return save_with_tokenizer(LlamaForCausalLM(config), "embedded:smollm2-135m", folder)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BERT of random weights and MiniLM's tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    from lantern_pl.text import load_tokenizer

    torch.manual_seed(0)
    vocabulary = len(load_tokenizer("embedded:minilm-l6"))
    config = BertConfig(**SIZE, vocab_size=vocabulary, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    folder = tmp_path_factory.mktemp("models") / "tiny-encoder"
    return save_with_tokenizer(BertModel(config), "embedded:minilm-l6", folder)


@pytest.fixture
def tiny_decoder_config(tmp_path: Path, tiny_lm: Path, pairs_file: Path) -> Path:
    """A config of a decoder student with a teacher that runs two steps in a second or two."""
    return write_decoder_config(tmp_path, tiny_lm, pairs_file)


@pytest.fixture
def tiny_encoder_config(tmp_path: Path, tiny_encoder: Path, pairs_file: Path) -> Path:
    """A config of an encoder student that runs two steps in a second."""
    return write_encoder_config(tmp_path, tiny_encoder, pairs_file, max_length=128, batch_size=6, dropout=0.0)


@pytest.fixture(scope="session")
def encoder_student(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an encoder student with random weights."""
    import torch

    from lantern_pl.pair_classifier import new_classifier, write_classifier
    from lantern_pl.text import load_tokenizer

    folder = tmp_path_factory.mktemp("students") / "encoder"
    folder.mkdir()
    torch.manual_seed(1)
    classifier = new_classifier(str(tiny_encoder), ["low", "medium", "high"], "mean", 1, 0.0, None)
    for parameter in classifier.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=1.0)  # levels that differ from pair to pair
    write_classifier(classifier.eval(), load_tokenizer(str(tiny_encoder)), folder)
    return folder


@pytest.fixture(scope="session")
def many_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 pairs of texts of different lengths, without annotations."""
    from lantern_pl.data.sample import make_pairs

    rows = [{name: row[name] for name in ("pair_id", "job_text", "candidate_text")} for row in make_pairs(200, seed=3)]
    for number, row in enumerate(rows):
        row["candidate_text"] = row["candidate_text"][: 20 + 7 * (number * 37 % 50)]
    return write_pairs(tmp_path_factory.mktemp("data") / "many.jsonl", rows)
