"""One optimizer step of each of several students, in as many processes as torchrun starts; run by test_sharded_students.

What each saves is whole, whatever the strategy: the gradients that the optimizer saw, the weights after it, and figures.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from one_epoch import train_one_epoch
from torch.distributed.tensor import DTensor

from lantern_pl.depth_pruning import DepthPruning
from lantern_pl.divergences.contract import WeightedDivergence
from lantern_pl.divergences.first_party import KL
from lantern_pl.sharding import gather
from lantern_pl.students import DecoderStudent, EncoderStudent, HiddenStates, Lora, OnPolicy, Optimization, Student
from lantern_pl.teachers.local_model import HFTeacher


class Keep(Callback):
    """Keeps what the optimizer is given: normalised, and clipped if so configured."""

    def __init__(self, fault: bool) -> None:
        self.fault = fault
        self.steps: list[dict[str, Any]] = []
        self.texts: list[str] = []

    def on_train_start(self, trainer, student) -> None:
        def keep(*_) -> None:
            parameters = dict(student.named_parameters())
            gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
            self.steps.append(
                {
                    "gradients": {k: v.clone() for k, v in gather(gradients, keep=True).items()},
                    "weights": {k: v.clone() for k, v in gather(parameters, keep=True).items()},
                    "sharded": sum(isinstance(p, DTensor) for p in parameters.values()) / len(parameters),
                }
            )

        trainer.optimizers[0].register_step_post_hook(keep)

    def on_after_backward(self, trainer, student) -> None:
        if self.fault and trainer.global_rank == 1:
            gradient = next(p.grad for p in student.parameters() if p.grad is not None)
            (gradient.to_local() if isinstance(gradient, DTensor) else gradient).fill_(torch.nan)

    def on_train_end(self, trainer, student) -> None:
        if student.kind == "decoder":
            # Processes write a different number of answers, of different lengths.
            self.texts = student.explain(trainer.datamodule.pairs["train"][: 1 + trainer.global_rank])


def checksum(teacher: HFTeacher) -> str:
    digest = hashlib.sha256()
    for _, value in sorted(gather(teacher.lm.state_dict(), keep=True).items()):
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def make_student(case: dict[str, Any]) -> Student:
    torch.manual_seed(0)
    mixture = [WeightedDivergence(KL(), 0.7)]
    if case["kind"] == "encoder":
        # Votes are what it learns from: a teacher of levels would have to be asked.
        student: Student = EncoderStudent(
            case["model"], layers=DepthPruning(2), dropout=0.0, mixture=mixture, cross_entropy=0.5
        )
    else:
        student = DecoderStudent(
            case["model"],
            layers=DepthPruning(2),
            lora=Lora(rank=2) if case.get("lora") else None,
            teacher=HFTeacher(case["teacher"], shard=case.get("shard", False)),
            mixture=mixture,
            cross_entropy=0.5,
            hidden_states=HiddenStates(layers=[(1, 1), (-1, -1)]) if case.get("hidden_states") else None,
            on_policy=OnPolicy(fraction=1.0, max_new_tokens=4) if case.get("on_policy") else None,
            max_new_tokens=8,
            optimization=Optimization(not_finite="skip"),
        )
    if case.get("lora"):
        # B is 0 in the beginning, which would leave A without a gradient.
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    if case.get("double", True):
        student.double()
        if getattr(student, "teacher", None) is not None:
            student.teacher.lm.double()
    return student


def run(case: dict[str, Any], ranks: int) -> dict[str, Any]:
    student, keep = make_student(case), Keep(fault=case.get("fault", False))
    teacher = getattr(student, "teacher", None)
    before = checksum(teacher) if teacher else None
    trainer = train_one_epoch(
        student,
        case["data"],
        case["batch_size"],
        keep,
        devices=ranks,
        strategy=case["strategy"] if ranks > 1 else "auto",
        accumulate_grad_batches=case["accumulate"],
        gradient_clip_val=case.get("clip"),
        gradient_clip_algorithm=case.get("clip_by"),
    )
    (step,) = keep.steps
    figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
    names = {name for name, _ in student.named_parameters()} | set(student.state_dict())
    return {
        **step,
        "figures": figures,
        "skipped": student.skipped_steps,
        "first_text": next(iter(keep.texts), None),
        "teacher_same": before is None or checksum(teacher) == before,
        "teacher_in_student": any("teacher" in name for name in names),
        "teacher_sharded": teacher is not None and any(isinstance(p, DTensor) for p in teacher.lm.parameters()),
    }


def main() -> None:
    cases, out, ranks = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), int(sys.argv[3])
    found = {name: run(case, ranks) for name, case in cases.items()}
    if ranks == 1 or dist.get_rank() == 0:
        torch.save(found, out)


if __name__ == "__main__":
    main()
