"""A key in the environment and an e-mail address in every text: neither is in what a run prints, logs, saves or exports."""

import json
import logging
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from recording import Record
from support import Ran

from lantern_pl.errors import UserError
from lantern_pl.secret_values import refuse_secrets
from lantern_pl.students.on_policy import ServedStudent

Lantern = Callable[..., Ran]
pytestmark = pytest.mark.reliability
KEY = "sk-planted-6c1f0e5b2a9d4837"
ADDRESS = "planted.person@example.org"
PLANTED = (KEY, ADDRESS)
OWN_LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric", "transformers", "torch")


@pytest.fixture
def planted(pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pairs with the address at the start of every text, where no cut reaches, in a process that has the key."""
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "LANTERN_SERVE_KEY"):
        monkeypatch.setenv(name, KEY)
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    for row in rows:
        row |= {name: f"{ADDRESS} {row[name]}" for name in ("job_text", "candidate_text", "explanation")}
    path = tmp_path / "planted.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Everything that any library logs, at any level."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))  # with the traceback, where there is one

    keep = Keep()
    # These don't pass on what they log.
    import transformers  # noqa: F401  # which sets up its own, as Lightning has

    apart = [name for name, each in logging.root.manager.loggerDict.items() if not getattr(each, "propagate", True)]
    loggers = [logging.getLogger(), *map(logging.getLogger, {*apart, *OWN_LOGGERS})]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.DEBUG)
        each.addHandler(keep)
    yield lines
    for each, level in zip(loggers, levels, strict=True):
        each.removeHandler(keep)
        each.setLevel(level)


def test_whatever_is_logged_is_looked_at(logged: list[str]) -> None:
    for name in ("anything", *OWN_LOGGERS):
        try:
            raise ValueError(f"of {name} {KEY}")
        except ValueError:
            logging.getLogger(name).exception("said by %s", name)
        assert any(f"said by {name}" in line and f"of {name} {KEY}" in line for line in logged), name


def files_with(planted: str, folder: Path) -> list[str]:
    """The files below a folder that hold the text, in whatever of the usual encodings; archives are looked into."""
    forms = [planted.encode(form) for form in ("utf-8", "utf-16-le")]
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            contents = [path.read_bytes()]
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    contents += [archive.read(name) for name in archive.namelist()]
            if any(form in content for form in forms for content in contents):
                found.append(str(path.relative_to(folder)))
    return found


@pytest.mark.parametrize("kind", ["encoder", "decoder", "decoder that shows no answers"])
def test_a_run_and_its_export_keep_them_to_themselves(
    kind: str,
    lantern: Lantern,
    planted: Path,
    logged: list[str],
    tiny_encoder_config: Path,
    tiny_decoder_config: Path,
    tmp_path: Path,
    record: Record,
) -> None:
    config = tiny_encoder_config if kind == "encoder" else tiny_decoder_config
    options = ["--config", config, f"--data.path={planted}", "--model.optimization.learning_rate=0.001"]
    if kind == "decoder that shows no answers":
        options.append("--model.generate_pairs=0")
    printed = [lantern("fit", *options), lantern("fit", *options, "--trainer.max_steps=4", "--ckpt_path=last")]
    assert [ran.code for ran in printed] == [0, 0], printed
    # A fault within a step, told with its pairs.
    printed.append(lantern("fit", *options, "--run_dir", tmp_path / "faulty", "--model.optimization.learning_rate=1e30"))
    assert printed[-1].code == 2
    printed.append(lantern("export", tmp_path / "run", "--out", tmp_path / "exported", "--max_pairs=2"))
    assert printed[-1].code == 0, printed[-1].err
    assert logged
    for secret in PLANTED:
        # One annotated explanation is shown beside the student's, as SECURITY.md says, and kept for the owner alone.
        shown = kind == "decoder" and secret == ADDRESS
        assert [line for line in logged if secret in line] == []
        assert [ran for ran in printed if secret in (ran.err if shown else ran.out + ran.err)] == []
        for folder in ("run", "faulty"):
            assert files_with(secret, tmp_path / folder) == ["sample.json"] * shown
        assert files_with(secret, tmp_path / "exported") == []
    checkpoints = list((tmp_path / "run" / "checkpoints").glob("*.ckpt"))
    assert checkpoints
    assert all(files_with("state_dict", path.parent) for path in checkpoints), "the search doesn't look into checkpoints"
    record(
        f"A key in the environment and an e-mail address in every text: fit, resume, fault and export ({kind})",
        found=f"in none of {len(logged):,} log lines, nor in what was printed, saved or exported"
        + (", but for the explanation that is shown on the console and kept in sample.json" if kind == "decoder" else ""),
        goal="in no log, exception, checkpoint or export",
    )


def test_labelling_caching_and_predicting_keep_them_to_themselves(
    lantern: Lantern,
    planted: Path,
    logged: list[str],
    tiny_lm: Path,
    tiny_encoder_config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record: Record,
) -> None:
    """Texts are in the label store by design, for its owner alone; they are nowhere else, and the key is nowhere."""
    monkeypatch.setenv("LANTERN_ALLOW_IMPORTS", "rubric_chat")
    config = tmp_path / "label.yaml"
    teacher = {"class_path": "rubric_chat.RubricChat"}
    keys = {"pairs": str(planted), "labels": str(tmp_path / "labels"), "teacher": teacher, "guide": {"stages": "single"}}
    config.write_text(yaml.safe_dump(keys))
    cache = {
        "teacher": {"class_path": "lantern_pl.teachers.hf", "init_args": {"model": str(tiny_lm)}},
        "pairs": str(planted),
        "signals": str(tmp_path / "signals"),
        "max_length": 400,
        "k": 8,
    }
    (tmp_path / "cache.yaml").write_text(yaml.safe_dump(cache))
    quiet = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")
    printed = [
        lantern("label", "--config", config, "--yes"),
        lantern("cache", "--config", tmp_path / "cache.yaml"),
        lantern("fit", "--config", tiny_encoder_config, f"--data.path={planted}"),
        lantern("predict", "--student", tmp_path / "run/student", "--pairs", planted, "--out", tmp_path / "answers", *quiet),
    ]
    assert [ran.code for ran in printed] == [0, 0, 0, 0], printed
    assert "48 labels (" in printed[0].out
    for secret in PLANTED:
        assert [line for line in logged if secret in line] == []
        assert [ran for ran in printed if secret in ran.out + ran.err] == []
    assert files_with(KEY, tmp_path) == []
    # The store's own companion while it is open, and what it was all made from, aside.
    holding = {name for name in files_with(ADDRESS, tmp_path) if not name.endswith("-wal")} - {planted.name}
    assert holding == {"labels/store.sqlite", "labels/labels.parquet"}
    record(
        "A key in the environment and an e-mail address in every text: label, cache and predict",
        found=f"in none of {len(logged):,} log lines, nor in what was printed; the address in the label store alone",
        goal="in no log, exception, checkpoint or export",
    )


def test_a_row_that_cannot_be_read_is_named_and_not_quoted(
    lantern: Lantern, planted: Path, tiny_encoder_config: Path
) -> None:
    rows = planted.read_text().splitlines()
    for harm in (rows[3][:-40], rows[3].replace('"level"', '"levl"'), json.dumps({"pair_id": 7, "job_text": ADDRESS})):
        planted.write_text("\n".join([*rows[:3], harm, *rows[4:]]) + "\n")
        ran = lantern("fit", "--config", tiny_encoder_config, f"--data.path={planted}")
        assert ran.code == 2
        assert f"{planted}:4" in ran.err
        assert ADDRESS not in ran.out + ran.err


@pytest.fixture
def keyed_teacher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A teacher of the user's own that takes a key as it is, and one by default."""
    (tmp_path / "keyed.py").write_text(
        "from lantern_pl.teachers.rule_based import RubricTeacher\n\n\n"
        "class Keyed(RubricTeacher):\n"
        f"    def __init__(self, url: str = 'http://user:{KEY}@host/v1', api_key: str = '{KEY}') -> None:\n"
        "        super().__init__()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LANTERN_ALLOW_IMPORTS", "keyed")
    return "keyed.Keyed"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"api_key": KEY}, "init_args.api_key"),
        ({"api_key": [KEY]}, "init_args.api_key"),
        ({"url": f"https://me:{KEY}@example.org/v1"}, "init_args.url"),
        ({"url": f"https://{KEY}@example.org"}, "init_args.url"),
    ],
)
def test_a_key_that_a_class_would_take_is_refused(
    lantern: Lantern, keyed_teacher: str, tiny_encoder_config: Path, tmp_path: Path, given: dict[str, object], named: str
) -> None:
    config = yaml.safe_load(tiny_encoder_config.read_text())
    teacher = {"class_path": keyed_teacher, "init_args": given}
    config["model"]["init_args"]["teacher"] = teacher
    with_key = tmp_path / "with_key.yaml"
    with_key.write_text(yaml.safe_dump(config))
    (option, value), *_ = given.items()
    class_given = f"--model.teacher={keyed_teacher}"
    for arguments in (
        ["--config", with_key],
        ["--config", tiny_encoder_config, f"--model.teacher={json.dumps(teacher)}"],
        ["--config", tiny_encoder_config, class_given, f"--model.teacher.{option}={value}"],
        ["--config", tiny_encoder_config, class_given, f"--model.teacher.init_args.{option}", value],
    ):
        ran = lantern("fit", *arguments)
        assert ran.code == 2, ran.err
        assert "may hold no secrets" in ran.err
        assert option in ran.err
        assert KEY not in ran.out + ran.err
    assert named in lantern("fit", "--config", with_key).err
    assert not (tmp_path / "run").exists()


