"""`lantern cache` as a user meets it: what it writes, how it goes on after an interruption, and what it refuses."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from harm import manifest_of
from recording import Record
from small_configs import save_with_tokenizer
from support import Ran

from lantern_pl.data.records import read_pairs
from lantern_pl.errors import UserError
from lantern_pl.signal_sets import writer
from lantern_pl.signal_sets.keys import as_numbers, pair_key
from lantern_pl.signal_sets.reader import SignalSet
from lantern_pl.signal_sets.writer import SetWriter
from lantern_pl.signals import Hidden, TopK
from lantern_pl.tasks import Task

Lantern = Callable[..., Ran]


def test_the_manifest_says_what_was_asked_of_whom(whole_set: Path, tiny_lm: Path, pairs_file: Path) -> None:
    manifest = manifest_of(whole_set)
    assert manifest["teacher"]["model"] == str(tiny_lm)
    assert manifest["teacher"]["weights"].startswith("sha256 ")
    assert manifest["data"]["paths"] == [str(pairs_file)]
    assert manifest["data"]["pairs"] == 48
    assert manifest["data"]["max_length"] == 320
    assert manifest["tokens"].items() >= {"mode": "top_k", "k": 8, "log_probs": "f32", "temperature": 1.0}.items()
    assert len(manifest["tokens"]["tokenizer"]) == len(manifest["tokens"]["chat_template"]) == 16
    assert manifest["request"]["dtype"] == "float32"
    assert manifest["levels"] == ["low", "medium", "high"]
    assert [shard["examples"] for shard in manifest["shards"]] == [16, 16, 16]
    assert 0 < manifest["report"]["tail_mass"]["mean"] < 1
    for row in manifest["report"]["divergences"].values():
        assert row["top_k"] <= row["whole"]
    assert not (whole_set / "unfinished.json").exists()
    assert all(path.stat().st_mode & 0o077 == 0 for path in [whole_set, *whole_set.iterdir()])


def test_it_says_what_comes_and_what_came(lantern: Lantern, cache_config: Path, tmp_path: Path) -> None:
    ran = lantern("cache", "--config", cache_config, "--signals", tmp_path / "s", "--batch_size", 4)
    assert ran.code == 0, ran.err
    assert "48 pairs to ask about" in ran.out
    assert "by the first batch" in ran.out or "seconds." in ran.out
    assert "B a token" in ran.out
    assert "the tail holds" in ran.out
    assert "by rounding" in ran.out
    again = lantern("cache", "--config", cache_config, "--signals", tmp_path / "s", "--batch_size", 4)
    assert again.code == 0
    assert "holds these signals already" in again.out


def _rows(folder: Path) -> list[torch.Tensor]:
    signals = SignalSet(folder)
    found = signals.tokens(range(signals.manifest.examples))
    assert isinstance(found, TopK)
    return [found.ids, found.log_probs, found.tail_log_mass, signals.level_probs(range(signals.manifest.pairs)).probs]


def _noted(folder: Path) -> list[str]:
    """The shards that an unfinished run counts as done."""
    path = folder / "unfinished.json"
    return [shard["file"] for shard in json.loads(path.read_text())["shards"]] if path.exists() else []


def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_been(
    cache_config: Path, whole_set: Path, tmp_path: Path, record: Record
) -> None:
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "lantern_pl", "cache", "--config", str(cache_config), "--signals", str(folder)]
    command += ["--log_probs", "f32"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not _noted(folder) and time.monotonic() < deadline:
        time.sleep(0.005)
    run.kill()
    run.wait()
    assert not (folder / "manifest.json").exists(), "it was over before it could be killed"
    kept = {name: (folder / name).stat().st_mtime_ns for name in _noted(folder)}
    assert kept
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    done = json.loads((folder / "manifest.json").read_text())["shards"]
    assert [shard["file"] for shard in done] == [f"shard-0000{number}.safetensors" for number in range(3)]
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
    for mine, theirs in zip(_rows(folder), _rows(whole_set), strict=True):
        assert torch.equal(mine, theirs)
    record(
        "SIGKILL of `lantern cache`, then the same command",
        found=f"{len(kept)} of {len(done)} shards kept, the rest made, bit-equal to an uninterrupted run",
        goal="finished shards kept, bit-equal",
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_it_says_how_to_go_on(
    lantern: Lantern, cache_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    add = writer.SetWriter.add

    def add_and_signal(self: writer.SetWriter, *arguments: object) -> None:
        add(self, *arguments)  # type: ignore[arg-type]
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(writer.SetWriter, "add", add_and_signal)
        ran = lantern("cache", "--config", cache_config, "--signals", tmp_path / "s")
    assert ran.code == 128 + number
    assert "the same command goes on" in ran.out
    assert signal.getsignal(number) == before
    assert len(json.loads((tmp_path / "s" / "unfinished.json").read_text())["shards"]) == 1
    assert lantern("cache", "--config", cache_config, "--signals", tmp_path / "s").code == 0
    assert SignalSet(tmp_path / "s").manifest.examples == 48


def test_a_full_disk_ends_it_and_nothing_half_written_counts(
    lantern: Lantern, cache_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0
    replace = os.replace

    def replace_once(source: str, target: Path) -> None:
        nonlocal written
        written += str(target).endswith(".safetensors")
        if written == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_once)
        ran = lantern("cache", "--config", cache_config, "--signals", tmp_path / "s")
    assert ran.code == 2
    assert "No space left on device" in ran.err
    assert [path.name for path in (tmp_path / "s").glob("*.safetensors")] == ["shard-00000.safetensors"]
    refused = lantern("fit", "--config", _decoder(tmp_path, cache_config, tmp_path / "s"))
    assert refused.code == 2
    assert "isn't finished" in refused.err
    assert lantern("cache", "--config", cache_config, "--signals", tmp_path / "s").code == 0


def test_a_write_that_is_cut_short_leaves_nothing_behind(lantern: Lantern, cache_config: Path, tmp_path: Path) -> None:
    """A real one: the system takes the first bytes of a shard, and refuses the others."""
    command = ("cache", "--config", cache_config, "--signals", tmp_path / "s", "--limit", 12, "--sample", 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, limits[1]))
    try:
        ran = lantern(*command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ran.code == 2
    assert "shard-00000.safetensors: File too large" in ran.err
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["unfinished.json"]
    assert lantern(*command).code == 0
    assert SignalSet(tmp_path / "s").manifest.examples == 12


def test_a_disk_that_is_full_at_the_manifest_leaves_an_unfinished_set(
    lantern: Lantern, cache_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("cache", "--config", cache_config, "--signals", tmp_path / "s", "--limit", 12, "--sample", 0)
    sync = os.fsync

    def full(descriptor: int) -> None:
        if ".manifest.json." in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        ran = lantern(*command)
    assert ran.code == 2
    assert "manifest.json: No space left on device" in ran.err
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["shard-00000.safetensors", "unfinished.json"]
    with pytest.raises(UserError, match="isn't finished"):
        SignalSet(tmp_path / "s")
    written = (tmp_path / "s" / "shard-00000.safetensors").stat().st_mtime_ns
    assert lantern(*command).code == 0
    assert (tmp_path / "s" / "shard-00000.safetensors").stat().st_mtime_ns == written
    assert SignalSet(tmp_path / "s").manifest.examples == 12


def _decoder(tmp_path: Path, cache_config: Path, signals: Path) -> Path:
    made = yaml.safe_load(cache_config.read_text())
    teacher = {"class_path": "lantern_pl.teachers.cached", "init_args": {"signals": str(signals)}}
    model = {
        "class_path": "lantern_pl.students.DecoderStudent",
        "init_args": {"model": made["teacher"]["init_args"]["model"], "teacher": teacher},
    }
    data = {"class_path": "lantern_pl.data.PairDataModule", "init_args": {"path": made["pairs"], "max_length": 320}}
    path = tmp_path / "fit.yaml"
    path.write_text(yaml.safe_dump({"run_dir": str(tmp_path / "run"), "model": model, "data": data}))
    return path


def test_a_disk_without_room_is_found_before_the_work(
    lantern: Lantern, cache_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from lantern_pl.signal_sets import command

    monkeypatch.setattr(command.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    ran = lantern("cache", "--config", cache_config, "--signals", tmp_path / "s")
    assert ran.code == 2
    assert "1.0 KB free" in ran.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--k", "49153"], ["k is 49153", "49152"]),
        (["--k", "0"], ["k is 0"]),
        (["--rounds", "256"], ["rounds is 256"]),
        (["--temperature", "0"], ["temperature is 0"]),
        (["--mode", "hidden", "--temperature", "2"], ["hidden states serve every temperature"]),
        (["--mode", "topk"], ["mode"]),
        (["--kinds", "[]"], ["kinds is empty"]),
        (["--max_length", "40"], ["max_length"]),
        (["--limit", "0"], ["limit is 0"]),
        (["--teacher", "lantern_pl.teachers.rubric", "--kinds", "[tokens]"], ["kinds has tokens", "RubricTeacher"]),
        (["--pairs", "nowhere.jsonl"], ["nowhere.jsonl"]),
        (["--signals", "/proc/nothing"], ["/proc/nothing"]),
        (["--compare_with", "embedded:minilm-l6"], ["compare_with", "fingerprint"]),
        (["--sharks", "1"], ["sharks"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cant_be_is_said(
    lantern: Lantern, cache_config: Path, tmp_path: Path, arguments: list[str], said: list[str]
) -> None:
    ran = lantern("cache", "--config", cache_config, "--signals", tmp_path / "s", *arguments)
    assert ran.code == 2, ran.out
    for words in said:
        assert words in ran.err
    assert not (tmp_path / "s" / "manifest.json").exists()


@pytest.mark.parametrize("model", ["embedded:minilm-l6", "no/such-model"])
def test_a_model_to_compare_with_is_looked_at_before_the_work(
    lantern: Lantern, cache_config: Path, tmp_path: Path, model: str
) -> None:
    ran = lantern("cache", "--config", cache_config, "--signals", tmp_path / "s", "--compare_with", model)
    assert ran.code == 2
    assert model in ran.err
    assert "pairs to ask about" not in ran.out
    assert not (tmp_path / "s").exists()


def test_a_folder_with_other_signals_or_other_things_is_left_alone(
    lantern: Lantern, cache_config: Path, signals: Path, tmp_path: Path
) -> None:
    ran = lantern("cache", "--config", cache_config, "--signals", signals, "--k", "5", "--log_probs", "f32")
    assert ran.code == 2
    assert "request.k there is 8, here 5" in ran.err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    ran = lantern("cache", "--config", cache_config, "--signals", tmp_path / "other")
    assert ran.code == 2
    assert "holds other things" in ran.err


def test_a_set_is_not_of_two_precisions(lantern: Lantern, cache_config: Path, signals: Path) -> None:
    """The teacher's dtype `auto` is another on another device: what it begun with there isn't gone on with here."""
    manifest = manifest_of(signals)
    manifest["request"]["dtype"] = "bfloat16"
    (signals / "manifest.json").write_text(json.dumps(manifest))
    command = ("cache", "--config", cache_config, "--signals", signals, "--log_probs", "f32")
    assert "holds these signals already" in lantern(*command).out
    (signals / "shard-00001.safetensors").unlink()
    ran = lantern(*command)
    assert (ran.code, "request.dtype there is 'bfloat16', here 'float32'" in ran.err) == (2, True), ran.err
    assert not (signals / "shard-00001.safetensors").exists()
    assert manifest_of(signals) == manifest


@pytest.mark.parametrize("harm", ["cut", "flip", "lose"])
def test_the_same_command_mends_a_damaged_set(
    lantern: Lantern, cache_config: Path, signals: Path, whole_set: Path, harm: str
) -> None:
    command = ("cache", "--config", cache_config, "--signals", signals, "--log_probs", "f32")
    assert "holds these signals already" in lantern(*command).out
    shard, other = (signals / f"shard-0000{number}.safetensors" for number in (1, 2))
    content, untouched = shard.read_bytes(), other.stat().st_mtime_ns
    if harm == "lose":
        shard.unlink()
    else:
        shard.write_bytes(content[:-1] + (b"" if harm == "cut" else bytes([content[-1] ^ 1])))
    with pytest.raises(UserError, match="The same `lantern cache` again makes it anew"):
        SignalSet(signals)
    ran = lantern(*command)
    assert ran.code == 0, ran.err
    assert "damaged since, and made anew: shard-00001.safetensors" in ran.out
    assert other.stat().st_mtime_ns == untouched
    for mine, theirs in zip(_rows(signals), _rows(whole_set), strict=True):
        assert torch.equal(mine, theirs)


def test_a_run_goes_on_with_its_pairs_in_another_order(
    lantern: Lantern, cache_config: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards go by number: each must hold the same pairs, whatever order they're read in."""
    lines = pairs_file.read_text().splitlines()
    again = tmp_path / "pairs.jsonl"
    again.write_text("".join(line + "\n" for line in lines))
    command = ("cache", "--config", cache_config, "--pairs", again, "--signals", tmp_path / "s", "--log_probs", "f32")
    add = SetWriter.add

    def interrupt(self: SetWriter, number: int, *arrays: Any) -> None:
        if number == 1:
            raise KeyboardInterrupt
        add(self, number, *arrays)

    with monkeypatch.context() as patch:
        patch.setattr(SetWriter, "add", interrupt)
        assert lantern(*command).code == 130
    again.write_text("".join(line + "\n" for line in reversed(lines)))
    ran = lantern(*command)
    assert ran.code == 0, ran.err
    found = SignalSet(tmp_path / "s")
    pairs = read_pairs(pairs_file, Task())
    assert found.manifest.pairs == len(pairs)
    assert (found.find_pairs(as_numbers([pair_key(pair) for pair in pairs])) >= 0).all()


