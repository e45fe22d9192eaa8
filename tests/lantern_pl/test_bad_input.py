"""Every mistake is one message that names the thing, before any training, and leaves an earlier run's folder as it was."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support import Ran

Refused = Callable[..., str]


@pytest.fixture
def refused(lantern: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Run `lantern fit` where an earlier run is, assert that it's refused as every mistake is, and return the message."""
    from lantern_pl.students.student import Student

    monkeypatch.setattr(Student, "training_step", lambda *_: pytest.fail("it was trained"))
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("seed_everything: 0\n")
    (run / "checkpoints" / "epoch=0-step=9.ckpt").write_text("precious")

    def content() -> dict[str, tuple[bytes, int]]:
        return {
            str(path): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in sorted(tmp_path.glob("run*/**/*"))
            if path.is_file()
        }

    def refuse(config: Path, *arguments: object) -> str:
        before = content()
        ran = lantern("fit", "--config", config, *arguments)
        assert ran.code == 2, ran.err
        assert ran.err.count("lantern: ") == 1
        assert "Traceback" not in ran.err
        assert "usage:" not in ran.err
        assert content() == before
        assert before
        return ran.err.partition("lantern: ")[2]

    return refuse


def assert_names(message: str, *parts: str) -> None:
    for part in parts:
        assert part in message, f"{part!r} isn't in: {message}"


# Data


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without(field: str) -> Callable[[list[dict[str, Any]]], None]:
    def change(rows: list[dict[str, Any]]) -> None:
        del rows[4][field]

    return change


