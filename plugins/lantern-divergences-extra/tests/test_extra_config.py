"""The config of this distribution trains a student, and explains its keys."""

import json
from pathlib import Path

from lantern_pl.cli import main
from lantern_pl.data.sample import make_pairs

CONFIG = Path(__file__).parent.parent / "configs" / "skew_kl.yaml"


def test_a_student_learns_by_the_config(tmp_path):
    data, run_dir = tmp_path / "pairs.jsonl", tmp_path / "run"
    data.write_text("".join(json.dumps(row) + "\n" for row in make_pairs(24, seed=0)))
    code = main(
        [
            "fit",
            f"--config={CONFIG}",
            f"--run_dir={run_dir}",
            f"--data.path={data}",
            "--data.max_length=200",
            "--data.batch_size=1",
            "--data.eval_batch_size=1",
            "--data.val_fraction=0.2",
            "--model.layers.keep=2",
            "--model.max_new_tokens=2",
            "--model.teacher.max_new_tokens=2",
            "--model.generate_pairs=1",
            "--trainer.limit_train_batches=1",
            "--trainer.limit_val_batches=1",
            "--trainer.num_sanity_val_steps=1",
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
        ]
    )
    assert code == 0
    metrics = json.loads((run_dir / "student" / "manifest.json").read_text())["metrics"]
    for name in ("skew_kl", "skew_reverse_kl"):
        assert 0 < metrics["trained"][name] < metrics["untrained"][name]


def test_every_key_is_explained():
    lines = CONFIG.read_text().splitlines()
    structure = {"class_path", "model", "data", "trainer", "init_args", "- divergence", "weight"}
    unexplained = [
        line
        for above, line in zip(["", *lines], lines, strict=False)
        if ":" in line and not line.strip().startswith("#") and line.strip().split(":")[0] not in structure
        if " #" not in line and not above.strip().startswith("#")
    ]
    assert unexplained == []
