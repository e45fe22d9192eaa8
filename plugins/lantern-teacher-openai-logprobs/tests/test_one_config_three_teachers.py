"""One config, and the model in this process, its signals on disk, or a server of it: only `teacher` changes."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from lantern_pl.cli import main
from lantern_pl.text import load_tokenizer

MODEL = "embedded:smollm2-135m"
K = 20


@pytest.fixture
def student(tmp_path: Path) -> str:
    """Random weights, the same for all three."""
    tokenizer = load_tokenizer(MODEL)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    return str(tmp_path / "student")


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    """Short ones: each supervised token is a request to llama.cpp's server."""
    rows = [
        {
            "pair_id": f"p{number}",
            "job_id": f"j{number}",
            "candidate_id": f"c{number}",
            "job_text": f"Must have: {skill}.",
            "candidate_text": f"Four years of {skill}.",
            "level": "high",
            "explanation": f"Has {skill}.",
        }
        for number, skill in enumerate(("Python", "SQL", "nursing", "Rust"))
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "pairs.jsonl")


def losses(folder: Path, config: dict[str, Any], teacher: dict[str, Any]) -> list[float]:
    """The divergence of each step."""
    folder.mkdir()
    config["model"]["init_args"]["teacher"] = teacher
    (folder / "fit.yaml").write_text(yaml.safe_dump({**config, "run_dir": str(folder / "run")}))
    assert main(["fit", f"--config={folder / 'fit.yaml'}"]) == 0
    with (folder / "run" / "csv" / "version_0" / "metrics.csv").open() as file:
        return [float(row["train/js"]) for row in csv.DictReader(file) if row.get("train/js")]


def test_the_teacher_alone_changes(llama_server: str, student: str, pairs: str, tmp_path: Path) -> None:
    config = {
        "model": {
            "class_path": "lantern_pl.students.DecoderStudent",
            "init_args": {
                "model": student,
                "mixture": [{"divergence": {"class_path": "lantern_pl.divergences.js"}, "weight": 1.0}],
                "cross_entropy": 0.0,
                "generate_pairs": 0,
            },
        },
        "data": {
            "class_path": "lantern_pl.data.PairDataModule",
            "init_args": {
                "path": pairs,
                "val_path": pairs,
                "test_path": pairs,
                "max_length": 160,
                "batch_size": 2,
                "eval_batch_size": 1,
            },
        },
        "trainer": {
            "max_steps": 2,
            "max_epochs": -1,
            "limit_val_batches": 1,
            "num_sanity_val_steps": 1,
            "log_every_n_steps": 1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
        },
    }
    hf = {"class_path": "lantern_pl.teachers.hf", "init_args": {"model": MODEL}}
    served = {"base_url": llama_server, "tokenizer": MODEL, "top_k": K}
    recording = {"teacher": hf, "pairs": pairs, "signals": str(tmp_path / "signals"), "kinds": ["tokens"], "k": K}
    recording |= {"max_length": 160, "log_probs": "f32", "sample": 0}
    (tmp_path / "cache.yaml").write_text(yaml.safe_dump(recording))
    assert main(["cache", f"--config={tmp_path / 'cache.yaml'}"]) == 0
    teachers = {
        "hf": hf,
        "cached": {"class_path": "lantern_pl.teachers.cached", "init_args": {"signals": str(tmp_path / "signals")}},
        "served": {"class_path": "lantern_pl.teachers.openai_logprobs", "init_args": served},
    }
    found = {name: losses(tmp_path / name, config, teacher) for name, teacher in teachers.items()}
    assert [len(values) for values in found.values()] == [2, 2, 2]
    for whole, cached, server in zip(found["hf"], found["cached"], found["served"], strict=True):
        # The tail as one event: a lower bound of the whole.
        assert 0.3 * whole < cached <= whole + 1e-6
        # llama.cpp rounds activations of the same weights to 8 bits.
        assert server == pytest.approx(cached, abs=0.03)