def with_value(field: str, value: Any) -> Callable[[list[dict[str, Any]]], None]:
    def change(rows: list[dict[str, Any]]) -> None:
        rows[4][field] = value

    return change


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        pytest.param(without("job_text"), ["job_text is missing"], id="missing-field"),
        pytest.param(with_value("candidate_text", 7), ["candidate_text", "a number", "expected text"], id="wrong-type"),
        pytest.param(with_value("job_text", " \n"), ["job_text is blank"], id="empty-text"),
        pytest.param(with_value("level", "hgih"), ["level 'hgih'", "'high'"], id="unknown-level"),
        pytest.param(with_value("confidence", 1.5), ["confidence is 1.5", "0 to 1"], id="bad-confidence"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(
    refused: Refused, tiny_decoder_config: Path, pairs_file: Path, tmp_path: Path, change: Any, parts: list[str]
) -> None:
    rows = rows_of(pairs_file)
    change(rows)
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = refused(tiny_decoder_config, "--data.path", path)
    assert_names(message, f"{path}:5: ", *parts)
    # Nothing of the persons' texts.
    assert rows[0]["candidate_text"][:30] not in message


def test_broken_lines_are_named_by_file_and_line(
    refused: Refused, tiny_decoder_config: Path, pairs_file: Path, tmp_path: Path
) -> None:
    lines = pairs_file.read_text().splitlines()
    path = tmp_path / "broken.jsonl"
    path.write_text("\n".join([*lines[:2], lines[2][:-5], *lines[3:6], "[1, 2]"]))
    message = refused(tiny_decoder_config, "--data.path", path)
    assert_names(message, "2 of the rows", f"{path}:3: isn't valid JSON", f"{path}:7: expected an object")


@pytest.mark.parametrize("name", ["path", "val_path", "test_path"])
def test_a_missing_data_file_is_named(refused: Refused, tiny_decoder_config: Path, tmp_path: Path, name: str) -> None:
    message = refused(tiny_decoder_config, f"--data.{name}", tmp_path / "nowhere.jsonl")
    assert_names(message, f"{tmp_path}/nowhere.jsonl isn't there", "lantern data sample")


def test_the_data_is_looked_at_before_any_model_is_loaded(
    refused: Refused, tiny_decoder_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lantern_pl.students.decoder.load_tokenizer", lambda _: pytest.fail("a model was loaded"))
    assert_names(refused(tiny_decoder_config, "--data.path", "nowhere.jsonl"), "nowhere.jsonl")


@pytest.mark.parametrize(
    ("kind", "field", "parts"),
    [
        ("decoder", "explanation", ["has no explanation", "Annotate"]),
        ("decoder", "blank", ["has no explanation", "Annotate"]),
        ("decoder", "level", ["has no level"]),
        ("encoder", "level", ["has no level"]),
        ("encoder", "confidence", ["neither votes nor confidence", "model.teacher", "model.mixture"]),
    ],
)
def test_rows_without_what_is_learned_are_refused(
    refused: Refused,
    request: pytest.FixtureRequest,
    pairs_file: Path,
    tmp_path: Path,
    kind: str,
    field: str,
    parts: list[str],
) -> None:
    path = tmp_path / "unannotated.jsonl"
    drop = {field} if field != "level" else {"level", "confidence"}
    blank = {"explanation": " \n"} if field == "blank" else {}
    rows = [{k: v for k, v in row.items() if k not in drop} | blank for row in rows_of(pairs_file)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = refused(request.getfixturevalue(f"tiny_{kind}_config"), "--data.path", path)
    assert_names(message, "Pair '", *parts)


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_a_length_that_leaves_nothing_to_learn_from_is_refused(
    refused: Refused, request: pytest.FixtureRequest, kind: str
) -> None:
    message = refused(request.getfixturevalue(f"tiny_{kind}_config"), "--data.max_length", 20)
    assert_names(message, "max_length is 20", "needs at least", "or more")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--data.val_fraction=1.5"], ["val_fraction is 1.5"]),
        (["--data.val_fraction=0"], ["no val pairs", "val_path"]),
        (["--data.batch_size=0"], ["batch_size is 0", "at least 1"]),
        (["--data.task.answer=Fit: {level}"], ["task.answer", "explanation"]),
    ],
)
def test_settings_of_the_data_are_checked(
    refused: Refused, tiny_encoder_config: Path, arguments: list[str], parts: list[str]
) -> None:
    assert_names(refused(tiny_encoder_config, *arguments), *parts)


# Models, teachers, losses


@pytest.fixture(scope="session")
def extended_lm(tiny_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny_lm with one token more in its tokenizer."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("extended") / "lm"
    shutil.copytree(tiny_lm, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<job>"])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("other", ["extended_lm", "tiny_encoder"])
def test_a_student_with_another_tokenizer_is_refused(
    refused: Refused, request: pytest.FixtureRequest, tiny_decoder_config: Path, tiny_lm: Path, other: str
) -> None:
    from lantern_pl.text import fingerprint, load_tokenizer

    student = request.getfixturevalue(other)
    message = refused(tiny_decoder_config, "--model.model", student)
    both = [fingerprint(load_tokenizer(str(model))) for model in (tiny_lm, student)]
    assert both[0] != both[1]
    assert_names(message, "different tokenizers", *both)


WEIGHT_OF = "--model.mixture=[{{divergence: {{class_path: lantern_pl.divergences.js}}, weight: {}}}]"
JS_OF = "--model.mixture=[{{divergence: {{class_path: lantern_pl.divergences.js, init_args: {{beta: {}}}}}}}]"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        pytest.param(["--model.model=./nowhere"], ["'./nowhere'", "config.json"], id="model-path"),
        pytest.param(["--model.model=runs/old/student"], ["'runs/old/student'", "config.json"], id="student-path"),
        pytest.param(["--model.model=no-such-model"], ["'no-such-model'", "hub"], id="hub-name"),
        pytest.param(["--model.model=embedded:smolm"], ["'smolm'", "'smollm2-135m'"], id="embedded-name"),
        pytest.param(["--model.teacher.model=./nowhere"], ["'./nowhere'"], id="teacher-path"),
        pytest.param(["--model.teacher.adapter=./nowhere"], ["'./nowhere'", "adapter_config.json"], id="adapter-path"),
        pytest.param(["--model.layers.keep=4"], ["layers.keep is 4", "3 layers", "1 to 3"], id="too-many-layers"),
        pytest.param(["--model.layers.keep=0"], ["layers.keep is 0", "1 to 3"], id="no-layers"),
        pytest.param(["--model.temperature=-1"], ["temperature is -1.0", "above 0"], id="negative-temperature"),
        pytest.param(["--model.temperature=.nan"], ["temperature is nan"], id="temperature-nan"),
        pytest.param(["--model.cross_entropy=-0.5"], ["cross_entropy is -0.5"], id="negative-weight"),
        pytest.param([JS_OF.format(0.0)], ["beta is 0.0", "0 < beta < 1"], id="beta-0"),
        pytest.param([JS_OF.format(1.5)], ["beta is 1.5", "0 < beta < 1"], id="beta-above-1"),
        pytest.param([JS_OF.format(1 - 1e-8)], ["beta is 0.99999999", "at least 1e-06"], id="beta-near-1"),
        pytest.param([WEIGHT_OF.format("-1")], ["mixture.weight is -1.0", "0 or more"], id="weight-below-0"),
        pytest.param([WEIGHT_OF.format(".nan")], ["mixture.weight is nan", "finite"], id="weight-nan"),
        pytest.param([WEIGHT_OF.format("{start: 1, end: -0.5}")], ["mixture.weight is", "end=-0.5"], id="weight-to-below-0"),
        pytest.param(["--model.mixture=[]", "--model.cross_entropy=0"], ["nothing to learn"], id="no-loss"),
        pytest.param(["--model.teacher=null"], ["mixture needs a teacher"], id="no-teacher"),
        pytest.param(
            ["--model.teacher=lantern_pl.teachers.rubric"],
            ["RubricTeacher can't score tokens", "annotate, level_probs", "lantern_pl.teachers.hf"],
            id="teacher-without-logits",
        ),
        pytest.param(
            ["--model.mixture=[{divergence: lantern_pl.divergences.js}, {divergence: lantern_pl.divergences.js}]"],
            ["'js'", "label"],
            id="same-label-twice",
        ),
        pytest.param(
            ["--model.mixture=[{divergence: lantern_pl.divergences.js, label: loss}]"],
            ["'loss'", "other figures", "label"],
            id="label-of-another-figure",
        ),
        pytest.param(["--model.lora.target_modules=[q_prj]"], ["lora", "q_prj"], id="lora-target"),
        pytest.param(["--model.lora.target_modules=[lm_head]"], ["['lm_head']", "output head"], id="lora-on-the-head"),
        pytest.param(["--model.lora.rank=0"], ["lora", "0"], id="lora-rank"),
        pytest.param(["--model.optimization.learning_rate=-1"], ["learning_rate is -1.0"], id="learning-rate"),
        pytest.param(["--model.optimization.warmup=10"], ["warmup is 10.0", "0 to 1"], id="warmup"),
        pytest.param(["--model.optimization.weight_decay=-3"], ["weight_decay is -3.0", "0 or more"], id="weight-decay"),
        pytest.param(["--model.optimization.weight_decay=.inf"], ["weight_decay is inf", "finite"], id="weight-decay-inf"),
        pytest.param(["--model.optimization.betas=[1.5, 2]"], ["betas is [1.5, 2.0]", "below 1"], id="betas"),
        pytest.param(["--model.max_new_tokens=0"], ["max_new_tokens is 0"], id="max-new-tokens"),
    ],
)
def test_a_student_that_cannot_be_is_refused(
    refused: Refused, tiny_decoder_config: Path, arguments: list[str], parts: list[str]
) -> None:
    assert_names(refused(tiny_decoder_config, *arguments), *parts)


def test_the_levels_of_student_and_task_must_be_the_same(refused: Refused, tiny_encoder_config: Path) -> None:
    message = refused(tiny_encoder_config, "--model.levels=[low, high]")
    assert_names(message, "['low', 'medium', 'high']", "['low', 'high']", "model.init_args.levels")


def test_an_encoder_student_is_no_decoders_teacher(
    refused: Refused, tiny_decoder_config: Path, tiny_encoder_config: Path, lantern: Callable[..., Ran], tmp_path: Path
) -> None:
    tested = tmp_path / "tested"
    assert lantern("test", "--config", tiny_encoder_config, "--run_dir", tested).code == 0  # leaves no student
    assert_names(refused(tiny_decoder_config, "--model.teacher.model", tested), str(tested), "config.json")


# Config


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        pytest.param("temperature:", "temprature:", ["model", "'temprature'", "'temperature'"], id="typo-of-an-argument"),
        pytest.param("keep: 2", "kep: 2", ["model.layers", "'kep'", "'keep'"], id="typo-in-a-dataclass"),
        pytest.param("weight: 1.0", "wieght: 1.0", ["model.mixture", "'wieght'", "'weight'"], id="typo-in-a-list"),
        pytest.param("max_steps", "max_stepps", ["'trainer.max_stepps'", "'trainer.max_steps'"], id="typo-in-trainer"),
        pytest.param("run_dir:", "rundir:", ["'rundir'", "'run_dir'"], id="typo-of-a-key"),
        pytest.param("\nmodel:", "\nmodle:", ["'modle", "'model'"], id="typo-of-a-section"),
        pytest.param(
            "  init_args:\n    model",
            "  int_args:\n    model",
            ["model: ", "class_path and init_args"],
            id="typo-of-init_args",
        ),
        pytest.param("keep: 2", "keep: two", ["model.layers.keep", "expected int", "'two'"], id="text-for-a-number"),
        pytest.param("{keep: 2}", "2", ["model.layers", "DepthPruning or null", "2"], id="number-for-a-section"),
        pytest.param("max_steps: 2", "max_steps: many", ["trainer.max_steps", "expected int", "'many'"], id="trainer-type"),
        pytest.param(
            "divergences.js", "divergences.tvdd", ["model.mixture.divergence", "'tvdd'", "'tvd'"], id="unknown-divergence"
        ),
        pytest.param("teachers.hf", "teachers.hff", ["model.teacher", "'hff'", "'hf'"], id="unknown-teacher"),
        pytest.param("students.DecoderStudent", "students.Decoder", ["'Decoder'", "'DecoderStudent'"], id="unknown-class"),
        pytest.param("teachers.hf", "divergences.kl", ["model.teacher", "divergences.kl", "Teacher"], id="no-teacher-class"),
        pytest.param("accelerator: cpu", "accelerator: cqu", ["trainer: ", "'cqu'"], id="unknown-accelerator"),
        pytest.param("{keep: 2}", "{keep: 2", ["decoder.yaml", "line ", "column "], id="broken-yaml"),
        pytest.param("run_dir", "\trun_dir", ["decoder.yaml", "line 1"], id="tab-in-yaml"),
    ],
)
def test_a_mistake_in_a_config_is_named_by_its_key(
    refused: Refused, tiny_decoder_config: Path, old: str, new: str, parts: list[str]
) -> None:
    text = tiny_decoder_config.read_text().replace("    max_new_tokens: 4\n    gen", "    temperature: 1.0\n    gen")
    assert text.count(old) >= 1
    tiny_decoder_config.write_text(text.replace(old, new))
    message = refused(tiny_decoder_config)
    assert_names(message, *parts)
    assert len(message) < 700


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["holds no keys"]),
        ("- model\n- data\n", ["holds no keys"]),
        (None, ["No such file"]),
        (b"\xff\xfe\x00", ["UTF-8"]),
    ],
)
def test_a_config_that_is_none_is_named(
    refused: Refused, tmp_path: Path, text: str | bytes | None, parts: list[str]
) -> None:
    path = tmp_path / "other.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_names(refused(path), f"{path}", *parts)


