"""DecoderStudent: a small causal LM that explains the fit, taught by texts and by a teacher's logits."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from lantern_kernels import Head, MixtureOutput, Term, linear_mixture_loss
from lantern_kernels.terms import CROSS_ENTROPY
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.text import ROUGEScore

from lantern_pl.causal_lm import generate, layers_at_positions, load_causal_lm, output_head
from lantern_pl.data.featurize import Batch, DecoderBatch, DecoderFeaturizer
from lantern_pl.data.pair import Pair
from lantern_pl.depth_pruning import DepthPruning
from lantern_pl.divergences.contract import WeightedDivergence
from lantern_pl.errors import UserError
from lantern_pl.fsdp2 import FSDP2
from lantern_pl.plugin_checks import ask, check_divergence, check_teacher, checked_signal
from lantern_pl.positions import check_length
from lantern_pl.prediction.answers import decoder_answers
from lantern_pl.prediction.loader import Portion
from lantern_pl.schedules import Scheduled
from lantern_pl.sharding import whole
from lantern_pl.signals import Hidden, Logits, TopK
from lantern_pl.students.alignment import Aligner
from lantern_pl.students.decoder_teacher import (
    TO_SAMPLES,
    check_on_policy,
    check_partial_signals,
    check_vocabulary,
    has_other_tokenizer,
    to_samples,
)
from lantern_pl.students.hidden_states import NAME, HiddenStates, HiddenStateTerm
from lantern_pl.students.lora import Lora, add_lora, write_merged
from lantern_pl.students.on_policy import FRACTION, OnPolicy, Sampler
from lantern_pl.students.student import HIDDEN_WEIGHT, ON_POLICY, Means, Optimization, Student, check_loss, only_reported
from lantern_pl.tasks import Task
from lantern_pl.teachers.adapter_off import SharedBaseTeacher
from lantern_pl.teachers.contract import Teacher
from lantern_pl.text import fingerprint, load_tokenizer

# Rows of logits at a time when only the best token is wanted.
ARGMAX_CHUNK = 128
_OPTIMIZATION = Optimization()


class DecoderStudent(Student):
    """A causal LM that learns to write the level and the explanation.

    Its loss on the supervised tokens is cross_entropy · CE(explanation) + temperature² · Σ weight · divergence(teacher,
    student), in one pass over hidden states: logits of all positions never exist at once. Without a teacher it is plain
    supervised fine-tuning, which is how an in-house teacher is trained. `hidden_states` adds a term of its own.

    Args:
        model: what the student starts from: embedded:smollm2-135m, a folder (such as an earlier stage's student), or a
            name on the model hub.
        layers: keep only some of the model's layers (depth pruning); null keeps all.
        lora: train low-rank adapters instead of all weights; null trains all.
        teacher: whose logits to learn from, such as lantern_pl.teachers.hf; null for plain fine-tuning.
        mixture: divergences to the teacher and their weights. With a teacher and an empty list, the divergence is only
            reported, not trained on.
        cross_entropy: weight of the cross entropy on the annotated explanation.
        temperature: softens both distributions in the divergences; cross entropy stays at temperature 1. It, the weights and
            cross_entropy may each be a schedule, such as {start: 2, end: 1}.
        optimization: learning rate and its schedule.
        hidden_states: learn the teacher's hidden states as well, on the same tokens; null leaves that out.
        on_policy: train a share of the batches on answers that the student samples itself, with the teacher's say on them
            (GKD); null trains on the annotations alone.
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
        cross_entropy: Scheduled = 1.0,
        temperature: Scheduled = 1.0,
        optimization: Optimization = _OPTIMIZATION,
        hidden_states: HiddenStates | None = None,
        on_policy: OnPolicy | None = None,
        max_new_tokens: int = 96,
        generate_pairs: int = 4,
    ) -> None:
        super().__init__(optimization)
        self.model_name = model
        self.layers = layers
        self.lora = lora
        self.on_policy = on_policy
        others: dict[str, Scheduled] = {} if on_policy is None else {FRACTION: on_policy.fraction}
        others |= {} if hidden_states is None else {HIDDEN_WEIGHT: hidden_states.weight}
        self.start_numbers(mixture or [], temperature, cross_entropy, others)
        check_loss(self.terms, temperature, cross_entropy, 0.0 if hidden_states is None else hidden_states.weight)
        if max_new_tokens < 1 or generate_pairs < 0:
            raise UserError(
                f"model.max_new_tokens is {max_new_tokens} and generate_pairs {generate_pairs}: give 1 and 0, or more."
            )
        self.max_new_tokens = max_new_tokens
        self.generate_pairs = generate_pairs
        self.tokenizer = load_tokenizer(model)
        self.divergences = [weighted.divergence for weighted in mixture or []]
        self.hidden_states: HiddenStateTerm | None = None
        if hidden_states is not None:
            self.hidden_states = HiddenStateTerm(hidden_states, teacher, "token_hidden_states", model, layers)
        self.teacher = self._check_teacher(teacher)
        self._teacher_was_checked = False
        for divergence in self.divergences:
            check_divergence(divergence)
        self.lm: Any = self._load().train()
        if teacher is not None and not self._other_tokenizer:
            check_vocabulary(teacher, model, len(output_head(self.lm).weight))
        if isinstance(teacher, SharedBaseTeacher):
            teacher.attach(self.lm, model)
        # Adapters alone go into checkpoints; the frozen weights come from `model` again.
        self.strict_loading = lora is None
        self.sample: dict[str, str] = {}  # a held-out pair's answers by who gave them, and its pair_id
        self._start_metrics()

    forwards = (*Student.forwards, "explain", "rewritten")

    @property
    def kind(self) -> Literal["decoder"]:
        return "decoder"

    @property
    def network(self) -> Any:
        return self.lm

    def _load(self) -> Any:
        """The model as it is before any training."""
        lm = load_causal_lm(self.model_name, torch.float32, self.layers)
        return lm if self.lora is None else add_lora(lm, self.lora)

    def _check_teacher(self, teacher: Teacher | None) -> Teacher | None:
        self._other_tokenizer = False
        if teacher is not None:
            check_teacher(teacher)
            if isinstance(teacher, SharedBaseTeacher) and (self.lora is None or self.layers is not None):
                what = "no lora" if self.lora is None else "other layers"
                raise UserError(
                    f"The teacher shared_base is the student's own frozen base, and the student has {what}: give model.lora "
                    "and no layers, or take the teacher lantern_pl.teachers.hf."
                )
            if "score_tokens" not in teacher.capabilities and (self.terms or self.hidden_states is None):
                raise UserError(
                    f"The teacher {type(teacher).__name__} can't score tokens (it can: "
                    f"{', '.join(sorted(teacher.capabilities))}); a decoder needs that. lantern_pl.teachers.hf can."
                )
            self._other_tokenizer = has_other_tokenizer(
                teacher,
                self.model_name,
                fingerprint(self.tokenizer),
                self.divergences,
                tied=self.hidden_states is not None,
            )
            check_partial_signals(teacher, self.divergences, self.numbers["temperature"])
        elif self.terms:
            raise UserError("model.mixture needs a teacher: give model.teacher, or leave the mixture empty.")
        if self.on_policy is not None:
            check_on_policy(teacher, self.divergences, self._other_tokenizer)
        return teacher

    def featurizer(self, task: Task, max_length: int) -> DecoderFeaturizer:
        return DecoderFeaturizer(self.tokenizer, task, max_length)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if isinstance(self.teacher, SharedBaseTeacher) and isinstance(self.trainer.strategy, FSDP2) and stage == "fit":
            raise UserError(
                "The teacher shared_base answers with the student's own model, whose weights trainer.strategy fsdp2 spreads "
                "over all processes: take the strategy ddp, or the teacher lantern_pl.teachers.hf, with shard: true to save "
                "memory."
            )
        self._features = self.featurizer(self.task, self.trainer.datamodule.max_length)  # type: ignore[attr-defined]
        self._check_length(stage)
        if self.teacher is not None and stage != "predict":  # which asks no teacher
            self.prepare_teacher(self.teacher, "score_tokens", self.tokenizer)
            if self._other_tokenizer and self.teacher.tokenizer is not None:
                theirs = DecoderFeaturizer(self.teacher.tokenizer, self.task, self._features.max_length)
                self._aligner = Aligner(self.tokenizer, theirs)

        if self.on_policy is not None:
            self._sampler = Sampler(self.on_policy, self._features)

    def _check_length(self, stage: str) -> None:
        explains = stage == "predict" or self.generate_pairs > 0
        written = [self.max_new_tokens if explains else 0, self.on_policy.max_new_tokens if self.on_policy else 0]
        check_length(self.lm, self.model_name, "data.init_args.max_length", self._features.max_length, max(written))

    # Loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.on_policy is not None and isinstance(batch, DecoderBatch):
            step = self.trainer.global_step
            if self._sampler.chooses(self.current[FRACTION], step, batch_idx):
                batch = self.rewritten(batch, (step, batch_idx, self.trainer.global_rank))
        return super().training_step(batch, batch_idx)

    @torch.no_grad()
    def rewritten(self, batch: DecoderBatch, place: Sequence[int]) -> DecoderBatch:
        """The batch with the student's own answers. Each process samples as many tokens as these take."""
        with whole(self.lm):
            return self._sampler.rewrite(batch, self.lm, place)

    def summed_loss(self, batch: DecoderBatch) -> tuple[MixtureOutput, int]:
        output, _ = self._mixture(batch, self.terms)
        if batch.generated:
            # Figures of their own: a divergence on the student's texts isn't one on the annotations.
            terms = {ON_POLICY + name: values for name, values in output.terms.items() if name != CROSS_ENTROPY}
            output = MixtureOutput(output.loss, terms)
        return output, len(batch.targets)

    def _mixture(self, batch: DecoderBatch, terms: list[Term]) -> tuple[MixtureOutput, Head]:
        """The loss summed over the N supervised positions, and the student's hidden states and head there."""
        layers = [] if self.hidden_states is None else self.hidden_states.layers
        last, states = layers_at_positions(self.lm, batch.tokens, layers)
        student = output_head(self.lm).on(last)
        # Before the teacher's distributions: a teacher that has run for its layers knows these too.
        theirs = [] if self.hidden_states is None else self.hidden_states.of_tokens(batch.tokens, len(last))
        output = self._of_next_tokens(batch, student, terms)
        if self.hidden_states is not None:
            output = self.hidden_states.add(output, states, theirs)
        return output, student

    def _of_next_tokens(self, batch: DecoderBatch, student: Head, terms: list[Term]) -> MixtureOutput:
        """The loss without the hidden states' term."""
        supervised = {"targets": batch.targets, "cross_entropy": 0.0 if batch.generated else self.cross_entropy}
        if self.teacher is None or not terms:
            return self._loss(student, None, [], **supervised)
        if not self._other_tokenizer:
            signal = self._signal(batch)
            output = self._loss(student, signal.for_loss(), terms, **supervised)
            return to_samples(output, terms, signal) if self.teacher.sampled else output
        translated, rows, teacher_rows = self._aligner.align(batch)
        signal = self._signal(translated)
        aligned = self._loss(
            replace(student, hidden=student.hidden[rows]), signal.at(teacher_rows).for_loss(), terms, cross_entropy=0.0
        )
        texts = self._loss(student, None, [], **supervised)
        return MixtureOutput(aligned.loss + texts.loss, {**aligned.terms, **texts.terms})

    def _loss(self, student: Head, teacher: Any, terms: list[Term], **supervised: Any) -> MixtureOutput:
        weights = torch.ones(len(student.hidden), device=self.device)
        if not terms and supervised["cross_entropy"] == 0:
            with torch.no_grad():
                output = linear_mixture_loss(student, None, [], row_weights=weights, **supervised | {"cross_entropy": 1.0})
            return only_reported(output, student.hidden, student.weight, student.bias)
        return linear_mixture_loss(
            student,
            teacher,
            terms,
            temperature=self.temperature,
            row_weights=weights,
            logits_before=self.logits_before(len(student.weight)),
            **supervised,
        )

    def _signal(self, batch: DecoderBatch) -> Hidden | Logits | TopK:
        assert self.teacher is not None
        rows = len(batch.targets)
        signal = checked_signal(self.teacher, batch.tokens, rows, look_at_values=not self._teacher_was_checked)
        self._teacher_was_checked = True
        return signal

    def ask_teacher_again(self, batch: DecoderBatch) -> None:
        # A teacher that all processes must ask together can't be asked by the one that has met a fault.
        if self.teacher is None or self.teacher.asked_together:
            return
        if self.terms:
            asked = self._aligner.align(batch)[0] if self._other_tokenizer else batch
            checked_signal(self.teacher, asked.tokens, len(asked.targets), look_at_values=True)
        if self.hidden_states is not None:
            self.hidden_states.of_tokens(batch.tokens, len(batch.targets), look_at_values=True)

    # Evaluation

    def _start_metrics(self) -> None:
        reported = {term.label: term for term in self.terms}
        # KL is the yardstick of every run, also where the mixture doesn't hold it or there is no mixture; of samples it's
        # their cross entropy.
        scored = self.teacher is not None and "score_tokens" in self.teacher.capabilities and not self._other_tokenizer
        yardstick = {"kl": Term("kl", weight=0.0)} if scored else {}
        self.reported_terms = list({**yardstick, **reported}.values())
        divergences = [term.label for term in self.reported_terms]
        if divergences and self.teacher is not None and self.teacher.sampled:
            divergences = [TO_SAMPLES]
        names = [*divergences, "cross_entropy", "token_accuracy"]
        names += [] if self.hidden_states is None else [NAME]
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
        if texts and self.trainer.state.fn == TrainerFn.FITTING:
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
        with whole(self.lm):
            texts = [answer.text for answer in generate(self.lm, self.tokenizer, prompts, self.max_new_tokens)]
        self.lm.train(training)
        return texts

    @rank_zero_only
    def _remember_sample(self, pair: Pair, text: str) -> None:
        """One held-out pair, answered by the teacher, the untrained and the trained student, for who runs a fit to read."""
        if self.sample.get("pair_id") != pair.pair_id:
            annotation = self.task.render_answer(pair.level or "", pair.explanation or "")
            self.sample = {"pair_id": pair.pair_id, "annotation": annotation}
            teacher = self.teacher
            if teacher is not None and "annotate" in teacher.capabilities:
                self.sample["teacher"] = ask(teacher, lambda: teacher.annotate([pair], self.task)[0].text)
        if not self.trainer.sanity_checking:
            self.sample["trained"] = text
        elif self.checkpoint_steps is None:  # a resumed run may make the check again, on trained weights
            self.sample["untrained"] = text

    def predict_step(self, portion: Portion, batch_idx: int) -> list[dict[str, Any]]:
        """One record per pair: its row and ids, the answer's text, what could be read from it, and the probability of each
        level."""
        return portion.answered(
            lambda batch: decoder_answers(self.lm, self.tokenizer, self.task, batch, self.max_new_tokens)
        )

    # Files

    def write(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        lm = self.lm
        if weights is not None:
            lm = self._load()
            own = {name.removeprefix("lm."): value for name, value in weights.items() if name.startswith("lm.")}
            lm.load_state_dict(own, strict=self.strict_loading)
        if self.lora is None:
            lm.save_pretrained(folder)
        else:
            base = load_causal_lm(self.model_name, torch.float32, self.layers)
            write_merged(lm, base, folder)
        self.tokenizer.save_pretrained(folder)

    def describe(self) -> dict[str, Any]:
        return {
            "started_from": self.model_name,
            "layers": None if self.layers is None else asdict(self.layers),
            "lora": None if self.lora is None else asdict(self.lora),
            "max_new_tokens": self.max_new_tokens,
            "loss": {
                **self.describe_loss(),
                "on_policy": None if self.on_policy is None else asdict(self.on_policy),
                NAME: None if self.hidden_states is None else asdict(self.hidden_states.settings),
            },
            "parameters": sum(parameter.numel() for parameter in self.lm.parameters()),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.lora is not None:
            trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
            checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}


def _best_tokens(student: Head) -> Tensor:
    """The most probable token [N] at each position. Scale and soft cap are monotonic, so only the bias counts."""
    weight = student.weight.to(student.hidden.dtype)
    chunks = student.hidden.split(ARGMAX_CHUNK)
    return torch.cat([nn.functional.linear(rows, weight, student.bias).argmax(-1) for rows in chunks])