def test_a_text_longer_than_the_teacher_can_read_is_said_before_the_work(
    lantern: Lantern, cache_config: Path, tmp_path: Path
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from lantern_pl.text import load_tokenizer

    tokens = len(load_tokenizer("embedded:smollm2-135m"))
    model = GPT2LMHeadModel(GPT2Config(vocab_size=tokens, n_positions=64, n_embd=8, n_layer=1, n_head=1))
    short = save_with_tokenizer(model, "embedded:smollm2-135m", tmp_path / "gpt2")
    ran = lantern(
        "cache",
        "--config",
        cache_config,
        "--teacher.init_args.model",
        short,
        "--signals",
        tmp_path / "s",
        "--kinds=[tokens]",
    )
    assert ran.code == 2, ran.err
    assert "max_length" in ran.err
    assert "Traceback" not in ran.err


def test_more_files_than_can_be_mapped_are_refused(
    lantern: Lantern, cache_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lantern_pl.signal_sets.command.MOST_SHARDS", 4)
    ran = lantern("cache", "--config", cache_config, "--signals", tmp_path / "s", "--pairs_per_shard=10")
    assert ran.code == 2
    assert "48 pairs at pairs_per_shard 10 are 5 files, and a fit maps all of them, at most 4: give 12 or more" in ran.err


def test_levels_alone_need_no_explanations_and_no_tokenizer(
    lantern: Lantern, cache_config: Path, pairs_file: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "explanation"}) + "\n" for row in rows[:12]))
    ran = lantern("cache", "--config", cache_config, "--pairs", bare, "--signals", tmp_path / "s")
    assert ran.code == 0, ran.err
    assert "only levels are recorded" in ran.out
    rubric = ("--teacher", "lantern_pl.teachers.rubric", "--signals", tmp_path / "r")
    assert lantern("cache", "--config", cache_config, *rubric).code == 0
    found = SignalSet(tmp_path / "r")
    assert (found.manifest.tokens, found.manifest.pairs) == (None, 48)