@pytest.mark.parametrize("below", ["", "/deeper"])
def test_a_run_folder_that_is_a_file_is_refused(
    refused: Refused, tiny_encoder_config: Path, pairs_file: Path, below: str
) -> None:
    message = refused(tiny_encoder_config, "--run_dir", f"{pairs_file}{below}")
    assert_names(message, f"{pairs_file}{below}", "isn't a folder that can be written to")


def test_a_folder_of_other_things_is_not_moved_aside(refused: Refused, tiny_encoder_config: Path, tmp_path: Path) -> None:
    letters = tmp_path / "letters"
    letters.mkdir()
    (letters / "letter.txt").write_text("Dear Sir or Madam")
    assert_names(refused(tiny_encoder_config, "--run_dir", letters), f"'{letters}'", "other things than a run")
    assert [path.name for path in letters.iterdir()] == ["letter.txt"]
    assert not (tmp_path / "letters.1").exists()


@pytest.mark.parametrize("what", ["model", "teacher.model", "teacher.adapter", "data"])
def test_a_run_that_would_move_aside_what_it_reads_is_refused(
    refused: Refused, tiny_decoder_config: Path, tiny_lm: Path, pairs_file: Path, tmp_path: Path, what: str
) -> None:
    own = tmp_path / "run" / ("pairs.jsonl" if what == "data" else "student")
    if what == "data":
        shutil.copy(pairs_file, own)
    else:
        shutil.copytree(tiny_lm, own)
    if what == "teacher.adapter":
        (own / "adapter_config.json").write_text("{}")
        (own / "adapter_model.safetensors").touch()
    key = "data.path" if what == "data" else f"model.{what}"
    # The folder by another name is the same folder.
    (tmp_path / "link").symlink_to(tmp_path / "run")
    message = refused(tiny_decoder_config, f"--{key}", tmp_path / "link" / own.name)
    assert_names(message, *key.split("."), f"'{tmp_path}/link/{own.name}'", "move it aside", "run_dir")


