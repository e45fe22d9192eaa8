"""What a model says about pairs, asked in batches: its level distributions, and its answers as it writes them freely."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lantern_pl.causal_lm import generate
from lantern_pl.data.featurize import DecoderFeaturizer
from lantern_pl.data.pair import Pair
from lantern_pl.evaluation.token_divergence import Bar
from lantern_pl.plugin_checks import ask, checked_level_probs
from lantern_pl.tasks import Task
from lantern_pl.teachers.contract import Teacher
from lantern_pl.teachers.local_model import HFTeacher


@dataclass(frozen=True)
class Written:
    """An answer to a pair's question. `tokens`: its length, and `ended`: whether the model ended it, rather than the length
    limit; None where the model doesn't say."""

    text: str
    tokens: int | None
    ended: bool | None


def level_probs_of(model: Teacher, pairs: Sequence[Pair], task: Task, batch_size: int, bar: Bar) -> Tensor:
    """The level distributions [P, K] in float32, on the CPU."""
    starts = bar(range(0, len(pairs), batch_size), "levels")
    batches = (pairs[start : start + batch_size] for start in starts)
    return torch.cat([checked_level_probs(model, batch, task).float().cpu() for batch in batches])


def explanations_of(model: Teacher, pairs: Sequence[Pair], task: Task, batch_size: int, bar: Bar) -> list[str]:
    """The explanation alone of each pair, as the model annotates; empty where its answer had no format."""
    texts: list[str] = []
    for start in bar(range(0, len(pairs), batch_size), "explanations"):
        batch = pairs[start : start + batch_size]
        texts += [annotation.explanation or "" for annotation in ask(model, lambda batch=batch: model.annotate(batch, task))]  # type: ignore[misc]
    return texts


def answers_of(
    model: Teacher, pairs: Sequence[Pair], task: Task, max_length: int, max_new_tokens: int, batch_size: int, bar: Bar
) -> list[Written]:
    """The whole answer to each pair's question.

    A local model writes it token by token, most probable ones first, as it does when it is served: nothing holds it to the
    task's form. Other teachers annotate.
    """
    answers: list[Written] = []
    for start in bar(range(0, len(pairs), batch_size), "explanations"):
        batch = pairs[start : start + batch_size]
        # Not of what derives from it: shared_base answers with a model that is the student's at other times.
        if type(model) is HFTeacher:
            features = DecoderFeaturizer(model.tokenizer, task, max_length)
            written = generate(model.lm, model.tokenizer, [features.prompt(pair) for pair in batch], max_new_tokens)
            answers += [Written(answer.text, answer.tokens, answer.ended) for answer in written]
            continue
        annotations = ask(model, lambda batch=batch: model.annotate(batch, task))  # type: ignore[misc]
        answers += [Written(a.text, a.completion_tokens or None, a.finish_reason == "stop") for a in annotations]
    return answers


def parameters(model: Teacher) -> int | None:
    """How many parameters a teacher in this process has, None for one without any, or elsewhere."""
    module = getattr(model, "lm", None) or getattr(model, "classifier", None)
    return sum(p.numel() for p in module.parameters()) if isinstance(module, torch.nn.Module) else None


def about(model: Teacher, name: str | None = None) -> str:
    """A model in a few words: its name and its size."""
    name = name or getattr(model, "model_name", None)
    size = parameters(model)
    words = [type(model).__name__ if name is None else str(name)]
    return ", ".join(words + ([] if size is None else [f"{size / 1e6:.1f}M parameters"]))