def test_samples_and_hidden_states(lantern: Lantern, cache_config: Path, whole_set: Path, tmp_path: Path) -> None:
    for mode in ("sampled", "hidden"):
        ran = lantern("cache", "--config", cache_config, "--signals", tmp_path / mode, "--mode", mode, "--limit", 12)
        assert ran.code == 0, ran.err
    sampled, hidden = (SignalSet(tmp_path / mode) for mode in ("sampled", "hidden"))
    widest = sampled.manifest.tokens.widest  # type: ignore[union-attr]
    found = sampled.tokens(range(12))
    assert isinstance(found, TopK)
    assert found.ids.shape[1] == widest
    states = hidden.tokens([3, 1])
    assert isinstance(states, Hidden)
    assert states.head.weight.shape == (49152, 16)


def test_some_pairs_without_explanation_arent_passed_over(
    lantern: Lantern, cache_config: Path, pairs_file: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()][:6]
    del rows[2]["explanation"]
    some = tmp_path / "some.jsonl"
    some.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = lantern("cache", "--config", cache_config, "--pairs", some, "--signals", tmp_path / "s")
    assert ran.code == 2
    assert "1 of 6 pairs have no level or no explanation" in ran.err


def test_files_of_their_own_for_training_and_validation(
    lantern: Lantern, cache_config: Path, tiny_decoder_config: Path, pairs_file: Path, tmp_path: Path
) -> None:
    lines = pairs_file.read_text().splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join(lines[:16]))
    (tmp_path / "val.jsonl").write_text("".join(lines[16:24]))
    files = f"[{tmp_path}/train.jsonl, {tmp_path}/val.jsonl]"
    assert lantern("cache", "--config", cache_config, "--pairs", files, "--signals", tmp_path / "s").code == 0
    assert SignalSet(tmp_path / "s").manifest.examples == 24
    data = (f"--data.path={tmp_path}/train.jsonl", f"--data.val_path={tmp_path}/val.jsonl", "--data.test_fraction=0")
    teacher = ("--model.teacher=lantern_pl.teachers.cached", f"--model.teacher.signals={tmp_path}/s")
    ran = lantern("fit", "--config", tiny_decoder_config, *teacher, *data)
    assert ran.code == 0, ran.err