def test_a_resumed_run_may_not_learn_from_the_student_that_it_writes(
    refused: Refused, tiny_encoder_config: Path, checkpoint: Path
) -> None:
    teacher = "--model.teacher={class_path: lantern_pl.teachers.encoder, init_args: {model: %s/student, max_length: 128}}"
    run = checkpoint.parents[1]
    arguments = (teacher % run, "--run_dir", run, "--ckpt_path", checkpoint)
    assert_names(refused(tiny_encoder_config, *arguments), "model.init_args.teacher", "write over it")


def positions(kind: str, folder: Path) -> Path:
    """A folder with a small model that has 64 learned positions."""
    from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, RobertaConfig, RobertaModel

    from lantern_pl.text import load_tokenizer

    tokenizer = load_tokenizer("embedded:smollm2-135m" if kind == "gpt2" else "embedded:minilm-l6")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    if kind == "bert":
        model: Any = BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes))
    elif kind == "roberta":
        config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=66, pad_token_id=1, **sizes)
        model = RobertaModel(config)
    else:
        ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2, **ends)
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_an_encoders_texts_are_no_longer_than_its_positions(
    refused: Refused, tiny_encoder_config: Path, lantern: Callable[..., Ran], tmp_path: Path, kind: str
) -> None:
    model = ("--model.model", positions(kind, tmp_path / kind), "--model.layers=null")
    message = refused(tiny_encoder_config, *model, "--data.max_length=65")
    assert_names(message, "data.init_args.max_length is 65", f"{tmp_path}/{kind}", "64 tokens", "to 64 or less")
    elsewhere = ("--run_dir", tmp_path / "validated")
    ran = lantern("validate", "--config", tiny_encoder_config, *model, *elsewhere, "--data.max_length=64")
    assert ran.code == 0, ran.err


