"""Under DDP and FSDP2 a student learns what it learns in one process: the same loss, gradients and weights."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from recording import Record

from lantern_pl.errors import UserError
from lantern_pl.fsdp2 import FSDP2, check_strategy
from lantern_pl.students import DecoderStudent, EncoderStudent, Lora
from lantern_pl.tasks import Task
from lantern_pl.teachers.adapter_off import SharedBaseTeacher
from lantern_pl.teachers.local_model import HFTeacher

SCRIPT = Path(__file__).with_name("one_step_of_each.py")
Case = dict[str, Any]


def steps_of(cases: dict[str, Case], folder: Path, ranks: int) -> dict[str, Case]:
    """What one step of each case has led to, in as many processes."""
    given, out = folder / f"cases-{ranks}.json", folder / f"steps-{ranks}.pt"
    given.write_text(json.dumps(cases))
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone"] if ranks > 1 else []
    done = subprocess.run(
        [sys.executable, *launch, str(SCRIPT), str(given), str(out), str(ranks)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path, tiny_encoder: Path, pairs_file: Path) -> dict[str, Case]:
    """Students by name, all with one batch of the same eight pairs. Their explanations differ in length, so that processes
    have different numbers of supervised positions."""
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("kinds")
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()[:8]]
    for i, row in enumerate(rows):
        row["explanation"] = " ".join(row["explanation"].split()[: 3 + 4 * i])
        row["votes"] = {"low": 1, "medium": 2, "high": 1 + i}
    data = folder / "eight.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    untied = folder / "untied"
    config = LlamaForCausalLM.from_pretrained(tiny_lm).config
    config.tie_word_embeddings = False
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(untied)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (untied / name).write_bytes((tiny_lm / name).read_bytes())

    whole = {"data": str(data), "teacher": str(untied), "strategy": "auto", "batch_size": 8, "accumulate": 1}
    decoder = whole | {"kind": "decoder", "model": str(tiny_lm)}
    return {
        "decoder": decoder,
        "untied": decoder | {"model": str(untied), "teacher": str(tiny_lm)},
        "lora": decoder | {"lora": True},
        "hidden states": decoder | {"hidden_states": True},
        "clipped": decoder | {"clip": 0.1, "clip_by": "norm"},
        "clipped by value": decoder | {"clip": 0.002, "clip_by": "value"},
        "float32": decoder | {"double": False},
        "encoder": whole | {"kind": "encoder", "model": str(tiny_encoder)},
    }


@pytest.fixture(scope="module")
def alone(kinds: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return steps_of(kinds, tmp_path_factory.mktemp("alone"), 1)


def on_several(kinds: dict[str, Case], name: str, ranks: int, accumulate: int) -> Case:
    kind, _, strategy = name.partition(" / ")
    parts = {"strategy": strategy.split()[0], "batch_size": 8 // ranks // accumulate, "accumulate": accumulate}
    return kinds[kind] | parts | {"shard": "sharded teacher" in strategy}


TWO = [
    ("decoder / ddp", 2),
    ("decoder / fsdp2", 2),
    ("untied / fsdp2 sharded teacher", 1),
    ("decoder / ddp sharded teacher", 2),
    ("lora / fsdp2", 2),
    ("hidden states / fsdp2 sharded teacher", 2),
    ("clipped / fsdp2", 2),
    ("clipped by value / fsdp2", 1),
    ("float32 / fsdp2", 1),
    ("encoder / ddp", 2),
    ("encoder / fsdp2", 2),
]
FOUR = [
    ("decoder / ddp", 2),
    ("decoder / fsdp2 sharded teacher", 2),
    ("untied / fsdp2", 2),
    ("lora / fsdp2", 1),
    ("encoder / fsdp2", 2),
]


@pytest.fixture(scope="module")
def two(kinds: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    cases = {name: on_several(kinds, name, 2, accumulate) for name, accumulate in TWO}
    cases["on its own texts"] = cases["decoder / fsdp2"] | {"on_policy": True}
    cases["fault"] = cases["decoder / fsdp2"] | {"fault": True}
    return steps_of(cases, tmp_path_factory.mktemp("two"), 2)


@pytest.fixture(scope="module")
def four(kinds: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    cases = {name: on_several(kinds, name, 4, accumulate) for name, accumulate in FOUR}
    return steps_of(cases, tmp_path_factory.mktemp("four"), 4)


@pytest.mark.parametrize("name", [name for name, _ in TWO])
def test_two_processes_make_the_step_of_one(two: dict[str, Case], alone: dict[str, Case], name: str, record: Record) -> None:
    check(two[name], alone[name.partition(" / ")[0]], name, 2, record)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, _ in FOUR])
def test_four_processes_make_the_step_of_one(
    four: dict[str, Case], alone: dict[str, Case], name: str, record: Record
) -> None:
    check(four[name], alone[name.partition(" / ")[0]], name, 4, record)


def check(found: Case, expected: Case, name: str, ranks: int, record: Record) -> None:
    assert found["sharded"] == (1.0 if "/ fsdp2" in name else 0.0)
    # In float64 all that differs is the order of sums. Hidden states are compared in float32, whatever their dtype.
    tolerance = 1e-6 if name.startswith(("hidden", "float32")) else 1e-10
    assert found["figures"].keys() >= {"train/loss", "train/kl", "train/cross_entropy"}
    for figure in ("loss", "kl", "cross_entropy"):
        # Lightning keeps figures in float32.
        assert found["figures"][f"train/{figure}"] == pytest.approx(expected["figures"][f"train/{figure}"], rel=1e-6)
    assert found["gradients"].keys() == expected["gradients"].keys()
    largest = max(float(gradient.abs().max()) for gradient in expected["gradients"].values())
    worst = 0.0
    for parameter, gradient in expected["gradients"].items():
        # Some are 0 but for rounding: the bias of BERT's keys.
        size = max(float(gradient.abs().max()), 1e-6 * largest)
        error = float((found["gradients"][parameter] - gradient).abs().max()) / size
        assert error <= tolerance, parameter
        worst = max(worst, error)
    # Adam's first step is lr · g / (|g| + 1e-8): only where g is more than rounding are weights those of one process.
    for parameter, weight in expected["weights"].items():
        if parameter not in expected["gradients"] or float(expected["gradients"][parameter].abs().max()) > 1e-6 * largest:
            assert torch.allclose(found["weights"][parameter], weight, rtol=1e-5, atol=1e-6), parameter
    assert found["teacher_sharded"] == ("sharded teacher" in name)
    assert found["teacher_same"]
    assert not found["teacher_in_student"]
    assert found["first_text"] == expected["first_text"]
    record(
        f"A step of {ranks} gloo processes on one global batch: {name}",
        found=f"the loss and every gradient of one process, but for {worst:.0e} of a parameter's largest gradient",
        goal="1e-6",
    )


def test_the_students_texts_are_read_and_learned_from(two: dict[str, Case]) -> None:
    found = two["on its own texts"]
    assert found["sharded"] == 1.0
    assert found["figures"]["train/on_policy_kl"] > 0


def test_a_gradient_that_is_bad_in_one_process_is_left_out_by_all(two: dict[str, Case]) -> None:
    assert two["fault"]["skipped"] == 1
    assert two["fault"]["gradients"] == {}
    assert two["decoder / fsdp2"]["skipped"] == 0


def test_texts_are_compared_that_say_something(alone: dict[str, Case]) -> None:
    assert alone["untied"]["first_text"]


def test_other_strategies_are_refused() -> None:
    for strategy in (FSDP2(), DDPStrategy()):
        check_strategy(strategy)
    with pytest.raises(UserError, match=r"ModelParallelStrategy.*give ddp .* or fsdp2"):
        check_strategy(ModelParallelStrategy())


def test_a_teacher_on_the_students_base_is_refused_under_fsdp2(tiny_lm: Path) -> None:
    student = DecoderStudent(str(tiny_lm), lora=Lora(rank=2), teacher=SharedBaseTeacher(str(tiny_lm)))
    student._trainer = SimpleNamespace(strategy=FSDP2(), datamodule=SimpleNamespace(task=Task(), max_length=64))
    with pytest.raises(UserError, match=r"shared_base.*fsdp2.*take the strategy ddp"):
        student.setup("fit")


def test_a_sharded_teacher_is_for_decoders_and_whole_texts(tiny_lm: Path, tiny_encoder: Path) -> None:
    with pytest.raises(UserError, match="shard and share_prefixes"):
        HFTeacher(str(tiny_lm), share_prefixes=True, shard=True)
    with pytest.raises(UserError, match=r"level distributions.*without shard: true"):
        EncoderStudent(str(tiny_encoder), teacher=HFTeacher(str(tiny_lm), shard=True), cross_entropy=0.5, hidden_states=None)