def test_what_a_killed_run_left_half_written_is_swept_and_a_lost_head_written_again(
    lantern: Lantern, cache_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("cache", "--config", cache_config, "--signals", tmp_path / "h", "--mode", "hidden", "--limit", 20)

    def full(*arguments: object) -> None:
        raise UserError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(writer.SetWriter, "add", full)
        assert lantern(*command).code == 2
    (tmp_path / "h" / "head.safetensors").unlink()
    (tmp_path / "h" / ".shard-00000.safetensors.x1y2").write_bytes(b"half")
    assert lantern(*command).code == 0
    assert sorted(path.name for path in (tmp_path / "h").iterdir()) == [
        "head.safetensors", "manifest.json", "shard-00000.safetensors", "shard-00001.safetensors",
    ]  # fmt: skip
    assert SignalSet(tmp_path / "h").manifest.examples == 20


def test_pairs_with_the_same_texts_are_asked_about_once(
    lantern: Lantern, cache_config: Path, pairs_file: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()][:6]
    twice = tmp_path / "twice.jsonl"
    copies = [{**row, "pair_id": f"again-{number}"} for number, row in enumerate(rows)]
    copies[0]["explanation"] = "Another one."
    twice.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *copies]))
    ran = lantern("cache", "--config", cache_config, "--pairs", twice, "--signals", tmp_path / "s")
    assert ran.code == 0, ran.err
    found = SignalSet(tmp_path / "s").manifest
    assert (found.examples, found.pairs) == (7, 6)
