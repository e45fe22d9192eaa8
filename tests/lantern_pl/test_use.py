"""After a fit: test, validate and predict, and the saved student in other hands."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from support import Ran

from lantern_pl.model_files import weights_identity


@pytest.fixture
def fitted(decoder_config: Path, lantern: Callable[..., Ran]) -> Path:
    ran = lantern("fit", "--config", decoder_config)
    assert ran.code == 0, ran.err
    return decoder_config.parent / "run"


def test_a_decoder_run_leaves_what_a_user_needs(fitted: Path, decoder_config: Path, lantern: Callable[..., Ran]) -> None:
    manifest = json.loads((fitted / "student" / "manifest.json").read_text())
    assert manifest["kind"] == "decoder"
    assert manifest["student"]["layers"] == {"keep": 2, "choose": "first"}
    assert manifest["teacher"]["class"] == "HFTeacher"
    assert manifest["weights"] == weights_identity(str(fitted / "student"))
    assert {"kl", "js", "cross_entropy", "token_accuracy", "rouge_l", "valid_format"} <= set(manifest["metrics"]["trained"])
    assert set(manifest["metrics"]["untrained"]) == set(manifest["metrics"]["trained"])
    assert manifest["data"]["splits"]["train"]["sha256"]
    assert {"torch", "lightning", "transformers"} <= set(manifest["versions"])
    assert (fitted / "curves.png").stat().st_size > 5000
    csv = next((fitted / "csv").rglob("metrics.csv")).read_text().splitlines()
    assert {"train/loss", "train/js", "train/tokens_per_s", "val/kl"} <= set(csv[0].split(","))

    # transformers loads the folder in a process where lantern_pl can't be imported, and gets the trained weights.
    checkpoint = torch.load(fitted / "checkpoints" / "last.ckpt", weights_only=True)
    embedding = checkpoint["state_dict"]["lm.model.embed_tokens.weight"]
    script = (
        "import sys; sys.modules['lantern_pl'] = None\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "lm, tokenizer = AutoModelForCausalLM.from_pretrained('.'), AutoTokenizer.from_pretrained('.')\n"
        "text = tokenizer.apply_chat_template([{'role': 'user', 'content': 'Hello'}], tokenize=False)\n"
        "lm.generate(**tokenizer(text, return_tensors='pt'), max_new_tokens=2)\n"
        "print(lm.config.num_hidden_layers, float(lm.get_input_embeddings().weight.detach().double().sum()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=fitted / "student", capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    layers, total = done.stdout.split()
    assert layers == "2"
    assert float(total) == pytest.approx(float(embedding.double().sum()), rel=1e-6)

    # The student teaches a further stage, and tests and predictions run from its checkpoint and its folder.
    for arguments in (
        ["fit", f"--model.teacher.model={fitted}/student", f"--model.model={fitted}/student", "--model.layers.keep=1",
         f"--run_dir={fitted.parent}/stage2"],
        ["test", "--ckpt_path=last", "--trainer.limit_test_batches=1"],
        ["validate", f"--model.model={fitted}/student", "--model.layers=null"],
        ["predict", "--ckpt_path=last", "--prediction.limit=6", "--data.eval_batch_size=3"],
    ):  # fmt: skip
        ran = lantern(arguments[0], "--config", decoder_config, *arguments[1:])
        assert ran.code == 0, ran.err
    assert json.loads((fitted / "test.json").read_text())["loss"]["kl"] > 0
    records = pq.read_table(fitted / "predictions" / "part-00000.parquet").to_pylist()
    in_file = [json.loads(line)["pair_id"] for line in Path(str(pairs_path(decoder_config))).read_text().splitlines()[:6]]
    assert [record["pair_id"] for record in records] == in_file
    assert all(isinstance(record["text"], str) for record in records)


def test_an_encoder_run_predicts_levels(encoder_config: Path, lantern: Callable[..., Ran]) -> None:
    for arguments in (["fit"], ["test", "--ckpt_path=last"], ["predict", "--ckpt_path=last"]):
        ran = lantern(arguments[0], "--config", encoder_config, *arguments[1:])
        assert ran.code == 0, ran.err
    run = encoder_config.parent / "run"
    loss = json.loads((run / "test.json").read_text())["loss"]
    assert {"accuracy", "macro_f1", "quadratic_kappa", "ece", "kl"} <= set(loss)
    records = pq.read_table(run / "predictions" / "part-00000.parquet").to_pylist()
    assert len(records) == 48
    for record in records:
        assert sum(record["level_probs"].values()) == pytest.approx(1, abs=1e-5)
        assert record["level"] == max(record["level_probs"], key=record["level_probs"].get)


def pairs_path(config: Path) -> str:
    import yaml

    return str(yaml.safe_load(config.read_text())["data"]["init_args"]["path"])