def test_a_key_in_a_checkpoints_config_is_refused(
    lantern: Lantern, keyed_teacher: str, tiny_encoder_config: Path, tmp_path: Path
) -> None:
    assert lantern("fit", "--config", tiny_encoder_config).code == 0
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    config = yaml.safe_load(checkpoint["lantern_config"])
    config["model"]["init_args"]["teacher"] = {"class_path": keyed_teacher, "init_args": {"api_key": KEY}}
    torch.save(checkpoint | {"lantern_config": yaml.safe_dump(config)}, tmp_path / "keyed.ckpt")
    ran = lantern("fit", "--config", tiny_encoder_config, "--ckpt_path", tmp_path / "keyed.ckpt")
    assert ran.code == 2
    assert "api_key" in ran.err
    assert KEY not in ran.out + ran.err


def test_a_key_that_a_class_has_by_default_is_not_kept(
    lantern: Lantern, keyed_teacher: str, tiny_encoder_config: Path, tmp_path: Path
) -> None:
    options = ("--config", tiny_encoder_config, f"--model.teacher={keyed_teacher}")
    ran = lantern("fit", *options)
    assert ran.code == 0, ran.err
    resumed = lantern("fit", *options, "--trainer.max_steps=3", "--ckpt_path=last")
    assert resumed.code == 0, resumed.err
    assert KEY not in ran.out + ran.err + resumed.out + resumed.err
    assert files_with(KEY, tmp_path / "run") == []
    assert (tmp_path / "run" / "config.yaml").stat().st_mode & 0o777 == 0o600


