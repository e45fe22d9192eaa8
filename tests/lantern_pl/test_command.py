"""The `lantern` command: help at once, one config for all, and one message for what went wrong."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from support import REPOSITORY, Ran

from lantern_pl.cli import COMMANDS
from lantern_pl.lightning_cli import TRAINER_DEFAULTS
from lantern_pl.plugins import discover

Lantern = Callable[..., Ran]

# Help


@pytest.mark.parametrize("arguments", [("--help",), ("data", "sample", "--help"), ("models", "--help"), ("--version",)])
def test_light_help_comes_at_once_and_imports_no_torch(arguments: tuple[str, ...]) -> None:
    code = (
        "import sys, time; start = time.perf_counter(); from lantern_pl.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'lightning', 'transformers', 'jsonargparse', 'numpy', 'pyarrow'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        seconds.append(time.perf_counter() - start)
        assert ran.stderr == "[]\n"
        assert ran.stdout
    assert min(seconds) < 1.5


def test_help_names_every_command(lantern: Lantern) -> None:
    for arguments in ((), ("--help",), ("-h",), ("help",)):
        ran = lantern(*arguments)
        assert ran.code == 0
        assert all(re.search(rf"^  {command} ", ran.out, re.MULTILINE) for command in COMMANDS)


def test_an_unknown_command_gets_the_nearest_ones(lantern: Lantern) -> None:
    ran = lantern("validte", "--config", "x.yaml")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "lantern: There is no command 'validte'. Did you mean 'validate' or 'audit'?\n"


def explained(help_text: str) -> dict[str, str]:
    """Option -> what its help says, without its type and default."""
    found = {}
    for block in re.split(r"\n(?=  -)", help_text)[1:]:
        # A section's title, which is not indented, ends the option before it.
        words = " ".join(re.split(r"\n(?=\S)", block)[0].split())
        options, _, about = words.partition(" ")
        option = options.rstrip(",")
        about = re.sub(r"\((?:required, )?type: .*$", "", about)
        # What stands for the value, and the option's other spellings.
        about = re.sub(r"^(?:-[\w.+-]+,? |[A-Z_]{2,},? |\[[^\]]*\],? |\{[^}]*\},? |\| |\.INIT_ARG_NAME |VALUE )*", "", about)
        found[option.lstrip("-")] = about.strip()
    return found


@pytest.mark.parametrize("command", ["fit", "predict"])
def test_help_of_the_training_commands_explains_every_option(lantern: Lantern, command: str) -> None:
    ran = lantern(command, "--help")
    assert ran.code == 0
    assert ran.out.startswith("usage: lantern ")
    assert f"lantern {command} --config FILE [--KEY VALUE ...]\n" in ran.out[:300]
    options = explained(ran.out)
    assert {"seed_everything", "run_dir", "ckpt_path", "model", "data", "trainer.max_epochs"} <= set(options)
    assert "weights_only" not in options  # a checkpoint mustn't run code, whatever the user wants
    unexplained = [option for option, about in options.items() if len(about.split()) < 3]
    assert not unexplained
    words = " ".join(ran.out.split("\noptions:")[1].split())
    for name, value in TRAINER_DEFAULTS.items():
        default = re.search(rf" --trainer\.{name} .*?\(type: .*?, default: (\S+)\)", words)
        assert default, name
        assert default[1] == str(value), name


CLASSES = {
    "lantern_pl.students.DecoderStudent": {
        *("model", "layers", "layers.keep", "layers.choose", "teacher", "cross_entropy", "temperature"),
        *("lora", "lora.rank", "lora.alpha", "lora.dropout", "lora.target_modules"),
        *("mixture", "mixture.divergence", "mixture.weight", "mixture.label"),
        *("optimization.learning_rate", "optimization.weight_decay", "optimization.warmup", "optimization.schedule"),
        *("optimization.betas", "max_new_tokens", "generate_pairs"),
    },
    "lantern_pl.students.EncoderStudent": {
        *("model", "levels", "pooling", "head_depth", "dropout", "layers", "layers.keep", "teacher", "mixture"),
        *("mixture.weight", "cross_entropy", "temperature", "optimization.learning_rate"),
    },
    "lantern_pl.data.PairDataModule": {
        *("path", "val_path", "test_path", "val_fraction", "test_fraction", "split_seed", "max_length", "batch_size"),
        *("eval_batch_size", "num_workers", "shuffle_seed", "task.levels", "task.prompt", "task.answer"),
    },
}


@pytest.mark.parametrize("name", CLASSES)
def test_help_of_a_class_explains_every_argument(lantern: Lantern, name: str) -> None:
    section = "data" if "data" in name else "model"
    ran = lantern("fit", f"--{section}.help", name)
    assert ran.code == 0
    options = {option.removeprefix(f"{section}."): about for option, about in explained(ran.out).items()}
    assert set(options) >= CLASSES[name]
    assert not [option for option, about in options.items() if len(about.split()) < 3]


@pytest.mark.parametrize(
    ("option", "group"),
    [("teacher", "lantern_pl.teachers"), ("mixture.divergence", "lantern_pl.divergences")],
)
def test_help_of_every_first_party_plugin_explains_its_arguments(lantern: Lantern, option: str, group: str) -> None:
    taught = {}
    for name in discover(group):
        ran = lantern("fit", "--model", "lantern_pl.students.DecoderStudent", f"--model.{option}.help", f"{group}.{name}")
        assert ran.code == 0, name
        options = explained(ran.out)
        assert not [o for o, about in options.items() if len(about.split()) < 3], name
        taught[name] = {o.split(".", 1)[1] for o in options}
    if "teacher" in option:
        assert {"model", "adapter", "dtype", "max_new_tokens"} <= taught["hf"]
        assert {"rubric.must_weight", "rubric.width"} <= taught["rubric"]
    else:
        assert taught["js"] == {"beta"}


# One config for all


def test_print_config_goes_round(lantern: Lantern, tiny_encoder_config: Path, tmp_path: Path) -> None:
    """What is printed can be run, and comes to the same resolved config."""
    printed = lantern("fit", "--config", tiny_encoder_config, "--print_config")
    assert printed.code == 0
    again = tmp_path / "again.yaml"
    again.write_text(printed.out)
    assert yaml.safe_load(lantern("fit", "--config", again, "--print_config").out) == yaml.safe_load(printed.out)
    assert lantern("fit", "--config", again).code == 0
    resolved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert resolved == {key: value for key, value in yaml.safe_load(printed.out).items() if key != "ckpt_path"}
    assert resolved["trainer"]["num_sanity_val_steps"] == 1
    assert resolved["trainer"]["use_distributed_sampler"] is False
    assert resolved["model"]["init_args"]["optimization"]["schedule"] == "cosine"
    # And what a run has left can be run again.
    assert lantern("fit", "--config", tmp_path / "run" / "config.yaml", "--run_dir", tmp_path / "second").code == 0
    second = yaml.safe_load((tmp_path / "second" / "config.yaml").read_text())
    assert second == resolved | {"run_dir": str(tmp_path / "second")}


def test_the_command_line_wins_over_the_config_and_the_last_one_given_wins(
    lantern: Lantern, tiny_decoder_config: Path, tmp_path: Path
) -> None:
    over = tmp_path / "over.yaml"
    over.write_text("model: {init_args: {temperature: 3.0, generate_pairs: 7}}\ntrainer: {max_steps: 9}\n")
    ran = lantern(
        *("fit", "--config", tiny_decoder_config, "--model.temperature", "5", "--config", over),
        *("--trainer.max_steps", "3", "--model.layers.keep=1", "--data.batch_size", "7"),
        *("--model.mixture.weight", "0.25", "--print_config"),
    )
    assert ran.code == 0, ran.err
    config = yaml.safe_load(ran.out)
    student = config["model"]["init_args"]
    assert student["temperature"] == 3.0
    assert student["generate_pairs"] == 7
    assert student["layers"] == {"keep": 1, "choose": "first"}
    assert student["mixture"][0]["weight"] == 0.25
    assert student["mixture"][0]["divergence"]["class_path"] == "lantern_pl.divergences.js"
    assert config["trainer"]["max_steps"] == 3
    assert config["data"]["init_args"]["batch_size"] == 7
    assert config["data"]["init_args"]["max_length"] == 320


# What a config may import


CANARY = "import pathlib; pathlib.Path(__file__).with_suffix('.ran').touch()\nclass Thing: pass\n"


@pytest.mark.parametrize(
    ("argument", "path"),
    [
        ("--model={}", "canary.Thing"),
        ("--data={}", "canary.Thing"),
        ("--model.teacher={}", "canary.Thing"),
        ("--model.mixture=[{{divergence: {}}}]", "canary.Thing"),
        ("--trainer.callbacks=[{}]", "canary.Thing"),
        ("--trainer.logger={}", "canary.Thing"),
        ("--trainer.strategy={}", "canary.Thing"),
        ("--trainer.profiler={}", "canary.Thing"),
        ("--model={}", "os.system"),
        ("--model.teacher={}", "subprocess.Popen"),
        # A way around: through the attributes of a module that may be named.
        ("--model.teacher={}", "lantern_pl.run_folder.os.system"),
    ],
)
def test_nothing_from_outside_the_allow_list_is_imported(
    lantern: Lantern,
    tiny_decoder_config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    argument: str,
    path: str,
) -> None:
    (tmp_path / "canary.py").write_text(CANARY)
    monkeypatch.syspath_prepend(tmp_path)
    given = argument.format(f"{{class_path: {path}, init_args: {{command: 'touch {tmp_path}/ran'}}}}")
    ran = lantern("fit", "--config", tiny_decoder_config, given)
    assert ran.code == 2
    assert "Traceback" not in ran.err
    # Where text is accepted too, what isn't an allowed class is taken for text that makes no sense.
    assert "may not be imported" in ran.err or "trainer: " in ran.err
    assert "canary" not in sys.modules
    assert not list(tmp_path.glob("*ran"))
    assert not (tmp_path / "run").exists()


def test_the_canary_sings_when_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "singing_canary.py").write_text(CANARY)
    monkeypatch.syspath_prepend(tmp_path)
    __import__("singing_canary")
    assert (tmp_path / "singing_canary.ran").exists()


# Errors


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("fit",), ["required and not given: data, model", "--config FILE"]),
        (("fit", "--confg", "x.yaml"), ["no option 'confg'", "'config'"]),
        (("fit", "--config", "nowhere.yaml"), ["nowhere.yaml", "No such file"]),
        (("data",), ["lantern data", "required: sample", "lantern data --help"]),
        (("data", "smple"), ["'smple'", "'sample'"]),
        (("data", "sample", "--out", "x", "--pairs", "many"), ["--pairs", "'many'", "lantern data sample --help"]),
        (("models", "--all"), ["--all", "lantern models --help"]),
        (("--fit",), ["no command '--fit'", "'fit'"]),
    ],
)
def test_an_error_is_one_message(lantern: Lantern, arguments: tuple[str, ...], parts: list[str]) -> None:
    ran = lantern(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("lantern: ")
    assert len(ran.err.splitlines()) == 1
    assert "usage:" not in ran.err
    for part in parts:
        assert part in ran.err


def test_the_installed_script_exits_with_the_code(tmp_path: Path) -> None:
    script = Path(sys.executable).parent / "lantern"
    ran = subprocess.run([script, "data", "sample", "--pairs", "4", "--out", tmp_path], capture_output=True, text=True)
    assert ran.returncode == 0
    assert len([json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]) == 4
    ran = subprocess.run([script, "fot"], capture_output=True, text=True, cwd=REPOSITORY)
    assert ran.returncode == 2
    assert ran.stderr == "lantern: There is no command 'fot'. Did you mean 'fit'?\n"
