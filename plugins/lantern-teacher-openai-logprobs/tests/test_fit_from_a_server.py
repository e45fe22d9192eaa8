"""The config of this distribution runs, and explains its keys."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from lantern_teacher_openai_logprobs.teacher import OpenAILogprobsTeacher

from lantern_pl.cli import main
from lantern_pl.data.featurize import DecoderFeaturizer
from lantern_pl.data.records import read_pairs
from lantern_pl.data.sample import make_pairs
from lantern_pl.signals import TopK
from lantern_pl.tasks import Task
from lantern_pl.teachers.from_disk import CachedTeacher
from lantern_pl.text import load_tokenizer

CONFIG = Path(__file__).parent.parent / "configs" / "openai_logprobs.yaml"


def test_a_student_learns_from_a_server(llama_server: str, tmp_path: Path) -> None:
    data, run_dir = tmp_path / "pairs.jsonl", tmp_path / "run"
    # Short answers: each of their tokens is a request.
    rows = [{**row, "explanation": "Meets Python."} for row in make_pairs(24, seed=0)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = main(
        [
            "fit",
            f"--config={CONFIG}",
            f"--run_dir={run_dir}",
            f"--data.path={data}",
            "--data.max_length=150",
            "--data.batch_size=1",
            "--data.eval_batch_size=1",
            "--data.val_fraction=0.2",
            f"--model.teacher.base_url={llama_server}",
            "--model.layers.keep=2",
            "--model.max_new_tokens=2",
            "--model.generate_pairs=1",
            "--trainer.limit_train_batches=1",
            "--trainer.limit_val_batches=1",
            "--trainer.num_sanity_val_steps=1",
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
        ]
    )
    assert code == 0
    manifest = json.loads((run_dir / "student" / "manifest.json").read_text())
    assert manifest["steps"] == 1
    assert manifest["teacher"]["class"] == "OpenAILogprobsTeacher"
    assert (manifest["teacher"]["model"], manifest["teacher"]["top_k"]) == ("smollm2-135m-q4_1", 20)
    assert "127.0.0.1" not in json.dumps(manifest["teacher"])
    assert 0 < manifest["metrics"]["trained"]["kl"] < manifest["metrics"]["untrained"]["kl"]


def test_what_a_server_says_is_recorded_and_learned_from_without_it(llama_server: str, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    rows = [{**row, "explanation": "Meets Python."} for row in make_pairs(24, seed=0)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    teacher = {"base_url": llama_server, "tokenizer": "embedded:smollm2-135m", "top_k": 8}
    config = tmp_path / "cache.yaml"
    config.write_text(
        json.dumps(
            {
                "teacher": {"class_path": "lantern_pl.teachers.openai_logprobs", "init_args": teacher},
                "pairs": str(data),
                "signals": str(tmp_path / "signals"),
                "max_length": 150,
                "k": 8,
                "log_probs": "f32",
                "batch_size": 2,
                "limit": 4,
                "sample": 1,
            }
        )
    )
    assert main(["cache", f"--config={config}"]) == 0
    cached = CachedTeacher(str(tmp_path / "signals"))
    assert cached.capabilities == {"score_tokens"}
    online = OpenAILogprobsTeacher(**teacher, max_concurrency=1)
    featurizer = DecoderFeaturizer(load_tokenizer("embedded:smollm2-135m"), Task(), 150)
    batch = featurizer.collate([featurizer.encode(pair) for pair in read_pairs(data, Task())[2:4]]).tokens
    found, expected = cached.score_tokens(batch), online.score_tokens(batch)
    assert isinstance(found, TopK)
    torch.testing.assert_close(found.tail_log_mass, expected.tail_log_mass, atol=0.02, rtol=0.02)
    # llama.cpp's rounding depends on what else it works on.
    torch.testing.assert_close(found.log_probs, expected.log_probs.sort(-1, descending=True).values, atol=0.05, rtol=0.02)


def test_a_teacher_that_is_not_there_ends_the_command_with_a_message(tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in make_pairs(24, seed=0)))
    arguments = [f"--run_dir={tmp_path}/run", f"--data.path={data}", "--model.layers.keep=1", "--trainer.accelerator=cpu"]
    # In a process of its own: Lightning's log handlers hold the stderr of whichever test imported it first.
    command = [sys.executable, "-m", "lantern_pl", "fit", f"--config={CONFIG}"]
    done = subprocess.run(
        [*command, "--model.teacher.base_url=http://127.0.0.1:9", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "No server answers at http://127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_key_is_explained() -> None:
    lines = CONFIG.read_text().splitlines()
    structure = {"class_path", "init_args", "model", "data", "trainer", "- divergence"}
    unexplained = [
        line
        for above, line in zip(["", *lines], lines, strict=False)
        if ":" in line and not line.strip().startswith("#") and line.strip().split(":")[0] not in structure
        if " #" not in line and not above.strip().startswith("#")
    ]
    assert unexplained == []
