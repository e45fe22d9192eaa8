"""Every config in configs/ runs, in the order that its own comments give, and explains its keys."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from support import OPEN_DATA, REPOSITORY, Ran

CONFIGS = REPOSITORY / "configs"
FEW_STEPS = [
    "--trainer.limit_train_batches=1",
    "--trainer.limit_val_batches=1",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
    "--data.batch_size=1",
    "--data.eval_batch_size=1",
]
SHORT_TEXTS = ["--model.max_new_tokens=4", "--model.generate_pairs=1"]


def commands_of(config: Path) -> list[list[str]]:
    """The `lantern` commands in the comment at the head of a config."""
    lines = [line.lstrip("# ").strip() for line in config.read_text().splitlines() if line.startswith("#")]
    return [line.split()[1:] for line in lines if line.startswith("lantern ")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a fresh clone: configs beside nothing else."""
    (tmp_path / "configs").symlink_to(CONFIGS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def few_steps(command: list[str]) -> list[str]:
    if command[0] != "fit":
        return command
    decoder = "encoder.yaml" not in command[-1]
    return [*command, *FEW_STEPS, *(SHORT_TEXTS if decoder else [])]


@pytest.mark.parametrize(
    "name",
    [
        "quickstart.yaml",
        "encoder.yaml",
        pytest.param("decoder.yaml", marks=pytest.mark.slow),
        pytest.param("two_stage/stage1.yaml", marks=pytest.mark.slow),
    ],
)
def test_the_commands_at_the_head_of_a_config_run(name: str, folder: Path, lantern: Callable[..., Ran]) -> None:
    """decoder.yaml's commands train teacher.yaml first, stage1.yaml's train stage 2 after it."""
    commands = commands_of(CONFIGS / name)
    assert any(name in " ".join(command) for command in commands)
    for command in commands:
        ran = lantern(*few_steps(command))
        assert ran.code == 0, ran.err
        if command[0] == "fit":
            run_dir = folder / yaml.safe_load(Path(command[-1]).read_text())["run_dir"]
            for left in (
                "config.yaml",
                "csv",
                "tensorboard",
                "checkpoints/last.ckpt",
                "curves.png",
                "student/manifest.json",
            ):
                assert (run_dir / left).exists(), left


SMOLLM = "embedded:smollm2-135m"


def on_tiny(command: list[str], tiny: Path) -> list[str]:
    """The command on few pairs, with a tiny model in SmolLM2's place and no more layers than that has."""
    if command[0] == "data":
        return [*command[: command.index("--pairs") + 1], "24", *command[command.index("--pairs") + 2 :]]
    if command[0] == "cache":
        return [*command, f"--teacher.init_args.model={tiny}"]
    model = yaml.safe_load(Path(command[-1]).read_text())["model"]
    options = few_steps(command) if "Decoder" in model["class_path"] else [*command, *FEW_STEPS]
    given = model["init_args"]
    if given["model"] == SMOLLM:
        options.append(f"--model.model={tiny}")
    if given.get("teacher") and given["teacher"].get("init_args", {}).get("model") == SMOLLM:
        options.append(f"--model.teacher.model={tiny}")
    if given.get("layers"):
        options.append(f"--model.layers.keep={1 if 'stage2' in command[-1] else 2}")
    if "on_policy" in given:
        options += ["--model.on_policy.fraction=1", "--model.on_policy.max_new_tokens=2"]
    return options


@pytest.mark.parametrize("name", ["decoder.yaml", "two_stage/stage1.yaml", "signals/1_cache.yaml"])
def test_the_commands_of_the_longer_ways_fit_together(
    name: str, folder: Path, lantern: Callable[..., Ran], tiny_lm: Path
) -> None:
    """As the slow tests do it with the models that the configs name."""
    for command in commands_of(CONFIGS / name):
        ran = lantern(*on_tiny(command, tiny_lm))
        assert ran.code == 0, (command, ran.err)
        if command[0] == "fit":
            run_dir = folder / yaml.safe_load(Path(command[-1]).read_text())["run_dir"]
            assert (run_dir / "student" / "manifest.json").exists()


@pytest.mark.skipif(not OPEN_DATA.exists(), reason="the open data set isn't beside this repository")
def test_open_annotations_train_the_quickstarts_student_by_the_path_alone(
    folder: Path, lantern: Callable[..., Ran], tiny_lm: Path
) -> None:
    ran = lantern(*on_tiny(["fit", "--config", "configs/quickstart.yaml"], tiny_lm), f"--data.path={OPEN_DATA}")
    assert ran.code == 0, ran.err


def test_every_config_is_among_those_that_are_run() -> None:
    # Those of the whole path have a test of their own, test_lantern_path.py, those of signals the next one, and those of
    # several processes students/test_sharded_fit.py.
    run = {word for name in ("quickstart.yaml", "encoder.yaml", "decoder.yaml", "two_stage/stage1.yaml")
           for command in commands_of(CONFIGS / name) for word in command if word.endswith(".yaml")}  # fmt: skip
    assert run == {
        str(path.relative_to(REPOSITORY))
        for path in CONFIGS.rglob("*.yaml")
        if path.parent.name not in ("lantern", "signals", "scale")
    }


@pytest.mark.slow
def test_one_signal_set_feeds_both_students(folder: Path, lantern: Callable[..., Ran], small_lm: str) -> None:
    """The commands of configs/signals, on fewer pairs and with a teacher of four layers."""
    commands = commands_of(CONFIGS / "signals" / "1_cache.yaml")
    assert [command[-1] for command in commands[1:]] == [
        str(path.relative_to(REPOSITORY)) for path in sorted((CONFIGS / "signals").glob("*.yaml"))
    ]
    for command in commands:
        if command[0] == "data":
            command[command.index("96")] = "24"
        if command[0] == "cache":
            command += ["--teacher.init_args.model", small_lm]
        few = [word for word in few_steps(command) if "3_encoder" not in str(command) or word not in SHORT_TEXTS]
        if "4_on_policy" in str(command):
            few += ["--model.on_policy.fraction=1", "--model.on_policy.max_new_tokens=2"]
        ran = lantern(*few)
        assert ran.code == 0, (command, ran.err)
    manifest = json.loads((folder / "signals" / "quickstart" / "manifest.json").read_text())
    assert sum(shard["examples"] for shard in manifest["shards"]) == 24
    for name in ("signals_decoder", "signals_encoder", "on_policy"):
        assert (folder / "runs" / name / "student" / "manifest.json").exists()


def test_every_key_is_explained_where_it_first_matters() -> None:
    """Each key of any config has a comment above it or beside it in at least one config."""
    explained, used = set(), set()
    for path in CONFIGS.rglob("*.yaml"):
        lines = path.read_text().splitlines()
        for above, line in zip(["", *lines], lines, strict=False):
            key = line.strip().removeprefix("- ").lstrip("{").split(":")[0]
            if line.strip().startswith("#") or ":" not in line:
                continue
            used.add(key)
            if above.strip().startswith("#") or " #" in line:
                explained.add(key)
    structure = {"class_path", "init_args", "model", "data", "trainer", "divergence"}
    structure |= {"SmolLM2", "in-house teacher", "decoder", "2nd-stage decoder", "encoder"}  # names in a table
    assert used - explained - structure == set()


@pytest.mark.skipif(not OPEN_DATA.exists(), reason="the open data set isn't beside this repository")
@pytest.mark.parametrize("name", [pytest.param("quickstart.yaml", marks=pytest.mark.slow), "encoder.yaml"])
def test_open_annotations_train_both_students_by_the_path_alone(
    name: str, folder: Path, lantern: Callable[..., Ran]
) -> None:
    ran = lantern(*few_steps(["fit", "--config", f"configs/{name}"]), f"--data.path={OPEN_DATA}")
    assert ran.code == 0, ran.err


@pytest.mark.parametrize("given", ["1", "1.0", "0.5"])
def test_one_batch_is_not_all_batches(given: str, lantern: Callable[..., Ran]) -> None:
    ran = lantern("fit", "--config", CONFIGS / "quickstart.yaml", f"--trainer.limit_train_batches={given}", "--print_config")
    assert f"limit_train_batches: {given}\n" in ran.out, ran.err
