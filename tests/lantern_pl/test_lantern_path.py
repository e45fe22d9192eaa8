"""`make lantern`, reduced: the same commands with the same configs on a smaller model and fewer pairs."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support import REPOSITORY, Ran
from test_configs import CONFIGS

SMALLER = {
    "base": ["--pairs=96"],
    "more": ["--pairs=24"],
    "held_out": ["--pairs=8"],
    # Four layers that are trained whole learn in a minute to end what they begin.
    "3_teacher": ["--model.model={small_lm}", "--model.lora=null"],
    "4_label_in_house": ["--limit=12"],
    "5_decoder": ["--model.layers.keep=3"],
    "8_two_stage": ["--model.layers.keep=2"],
    "9_compare": ["--explain_pairs=2", "--max_length=256"],
    "10_audit": ["--swap_pairs=2", "--injections.pairs=1", "--bootstrap=200"],
    "export": ["--max_pairs=4"],
}
TRAINING = ["--trainer.limit_val_batches=1", "--trainer.num_sanity_val_steps=0", "--trainer.enable_progress_bar=false"]
DECODER = ["--data.max_length=256", "--model.generate_pairs=1", "--model.max_new_tokens=8"]


TESTING = ["--evaluation.explain_pairs=2", "--evaluation.bootstrap=100", "--trainer.enable_progress_bar=false"]
COMMANDS = "data|label|review|fit|test|compare|audit|export|report"


def commands() -> list[list[str]]:
    """What `make lantern` runs."""
    said = subprocess.run(["make", "-n", "lantern"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    return [line.split()[1:] for line in said.splitlines() if re.search(rf"/lantern ({COMMANDS}) ", line)]


def step_of(command: list[str]) -> str:
    """What `SMALLER` calls it: its config, or the data that it makes, or the command itself."""
    if "--config" in command:
        return Path(command[command.index("--config") + 1]).stem
    return Path(command[-1]).name if command[0] == "data" else command[0]


def test_every_config_of_the_path_is_run_in_its_order() -> None:
    run = list(dict.fromkeys(step_of(command) for command in commands() if "--config" in command))
    names = [path.stem for path in (CONFIGS / "lantern").glob("*.yaml")]
    assert run == sorted(names, key=lambda name: int(name.partition("_")[0]))
    assert len(run) == 10


def test_heads_of_the_configs_name_the_same_commands() -> None:
    heads = [
        line.lstrip("# ").strip().split()[1:]
        for path in (CONFIGS / "lantern").glob("*.yaml")
        for line in path.read_text().splitlines()
        if line.startswith("#   lantern ")
    ]
    assert sorted(heads) == sorted(command for command in commands() if command[0] not in ("export", "report"))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_whole_path_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lantern: Callable[..., Ran], small_lm: str
) -> None:
    (tmp_path / "configs").symlink_to(CONFIGS)
    monkeypatch.chdir(tmp_path)
    said = ""
    for command in commands():
        step = step_of(command)
        more = [option.format(small_lm=small_lm) for option in SMALLER.get(step, [])]
        more += {"fit": TRAINING, "test": TESTING}.get(command[0], [])
        if command[0] in ("fit", "test") and "encoder" not in step:
            more += DECODER
        ran = lantern(*command, *more)
        assert ran.code == 0, f"{' '.join(command)}: {ran.err}"
        if command[0] == "compare":
            said = ran.out
    labelled = [
        json.loads((tmp_path / f"labels/lantern/{name}/report.json").read_text()) for name in ("black_box", "levels")
    ]
    assert [report["labelled"] for report in labelled] == [96, 24]
    seed = (tmp_path / "labels/lantern/black_box/seed.jsonl").read_text().splitlines()
    assert 48 < len(seed) < 96
    models = json.loads((tmp_path / "runs/lantern/comparison.json").read_text())["models"]
    assert len(models) == 5
    assert all(name in said for name in models)
    sizes = [figures["parameters"] for figures in models.values()]
    assert sizes[1] > sizes[2] > sizes[3]

    runs = tmp_path / "runs" / "lantern"
    for name in ("decoder", "encoder", "two_stage"):
        tested = json.loads((runs / name / "test.json").read_text())
        assert {"student", "teacher"} <= set(tested["models"])
    assert json.loads((runs / "decoder" / "test.json").read_text())["models"]["sft"]
    assert json.loads((runs / "encoder" / "audit.json").read_text())["findings"]
    page = (runs / "report.html").read_text()
    for shown in ("reliability", "Audit", "pairs per second", "held_out"):
        assert shown.lower() in page.lower(), shown
    assert (tmp_path / "exported" / "lantern" / "encoder" / "onnx" / "model_int8.onnx").is_file()
    assert (tmp_path / "exported" / "lantern" / "decoder" / "model.safetensors").is_file()