def test_a_served_student_has_no_password() -> None:
    with pytest.raises(UserError, match=r"model\.on_policy\.server\.url") as refused:
        ServedStudent(f"http://me:{KEY}@host/v1", "m")
    assert KEY not in str(refused.value)


@pytest.mark.parametrize("name", ["api_key", "key", "token"])
def test_a_key_in_a_config_is_refused_and_not_quoted(
    lantern: Lantern, name: str, tiny_decoder_config: Path, tmp_path: Path
) -> None:
    config = yaml.safe_load(tiny_decoder_config.read_text())
    config["model"]["init_args"]["teacher"]["init_args"][name] = KEY
    tiny_decoder_config.write_text(yaml.safe_dump(config))
    ran = lantern("fit", "--config", tiny_decoder_config)
    assert ran.code != 0
    assert name in ran.err
    assert KEY not in ran.out + ran.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["token", "hf_token", "X-Api-Key", "api-key", "access_key", "aws_secret_access_key"])
def test_names_of_secrets(name: str) -> None:
    with pytest.raises(UserError, match="may hold no secrets"):
        refuse_secrets({"teacher": {"init_args": {name: KEY}}})
    for allowed in ("api_key_variable", "max_new_tokens", "tokens_per_s", "tokenizer", "key_size"):
        refuse_secrets({"teacher": {"init_args": {allowed: KEY}}})
