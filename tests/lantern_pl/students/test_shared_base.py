"""The student's own base as its teacher: one copy of the weights, and none of the traps that come with it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support import Ran
from torch import nn

from lantern_pl.causal_lm import load_causal_lm
from lantern_pl.data.pair import Pair
from lantern_pl.divergences.contract import WeightedDivergence
from lantern_pl.divergences.first_party import KL
from lantern_pl.errors import UserError
from lantern_pl.students import DecoderStudent, Lora
from lantern_pl.tasks import Task
from lantern_pl.teachers.adapter_off import SharedBaseTeacher
from lantern_pl.teachers.local_model import HFTeacher

Lantern = Callable[..., Ran]


@pytest.fixture(scope="module")
def adapter(small_lm: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An adapter of the teacher's own, with weights that do something."""
    folder = tmp_path_factory.mktemp("adapters") / "teacher"
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
    adapted = get_peft_model(load_causal_lm(small_lm, torch.float32), config)
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(str(folder))
    return str(folder)


def _student(model: str, teacher: Any, **changes: Any) -> DecoderStudent:
    arguments = {"lora": Lora(rank=4, dropout=0.5), "mixture": [WeightedDivergence(KL())], **changes}
    student = DecoderStudent(model, teacher=teacher, **arguments)
    student.task = Task()
    torch.manual_seed(3)
    for name, parameter in student.named_parameters():
        if "lora_" in name and parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    return student


def _batch(student: DecoderStudent, pairs: list[Pair]):
    features = student.featurizer(Task(), 320)
    return features.collate([features.encode(pair) for pair in pairs])


@pytest.mark.parametrize("own_adapter", [False, True])
def test_it_says_what_a_teacher_of_its_own_memory_says(
    small_lm: str, adapter: str, pairs: list[Pair], own_adapter: bool
) -> None:
    path = adapter if own_adapter else None
    teacher = SharedBaseTeacher(small_lm, path)
    student = _student(small_lm, teacher)
    batch = _batch(student, pairs[:2])
    apart = HFTeacher(small_lm, path).to(torch.device("cpu")).score_tokens(batch.tokens)
    shared = teacher.score_tokens(batch.tokens)
    torch.testing.assert_close(shared.hidden, apart.hidden, atol=1e-4, rtol=1e-4)
    assert shared.head.weight.data_ptr() == student.lm.get_output_embeddings().weight.data_ptr()


@pytest.mark.parametrize("own_adapter", [False, True])
def test_the_students_gradients_are_those_with_a_teacher_of_its_own_memory(
    small_lm: str, adapter: str, pairs: list[Pair], own_adapter: bool
) -> None:
    path = adapter if own_adapter else None
    found = []
    for teacher in (SharedBaseTeacher(small_lm, path), HFTeacher(small_lm, path)):
        student = _student(small_lm, teacher, cross_entropy=0.5)
        torch.manual_seed(5)  # of dropout, which has to be on
        output, _ = student.summed_loss(_batch(student, pairs[:2]))
        output.loss.backward()
        found.append({name: p.grad for name, p in student.named_parameters() if p.grad is not None})
    assert set(found[0]) == set(found[1])
    assert all("lora_" in name for name in found[0])
    for name, gradient in found[1].items():
        torch.testing.assert_close(found[0][name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


@pytest.mark.parametrize("own_adapter", [False, True])
def test_nothing_of_the_student_is_changed_by_an_answer(
    small_lm: str, adapter: str, pairs: list[Pair], own_adapter: bool
) -> None:
    teacher = SharedBaseTeacher(small_lm, adapter if own_adapter else None)
    student = _student(small_lm, teacher)
    batch = _batch(student, pairs[:1])
    before = [(name, p.requires_grad) for name, p in student.named_parameters()]
    active = student.lm.active_adapter
    teacher.score_tokens(batch.tokens)
    teacher.level_probs(pairs[:1], Task())
    assert [(name, p.requires_grad) for name, p in student.named_parameters()] == before
    assert student.lm.active_adapter == active
    dropouts = [module for module in student.lm.modules() if isinstance(module, nn.Dropout)]
    assert dropouts
    assert all(module.training for module in student.lm.modules())
    torch.manual_seed(1)
    first = student.summed_loss(batch)[0].loss
    torch.manual_seed(2)
    assert float(first) != float(student.summed_loss(batch)[0].loss), "dropout is off"


def test_the_teachers_adapter_is_never_trained_saved_or_exported(
    lantern: Lantern, decoder_config: Path, small_lm: str, adapter: str, tmp_path: Path
) -> None:
    teacher = ("--model.teacher", "lantern_pl.teachers.shared_base", "--model.teacher.model", small_lm)
    ran = lantern(
        *("fit", "--config", decoder_config, *teacher, "--model.teacher.adapter", adapter),
        *("--model.layers=null", "--model.lora.rank=4", "--model.optimization.learning_rate=0.01"),
    )
    assert ran.code == 0, ran.err
    student = tmp_path / "run" / "student"
    assert (student / "adapter" / "adapter_config.json").is_file()
    assert not (student / "adapter" / "teacher").exists()
    assert json.loads((student / "adapter" / "adapter_config.json").read_text())["r"] == 4
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("last*.ckpt")
    state = torch.load(checkpoint, weights_only=False)["state_dict"]
    assert state
    assert all("lora_" in name and ".default" in name for name in state)
    base, trained = (load_causal_lm(folder, torch.float32) for folder in (small_lm, str(student)))
    theirs = dict(base.named_parameters())
    assert any(not torch.equal(p, theirs[name]) for name, p in trained.named_parameters())
    assert torch.equal(trained.get_input_embeddings().weight, base.get_input_embeddings().weight)


def test_where_there_is_no_shared_base_it_is_refused(small_lm: str, tiny_lm: Path, pairs: list[Pair]) -> None:
    for arguments, said in (
        ({"lora": None}, "no lora"),
        ({"model": str(tiny_lm)}, "give both the same"),
    ):
        with pytest.raises(UserError, match=said):
            _student(**{"model": small_lm, "teacher": SharedBaseTeacher(small_lm), **arguments})
    with pytest.raises(UserError, match="has no model of its own"):
        SharedBaseTeacher(small_lm).level_probs(pairs[:1], Task())
