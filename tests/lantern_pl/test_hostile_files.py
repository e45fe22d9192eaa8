"""Checkpoints, configs and model folders from strangers: each is refused with a typed error, and nothing in them is run.

What would show that something was run is the canary, a file that each of them tries to leave.
"""

import copy
import functools
import io
import json
import logging
import os
import pickle
import runpy
import shutil
import sqlite3
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from recording import Record
from support import Ran

from lantern_pl.checkpoints import read_checkpoint
from lantern_pl.errors import UserError
from lantern_pl.teachers.local_model import HFTeacher

Lantern = Callable[..., Ran]
pytestmark = pytest.mark.reliability


class Call:
    """What unpickling it calls."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


# What a checkpoint may ask to be called, given the canary's path.
PAYLOADS: dict[str, Callable[[str], Call]] = {
    "os.system": lambda canary: Call(os.system, f"touch {canary}"),
    "os.mkdir": lambda canary: Call(os.mkdir, canary),
    "os.mknod": lambda canary: Call(os.mknod, canary),
    "os.symlink": lambda canary: Call(os.symlink, "/etc/hostname", canary),
    "subprocess.call": lambda canary: Call(subprocess.call, ["touch", canary]),
    "subprocess.getoutput": lambda canary: Call(subprocess.getoutput, f"touch {canary}"),
    "eval": lambda canary: Call(eval, f"open({canary!r}, 'w').close()"),
    "exec": lambda canary: Call(exec, f"open({canary!r}, 'w').close()"),
    "open": lambda canary: Call(io.open, canary, "w"),
    "Path.touch": lambda canary: Call(Path.touch, Path(canary)),
    "shutil.copy": lambda canary: Call(shutil.copy, __file__, canary),
    "partial": lambda canary: Call(functools.partial(os.mkdir, canary)),
    "runpy": lambda canary: Call(runpy.run_path, f"{canary}.py"),
    "sqlite3": lambda canary: Call(sqlite3.connect, canary),
    "zipfile": lambda canary: Call(zipfile.ZipFile, canary, "w"),
    "logging": lambda canary: Call(logging.FileHandler, canary),
    "numpy.save": lambda canary: Call(np.ndarray.tofile, np.zeros(3), canary),
    "torch.save": lambda canary: Call(torch.save, {}, canary),
}


def write_pickle(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


CONTAINERS: dict[str, Callable[[Any, Path], None]] = {
    "zip": torch.save,
    "legacy": functools.partial(torch.save, _use_new_zipfile_serialization=False),
    "pickle": write_pickle,
}


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    path = tmp_path / "canary"
    (tmp_path / "canary.py").write_text(f"open({str(path)!r}, 'w').close()\n")
    return path


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", PAYLOADS)
def test_no_checkpoint_runs_anything(tmp_path: Path, canary: Path, name: str, container: str) -> None:
    path = tmp_path / "epoch=0-step=1.ckpt"
    call = PAYLOADS[name](str(canary))
    CONTAINERS[container]({"state_dict": {"weight": torch.zeros(3)}, "loops": [call]}, path)
    with pytest.raises(UserError, match=r"isn't one of lantern-pl, or is damaged|isn't a checkpoint"):
        read_checkpoint(path)
    assert not canary.exists()
    # The canary would have sung.
    if container == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert canary.exists()


def test_a_run_goes_on_from_no_such_checkpoint(
    lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path, canary: Path
) -> None:
    path = tmp_path / "run" / "checkpoints" / "epoch=0-step=1.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"lantern_config": PAYLOADS["os.system"](str(canary))}, path)
    for given in (path, "last"):
        for command in ("fit", "validate", "test", "predict"):
            ran = lantern(command, "--config", tiny_encoder_config, "--ckpt_path", given)
            assert (ran.code, "Nothing in it was run" in " ".join(ran.err.split())) == (2, True), ran.err
    assert not canary.exists()


# Importable things that a config has no business with; the last ones come through a package that it may name.
FOREIGN = (
    *("os.system", "os.popen", "builtins.eval", "builtins.exec", "subprocess.Popen", "subprocess.run", "pathlib.Path"),
    *(
        "shutil.rmtree",
        "runpy.run_path",
        "pickle.load",
        "importlib.import_module",
        "http.server.HTTPServer",
        "code.interact",
    ),
    *("torch.load", "torch.hub.load", "torch.utils.cpp_extension.load", "ctypes.CDLL", "types.CodeType", "canary.Student"),
    *("lantern_pl.run_folder.os.system", "lantern_pl.cli.main", "lightning.pytorch.cli.os.system"),
    *("torch.optim.optimizer.functools.partial", "lantern_pl.audit.run", "lantern_pl.private_files.write_private_text"),
    *("lantern_pl.__main__.Student", "lightning.pytorch.callbacks.LambdaCallback"),
)
# Where a config names classes.
PLACES = ("model", "data", "model.init_args.teacher", "trainer.callbacks", "evaluation.judge", "trainer.strategy")


def hostile_configs() -> list[Any]:
    return [
        pytest.param(place, path, id=f"{place}-{path}")
        for number, path in enumerate(FOREIGN)
        # Each in two places, all places in turn.
        for place in (PLACES[number % len(PLACES)], PLACES[(number + 1) % len(PLACES)])
    ]


@pytest.mark.parametrize(("place", "path"), hostile_configs())
def test_no_config_imports_or_calls_what_it_likes(
    lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path, canary: Path, place: str, path: str, monkeypatch: Any
) -> None:
    monkeypatch.syspath_prepend(tmp_path)  # where importing canary leaves it
    config = yaml.safe_load(tiny_encoder_config.read_text())
    *parents, last = place.split(".")
    inner = config
    for parent in parents:
        inner = inner.setdefault(parent, {})
    call = {"class_path": path, "init_args": {"args": ["touch", str(canary)]}}
    inner[last] = [call] if last == "callbacks" else call
    tiny_encoder_config.write_text(yaml.safe_dump(config))
    ran = lantern("fit", "--config", tiny_encoder_config)
    assert ran.code == 2, ran.err
    assert "Traceback" not in ran.err
    assert path.rpartition(".")[2] in ran.err
    assert not canary.exists()
    assert "canary" not in sys.modules


@pytest.mark.parametrize(
    "function",
    ["lantern_pl.embedded.models_command", "lantern_pl.run_folder.move_aside", "lightning.pytorch.seed_everything"],
)
def test_no_config_names_a_function(lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path, function: str) -> None:
    """Wherever a class takes one, it would be called."""
    config = yaml.safe_load(tiny_encoder_config.read_text())
    hook = {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"ddp_comm_hook": function}}
    config["trainer"]["strategy"] = hook
    tiny_encoder_config.write_text(yaml.safe_dump(config))
    ran = lantern("fit", "--config", tiny_encoder_config)
    assert ran.code == 2, ran.err
    assert "trainer.strategy" in ran.err
    assert f"{function.rpartition('.')[2]} is a function, and a config may name classes alone" in ran.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "text", ["a: 2024-13-45", "a: !!int abc", "a: [", "a: &a [*a]", "[1]", "trainer: {callbacks: evil.Call}"]
)
@pytest.mark.parametrize("command", ["fit", "predict"])
def test_the_config_in_a_checkpoint_goes_through_the_same_rules(
    lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path, text: str, command: str
) -> None:
    path = tmp_path / "run" / "checkpoints" / "epoch=0-step=1.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"lantern_config": text, "state_dict": {}}, path)
    ran = lantern(command, "--config", tiny_encoder_config, "--ckpt_path", path)
    assert ran.code == 2, ran.err
    assert "Traceback" not in ran.err


def test_no_checkpoint_imports_or_calls_what_it_likes(
    lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path, canary: Path
) -> None:
    path = tmp_path / "run" / "checkpoints" / "epoch=0-step=1.ckpt"
    path.parent.mkdir(parents=True)
    call = {"class_path": "os.system", "init_args": {"command": f"touch {canary}"}}
    for config in ({"model": call}, {"trainer": {"callbacks": [call]}}, {"run_dir": "x", "data": call}):
        torch.save({"lantern_config": yaml.safe_dump(config), "state_dict": {}}, path)
        ran = lantern("fit", "--ckpt_path", path)
        assert ran.code == 2, ran.err
        assert "'os.system' may not be imported" in " ".join(ran.err.split())
    assert not canary.exists()


@pytest.fixture(scope="module")
def right_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, pairs_file: Path) -> dict[str, Any]:
    """What a run of an encoder has saved."""
    folder = tmp_path_factory.mktemp("right")
    config = folder / "encoder.yaml"
    model = f"--model.model={tiny_encoder}", "--model.layers={keep: 2}"
    data = "--data=lantern_pl.data.PairDataModule", f"--data.path={pairs_file}"
    config.write_text(
        f"model: lantern_pl.students.EncoderStudent\ndata: lantern_pl.data.PairDataModule\nrun_dir: {folder}/run\n"
    )
    few = ("--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0", "--trainer.max_steps=1")
    command = [sys.executable, "-m", "lantern_pl", "fit", "--config", str(config), *model, *data, *few]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return read_checkpoint(folder / "run" / "checkpoints" / "last.ckpt")


WRONG: dict[str, Any] = {
    "lantern_plugins": [1],
    "random_states": ["x"],
    "rows_trained": "abc",
    "pytorch-lightning_version": 5,
    "optimizer_states": [{"x": 1}],
    "state_dict": {"classifier": "x"},
    "loops": {"fit_loop": {"epoch_progress": {"current": {"ready": "x"}}}},
    "callbacks": ["x"],
    "global_step": "many",
    "epoch": -3,
    "lr_schedulers": "x",
    "untrained_metrics": {"loss": "x"},
    "skipped_steps": None,
    "lantern_config": 7,
}
FURTHER_IN: dict[str, tuple[list[Any], Any]] = {
    "a generator's state": (["random_states", 0, "torch"], torch.zeros(3)),
    "numpy's numbers": (["random_states", 0, "numpy"], ["MT19937", [1], 0, 0, 0.0]),
    "Python's numbers": (["random_states", 0, "python"], [3, [1], None]),
    "an optimizer's group": (["optimizer_states", 0, "param_groups"], [{"params": []}]),
    "an optimizer's state": (["optimizer_states", 0, "state"], {"x": {"step": 1 << 70}}),
    "loops without progress": (["loops", "fit_loop"], {}),
    "the loader's place": (["loops", "fit_loop", "state_dict", "combined_loader"], [{}]),
}


@pytest.mark.parametrize("name", [*WRONG, *FURTHER_IN])
def test_a_checkpoint_with_wrong_values_is_refused(
    lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path, right_checkpoint: dict[str, Any], name: str
) -> None:
    harmed = copy.deepcopy(right_checkpoint)
    keys, value = ([name], WRONG[name]) if name in WRONG else FURTHER_IN[name]
    inner = harmed
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path = tmp_path / "run" / "checkpoints" / "epoch=0-step=1.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(harmed, path)
    ran = lantern("fit", "--config", tiny_encoder_config, "--ckpt_path", path, "--trainer.max_steps=2")
    assert ran.code == 2, ran.err
    assert "Traceback" not in ran.err
    assert "checkpoint" in ran.err


YAML = {
    "object": "run_dir: !!python/object/apply:os.system ['touch {canary}']",
    "name": "run_dir: !!python/name:os.system ''",
    "module": "run_dir: !!python/module:canary ''",
    "new": "run_dir: !!python/object/new:os.system ['touch {canary}']",
    "alias": "a: &a [1, 2]\nb: *a",
    "merge": "a: &a {{x: 1}}\nb: {{<<: *a}}",
    "billion laughs": "a: &a [x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]",
    "itself": "a: &a [*a]",
    "deep list": "a: " + "[" * 5000 + "]" * 5000,
    "deep map": "a: " + "{{b: " * 5000 + "1" + "}}" * 5000,
    "large": "a: '" + "x" * (1 << 21) + "'",
    "two documents": "a: 1\n---\nb: 2",
    "control characters": "a: \x00\x07",
    "list": "[1, 2]",
    "text": "just a text",
    "unknown tag": "run_dir: !touch {canary}",
    "date": "a: 2024-13-45",
    "long number": "a: " + "9" * 5000,
    "long number of a known key": "trainer: {{max_steps: " + "9" * 5000 + "}}",
    "sexagesimal": "a: " + ":".join("1" * 200_000),
    "tagged number": "a: !!int abc",
    "tagged date": "a: !!timestamp x",
    "tagged truth": "a: !!bool x",
    "set": "a: !!set {{x, y}}",
    "pairs": "a: !!omap [x]",
}


@pytest.mark.parametrize("kind", YAML)
@pytest.mark.parametrize("command", ["fit", "label", "compare"])
def test_no_yaml_runs_anything_or_fills_the_memory(
    lantern: Lantern, tmp_path: Path, canary: Path, kind: str, command: str
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(YAML[kind].format(canary=canary))
    started = time.monotonic()
    ran = lantern(command, "--config", config)
    assert time.monotonic() - started < 5
    assert ran.code == 2, ran.err
    assert "Traceback" not in ran.err
    assert len(ran.err) < 3000
    assert not canary.exists()
    assert "canary" not in sys.modules


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_code_in_a_model_folder_is_not_run(
    lantern: Lantern,
    tiny_encoder_config: Path,
    tiny_decoder_config: Path,
    tiny_encoder: Path,
    tiny_lm: Path,
    tmp_path: Path,
    canary: Path,
    kind: str,
) -> None:
    config, source = (tiny_encoder_config, tiny_encoder) if kind == "encoder" else (tiny_decoder_config, tiny_lm)
    folder = tmp_path / "model"
    shutil.copytree(source, folder)
    (folder / "modeling_evil.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    described = json.loads((folder / "config.json").read_text())
    model = "AutoModel" if kind == "encoder" else "AutoModelForCausalLM"
    described |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "modeling_evil.Config", model: "modeling_evil.Model"},
    }
    (folder / "config.json").write_text(json.dumps(described))
    ran = lantern("fit", "--config", config, f"--model.model={folder}")
    assert ran.code == 2, ran.err
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_pickled_weights_are_not_read(
    lantern: Lantern,
    tiny_encoder_config: Path,
    tiny_decoder_config: Path,
    tiny_encoder: Path,
    tiny_lm: Path,
    tmp_path: Path,
    canary: Path,
    kind: str,
) -> None:
    config, source = (tiny_encoder_config, tiny_encoder) if kind == "encoder" else (tiny_decoder_config, tiny_lm)
    folder = tmp_path / "model"
    shutil.copytree(source, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"weight": PAYLOADS["os.system"](str(canary))}, folder / "pytorch_model.bin")
    ran = lantern("fit", "--config", config, f"--model.model={folder}")
    assert ran.code == 2, ran.err
    assert "safetensors" in ran.err
    assert not canary.exists()


def test_a_pickled_adapter_is_not_read(tiny_lm: Path, tmp_path: Path, canary: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    torch.save({"weight": PAYLOADS["os.system"](str(canary))}, tmp_path / "adapter_model.bin")
    with pytest.raises(UserError, match=r"not a folder with adapter_model\.safetensors"):
        HFTeacher(str(tiny_lm), adapter=str(tmp_path))
    assert not canary.exists()


def test_there_are_enough_of_them(record: Record) -> None:
    configs = len(hostile_configs()) + len(YAML) * 3
    checkpoints = len(PAYLOADS) * len(CONTAINERS) + len(WRONG) + len(FURTHER_IN)
    assert min(configs, checkpoints) >= 50
    for what, count in (("configs", configs), ("checkpoints", checkpoints)):
        record(
            f"Hostile {what}, each of which tries to run something, or to crash or stall the command",
            found=f"{count} {what}: each refused with a typed error, 0 canary runs",
            goal="at least 50, 0 canary runs",
        )
