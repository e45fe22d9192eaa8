"""One optimizer step over all pairs of a file; saves the gradients that the optimizer saw. Run by test_global_batch*."""

import json
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer

from lantern_pl.data.pair_data import PairDataModule
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
    data = PairDataModule(
        settings["data"],
        val_path=settings["data"],
        test_path=settings["data"],
        max_length=320,
        batch_size=int(batch_size),
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=int(ranks),
        strategy="ddp" if int(ranks) > 1 else "auto",
        accumulate_grad_batches=int(accumulate),
        gradient_clip_val=float(clip) or None,
        max_epochs=1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[KeepGradients(Path(out))],
    )
    trainer.fit(student, data)


if __name__ == "__main__":
    main()
