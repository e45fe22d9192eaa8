"""One optimizer step over all pairs of a file; saves the gradients that the optimizer saw. Run by test_global_batch*."""

import json
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback
from one_epoch import train_one_epoch

from lantern_pl.depth_pruning import DepthPruning
from lantern_pl.divergences.contract import WeightedDivergence
from lantern_pl.divergences.first_party import JS, KL
from lantern_pl.students import DecoderStudent, EncoderStudent, Student
from lantern_pl.teachers.local_model import HFTeacher


class KeepGradients(Callback):
    """Writes what the optimizer is given: normalised, and clipped if so configured."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_train_start(self, trainer, student) -> None:
        def keep(*_) -> None:
            self.gradients.append({name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None})

        trainer.optimizers[0].register_step_post_hook(keep)

    def on_train_end(self, trainer, student) -> None:
        if trainer.is_global_zero:
            (only,) = self.gradients
            torch.save(only, self.out)
            figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
            self.out.with_suffix(".json").write_text(json.dumps(figures))


def make_student(kind: str, model: str) -> Student:
    """Two layers, and nothing drawn at random, which would depend on how pairs are batched."""
    if kind == "encoder":
        mixture = [WeightedDivergence(JS(), 0.7)]
        return EncoderStudent(model, layers=DepthPruning(2), dropout=0.0, mixture=mixture, cross_entropy=0.5)
    return DecoderStudent(
        model,
        layers=DepthPruning(2),
        teacher=HFTeacher(model),
        mixture=[WeightedDivergence(KL())],
        cross_entropy=0.5,
    )


def main() -> None:
    config, out, batch_size, accumulate, ranks, clip = sys.argv[1:]
    settings = json.loads(Path(config).read_text())
    torch.manual_seed(0)
    student = make_student(settings.get("kind", "decoder"), settings["model"])
    train_one_epoch(
        student,
        settings["data"],
        int(batch_size),
        KeepGradients(Path(out)),
        devices=int(ranks),
        strategy="ddp" if int(ranks) > 1 else "auto",
        accumulate_grad_batches=int(accumulate),
        gradient_clip_val=float(clip) or None,
    )


if __name__ == "__main__":
    main()
