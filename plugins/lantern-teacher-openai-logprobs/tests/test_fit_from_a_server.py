"""The config of this distribution runs, and explains its keys."""

import json
import subprocess
import sys
from pathlib import Path

from lantern_pl.cli import main
from lantern_pl.data.sample import make_pairs

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