def test_a_decoders_texts_and_what_it_writes_are_no_longer_than_its_positions(
    refused: Refused, tiny_decoder_config: Path, tmp_path: Path, tiny_lm: Path
) -> None:
    folder = positions("gpt2", tmp_path / "gpt2")
    alone = (
        "--model.layers=null",
        "--model.teacher=null",
        "--model.mixture=[]",
        "--data.task.prompt={job_text} {candidate_text}",
    )
    message = refused(tiny_decoder_config, "--model.model", folder, *alone)
    assert_names(message, "data.init_args.max_length is 320", "4 more", "64 tokens", "60 or less")
    # As a teacher, too, which only reads.
    message = refused(tiny_decoder_config, "--model.teacher.model", folder)
    assert_names(message, "data.init_args.max_length is 320", "64 tokens", "64 or less")


def test_an_encoder_teachers_texts_are_no_longer_than_its_positions(
    refused: Refused, tiny_encoder_config: Path, checkpoint: Path
) -> None:
    teacher = "--model.teacher={class_path: lantern_pl.teachers.encoder, init_args: {model: %s/student, max_length: 513}}"
    message = refused(tiny_encoder_config, teacher % checkpoint.parents[1])
    assert_names(message, "max_length is 513", "512 tokens", "512 or less")


# Checkpoints


