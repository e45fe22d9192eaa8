"""DecoderStudent: a small causal LM that explains the fit, taught by texts and by a teacher's logits."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lantern_kernels import Head, MixtureOutput, Term, linear_mixture_loss
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.text import ROUGEScore

from lantern_pl.causal_lm import generate, hidden_at_positions, load_causal_lm, output_head
from lantern_pl.data.featurize import DecoderBatch, DecoderFeaturizer
from lantern_pl.data.pair import Pair
from lantern_pl.depth_pruning import DepthPruning
from lantern_pl.divergences.contract import PointwiseDivergence, WeightedDivergence
from lantern_pl.errors import UserError
from lantern_pl.plugin_checks import ask, check_divergence, check_teacher, checked_signal
from lantern_pl.signals import Hidden, Logits, TopK
from lantern_pl.students.alignment import Aligner
from lantern_pl.students.lora import Lora, add_lora, write_merged
from lantern_pl.students.student import Means, Optimization, Student, check_loss
from lantern_pl.tasks import Task
from lantern_pl.teachers.contract import Teacher
from lantern_pl.text import fingerprint, load_tokenizer

# Rows of logits at a time when only the best token is wanted.
ARGMAX_CHUNK = 128
_OPTIMIZATION = Optimization()


class DecoderStudent(Student):
    """A causal LM that learns to write the level and the explanation.

    Its loss on the supervised tokens is cross_entropy · CE(explanation) + temperature² · Σ weight · divergence(teacher,
    student), in one pass over hidden states: logits of all positions never exist at once. Without a teacher it is plain
    supervised fine-tuning, which is how an in-house teacher is trained.

    Args:
        model: what the student starts from: embedded:smollm2-135m, a folder (such as an earlier stage's student), or a
            name on the model hub.
        layers: keep only some of the model's layers (depth pruning); null keeps all.
        lora: train low-rank adapters instead of all weights; null trains all.
        teacher: whose logits to learn from, such as lantern_pl.teachers.hf; null for plain fine-tuning.
        mixture: divergences to the teacher and their weights. With a teacher and an empty list, the divergence is only
            reported, not trained on.
        cross_entropy: weight of the cross entropy on the annotated explanation.
        temperature: softens both distributions in the divergences; cross entropy stays at temperature 1.
        optimization: learning rate and its schedule.
        max_new_tokens: length limit of generated explanations.
        generate_pairs: how many held-out pairs to explain at each validation, for ROUGE-L and the valid-format rate.
    """

    def __init__(
        self,
        model: str,
        layers: DepthPruning | None = None,
        lora: Lora | None = None,
        teacher: Teacher | None = None,
        mixture: list[WeightedDivergence] | None = None,
        cross_entropy: float = 1.0,
        temperature: float = 1.0,
        optimization: Optimization = _OPTIMIZATION,
        max_new_tokens: int = 96,
        generate_pairs: int = 4,
    ) -> None:
        super().__init__(optimization)
        self.model_name = model
        self.layers = layers
        self.lora = lora
        self.terms: list[Term] = [weighted.term() for weighted in mixture or []]
        check_loss(self.terms, temperature, cross_entropy)
        self.temperature = temperature
        if max_new_tokens < 1 or generate_pairs < 0:
            raise UserError(
                f"model.max_new_tokens is {max_new_tokens} and generate_pairs {generate_pairs}: give 1 and 0, or more."
            )
        self.cross_entropy = cross_entropy
        self.max_new_tokens = max_new_tokens
        self.generate_pairs = generate_pairs
        self.tokenizer = load_tokenizer(model)
        self.divergences = [weighted.divergence for weighted in mixture or []]
        self.teacher = self._check_teacher(teacher)
        self._teacher_was_checked = False
        for divergence in self.divergences:
            check_divergence(divergence)
        lm = load_causal_lm(model, torch.float32, layers)
        self.lm: Any = (lm if lora is None else add_lora(lm, lora)).train()
        # Adapters alone go into checkpoints; the frozen weights come from `model` again.
        self.strict_loading = lora is None
        self.sample: dict[str, str] = {}
        self._start_metrics()

    @property
    def kind(self) -> Literal["decoder"]:
        return "decoder"

    def _check_teacher(self, teacher: Teacher | None) -> Teacher | None:
        self._other_tokenizer = False
        if teacher is None:
            if self.terms:
                raise UserError("model.mixture needs a teacher: give model.teacher, or leave the mixture empty.")
            return None
        check_teacher(teacher)
        if "score_tokens" not in teacher.capabilities:
            raise UserError(
                f"The teacher {type(teacher).__name__} can't score tokens (it can: "
                f"{', '.join(sorted(teacher.capabilities))}); a decoder needs that. lantern_pl.teachers.hf can."
            )
        own = fingerprint(self.tokenizer)
        self._other_tokenizer = teacher.tokenizer_fingerprint != own
        tied = [d.name for d in self.divergences if d.same_tokenizer]
        if self._other_tokenizer and (tied or not self.divergences or teacher.tokenizer is None):
            why = f"{tied[0]!r} compares them token by token" if tied else "the mixture is empty"
            if not tied and teacher.tokenizer is None:
                why = "that teacher gives no tokenizer to align them by"
            raise UserError(
                f"Teacher and student have different tokenizers: the teacher's fingerprint is "
                f"{teacher.tokenizer_fingerprint}, that of the student {self.model_name!r} is {own}. Their token ids stand "
                f"for different texts, and {why}. Choose a student of the teacher's family, or divergences that align "
                "tokens by themselves (`lantern plugins show uld`)."
            )
        if teacher.top_k is not None:
            general = [d.name for d in self.divergences if not isinstance(d, PointwiseDivergence)]
            if self.temperature != 1 or general:
                what = f"{general[0]!r} needs all of them" if general else "probabilities of the others can't be softened"
                raise UserError(
                    f"The teacher {type(teacher).__name__} names only the {teacher.top_k} most probable tokens, and {what}: "
                    "give model.temperature 1 and pointwise divergences, or a teacher with the whole vocabulary."
                )
        return teacher

    def featurizer(self, task: Task, max_length: int) -> DecoderFeaturizer:
        return DecoderFeaturizer(self.tokenizer, task, max_length)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self._features = self.featurizer(self.task, self.trainer.datamodule.max_length)  # type: ignore[attr-defined]
        if self.teacher is not None:
            ask(self.teacher, partial(self.teacher.to, self.trainer.strategy.root_device))
            if self._other_tokenizer and self.teacher.tokenizer is not None:
                theirs = DecoderFeaturizer(self.teacher.tokenizer, self.task, self._features.max_length)
                self._aligner = Aligner(self.tokenizer, theirs)

    # Loss

    def summed_loss(self, batch: DecoderBatch) -> tuple[MixtureOutput, int]:
        output, _ = self._mixture(batch, self.terms)
        return output, len(batch.targets)

    def _mixture(self, batch: DecoderBatch, terms: list[Term]) -> tuple[MixtureOutput, Head]:
        """The loss summed over the N supervised positions, and the student's hidden states and head there."""
        student = output_head(self.lm).on(hidden_at_positions(self.lm, batch.tokens))
        supervised = {"targets": batch.targets, "cross_entropy": self.cross_entropy}
        if self.teacher is None or not terms:
            return self._loss(student, None, [], **supervised), student
        if not self._other_tokenizer:
            teacher = self._signal(batch).for_loss()
            return self._loss(student, teacher, terms, **supervised), student
        translated, rows, teacher_rows = self._aligner.align(batch)
        signal = self._signal(translated)
        aligned = self._loss(
            replace(student, hidden=student.hidden[rows]), signal.at(teacher_rows).for_loss(), terms, cross_entropy=0.0
        )
        texts = self._loss(student, None, [], **supervised)
        return MixtureOutput(aligned.loss + texts.loss, {**aligned.terms, **texts.terms}), student

    def _loss(self, student: Head, teacher: Any, terms: list[Term], **supervised: Any) -> MixtureOutput:
        weights = torch.ones(len(student.hidden), device=self.device)
        return linear_mixture_loss(student, teacher, terms, temperature=self.temperature, row_weights=weights, **supervised)

    def _signal(self, batch: DecoderBatch) -> Hidden | Logits | TopK:
        assert self.teacher is not None
        rows = len(batch.targets)
        signal = checked_signal(self.teacher, batch.tokens, rows, look_at_values=not self._teacher_was_checked)
        self._teacher_was_checked = True
        return signal

    # Evaluation

    def _start_metrics(self) -> None:
        reported = {term.label: term for term in self.terms}
        # KL is the yardstick of every run, also where the mixture doesn't hold it or there is no mixture.
        yardstick = {} if self.teacher is None or self._other_tokenizer else {"kl": Term("kl", weight=0.0)}
        self.reported_terms = list({**yardstick, **reported}.values())
        names = [*(term.label for term in self.reported_terms), "cross_entropy", "token_accuracy"]
        self.means = Means(names)
        self.valid_format = MeanMetric()
        self.rouge = ROUGEScore(rouge_keys="rougeL")
        self._to_explain: list[Pair] = []

    @torch.no_grad()
    def update_metrics(self, batch: DecoderBatch) -> None:
        output, student = self._mixture(batch, self.reported_terms)
        for name, values in output.terms.items():
            self.means.update(name, values)
        self.means.update("token_accuracy", (_best_tokens(student) == batch.targets).float())
        self._to_explain += batch.pairs[: self.generate_pairs - len(self._to_explain)]

    def finish_metrics(self) -> dict[str, float]:
        texts = self.explain(self._to_explain)
        for pair, text in zip(self._to_explain, texts, strict=True):
            answer = self.task.parse_answer(text)
            self.valid_format.update(float(answer is not None))
            self.rouge.update(text, self.task.render_answer(pair.level or "", pair.explanation or ""))
        if texts:
            self._remember_sample(self._to_explain[0], texts[0])
        figures = self.means.finish()
        if texts:
            figures["rouge_l"] = float(self.rouge.compute()["rougeL_fmeasure"])
            figures["valid_format"] = float(self.valid_format.compute())
        for metric in (self.valid_format, self.rouge):
            metric.reset()
        self._to_explain = []
        return figures

    @torch.no_grad()
    def explain(self, pairs: list[Pair]) -> list[str]:
        """The student's answers about pairs, greedily decoded, all in one batch."""
        training = self.lm.training
        self.lm.eval()
        prompts = [self._features.prompt(pair) for pair in pairs]
        texts = generate(self.lm, self.tokenizer, prompts, self.max_new_tokens)
        self.lm.train(training)
        return texts

    @rank_zero_only
    def _remember_sample(self, pair: Pair, text: str) -> None:
        """One held-out pair, answered by the teacher, the untrained and the trained student, for a person to read."""
        if not self.sample:
            self.sample = {"annotation": self.task.render_answer(pair.level or "", pair.explanation or "")}
            if self.teacher is not None and "annotate" in self.teacher.capabilities:
                self.sample["teacher"] = self.teacher.annotate([pair], self.task)[0].text
        self.sample["untrained" if self.trainer.sanity_checking else "trained"] = text

    def predict_step(self, batch: DecoderBatch, batch_idx: int) -> list[dict[str, Any]]:
        """One record per pair: its id, the answer's text, and what could be read from it."""
        texts = self.explain(batch.pairs)
        records = []
        for pair, text in zip(batch.pairs, texts, strict=True):
            answer = self.task.parse_answer(text)
            level, explanation = (answer.level, answer.explanation) if answer else (None, None)
            records.append({"pair_id": pair.pair_id, "text": text, "level": level, "explanation": explanation})
        return records

    # Files

    def write(self, folder: Path) -> None:
        if self.lora is None:
            self.lm.save_pretrained(folder)
        else:
            base = load_causal_lm(self.model_name, torch.float32, self.layers)
            write_merged(self.lm, base, folder)
        self.tokenizer.save_pretrained(folder)

    def describe(self) -> dict[str, Any]:
        return {
            "started_from": self.model_name,
            "layers": None if self.layers is None else asdict(self.layers),
            "lora": None if self.lora is None else asdict(self.lora),
            "loss": {
                "cross_entropy": self.cross_entropy,
                "temperature": self.temperature,
                "mixture": {term.label: term.weight for term in self.terms},
            },
            "parameters": sum(parameter.numel() for parameter in self.lm.parameters()),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["sample"] = self.sample
        if self.lora is not None:
            trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
            checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.sample = checkpoint.get("sample", {})


def _best_tokens(student: Head) -> Tensor:
    """The most probable token [N] at each position. Scale and soft cap are monotonic, so only the bias counts."""
    weight = student.weight.to(student.hidden.dtype)
    chunks = student.hidden.split(ARGMAX_CHUNK)
    return torch.cat([nn.functional.linear(rows, weight, student.bias).argmax(-1) for rows in chunks])