class Bomb:
    """What a malicious checkpoint holds: unpickling it runs a command."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (Path.touch, (self.canary,))


def test_a_checkpoint_that_is_not_there_is_named(refused: Refused, tiny_encoder_config: Path) -> None:
    assert_names(refused(tiny_encoder_config, "--ckpt_path", "nowhere.ckpt"), "'nowhere.ckpt'", ".ckpt", "last")
    message = refused(tiny_encoder_config, "--ckpt_path", "last")
    assert_names(message, "run/checkpoints' is whole", "epoch=0-step=9.ckpt", "Start the run anew")


@pytest.mark.parametrize("kind", ["text", "empty", "cut", "pickle", "zip-pickle", "list", "weights"])
def test_a_checkpoint_that_is_none_of_ours_is_refused_and_runs_nothing(
    refused: Refused, tiny_encoder_config: Path, tmp_path: Path, kind: str
) -> None:
    path, canary = tmp_path / "odd.ckpt", tmp_path / "canary"
    if kind == "text":
        path.write_text("garbage")
    elif kind == "empty":
        path.touch()
    elif kind == "cut":
        torch.save({"lantern_config": "", "state_dict": {"w": torch.zeros(999)}}, path)
        path.write_bytes(path.read_bytes()[:1000])
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"lantern_config": Bomb(canary)}))
    elif kind == "zip-pickle":
        torch.save({"lantern_config": "", "state_dict": Bomb(canary)}, path)
    elif kind == "list":
        torch.save([torch.zeros(3)], path)
    elif kind == "weights":
        torch.save({"weight": torch.zeros(3)}, path)
    message = refused(tiny_encoder_config, "--ckpt_path", path)
    assert_names(message, f"'{path}'")
    assert "weights_only" not in message  # torch's advice is to turn the safety off
    assert not canary.exists()


def test_the_bomb_goes_off_where_it_is_unpickled(tmp_path: Path) -> None:
    torch.save(Bomb(tmp_path / "canary"), tmp_path / "odd.ckpt")
    torch.load(tmp_path / "odd.ckpt", weights_only=False)
    assert (tmp_path / "canary").exists()


@pytest.fixture(scope="session")
def checkpoint(tiny_encoder: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of an encoder student of two layers, and beside it one of a decoder student with LoRA."""
    from lantern_pl.cli import main

    folder = tmp_path_factory.mktemp("earlier")
    config = {
        "run_dir": str(folder),
        "model": {
            "class_path": "lantern_pl.students.EncoderStudent",
            "init_args": {"model": str(tiny_encoder), "layers": {"keep": 2}},
        },
        "data": {"class_path": "lantern_pl.data.PairDataModule", "init_args": {"path": str(pairs_file), "max_length": 128}},
        "trainer": {"max_steps": 1, "accelerator": "cpu", "limit_val_batches": 0, "enable_progress_bar": False},
    }
    (folder.parent / "earlier.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(folder.parent / "earlier.yaml")]) == 0
    return folder / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize(
    "arguments",
    [["--model.layers.keep=3"], ["--model.head_depth=0"], ["--model.levels=[a, b]", "--data.task.levels=[a, b]"]],
)
def test_a_checkpoint_of_another_student_is_refused(
    refused: Refused, tiny_encoder_config: Path, checkpoint: Path, pairs_file: Path, tmp_path: Path, arguments: list[str]
) -> None:
    if "levels" in arguments[0]:
        renamed = tmp_path / "renamed.jsonl"
        names = {"low": "a", "medium": "b", "high": "b"}
        renamed.write_text("".join(json.dumps(row | {"level": names[row["level"]]}) + "\n" for row in rows_of(pairs_file)))
        arguments = [*arguments, f"--data.path={renamed}"]
    message = refused(tiny_encoder_config, "--ckpt_path", checkpoint, *arguments)
    assert_names(message, "checkpoint doesn't fit this student", "layers", "head_depth")


def test_a_checkpoint_of_another_kind_of_student_is_refused(
    refused: Refused, tiny_decoder_config: Path, checkpoint: Path
) -> None:
    assert_names(refused(tiny_decoder_config, "--ckpt_path", checkpoint), "checkpoint doesn't fit this student")
    message = refused(tiny_decoder_config, "--ckpt_path", checkpoint, "--model.lora.rank=2")
    assert_names(message, "checkpoint doesn't fit this student")
