"""What a selected plugin must do before it may train anything: one message that names its distribution where it doesn't.

These look at a handful of numbers at each run; the contracts of `lantern_pl.testing`, which authors run, look at far more.
"""

import math
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from lantern_kernels import mixture_loss
from torch import Tensor

from lantern_pl.data.pair import Pair
from lantern_pl.divergences.contract import Divergence, PointwiseDivergence
from lantern_pl.errors import UserError
from lantern_pl.plugins import origin
from lantern_pl.signals import Hidden, LevelProbs, Logits, TokenBatch, TopK
from lantern_pl.tasks import Task
from lantern_pl.teachers.contract import CAPABILITIES, Teacher

_REMEDY = "Update or uninstall that distribution, or choose another plugin."
_STEP = 1e-5

Answer = TypeVar("Answer")


def check_divergence(divergence: Divergence) -> None:
    """Raise UserError unless it gives finite values within its bounds, one per row, and their gradient, on a few rows."""
    who = f"The divergence {origin(divergence)}"
    try:
        wrong = _wrong_with(divergence)
    except Exception as error:  # whatever a plugin raises, its name belongs to the message
        raise UserError(f"{who} fails on a few rows of logits: {type(error).__name__}: {error}. {_REMEDY}") from error
    if wrong:
        raise UserError(f"{who} {wrong} on a few rows of logits. {_REMEDY}")


def _wrong_with(divergence: Divergence) -> str | None:
    student, teacher = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    teacher[1] = student[1]
    # Next to nothing in common, and tokens that one of the two excludes.
    teacher[2, 0], student[2, 1] = 60.0, 60.0
    teacher[3, 0], student[3, 1] = -math.inf, -math.inf
    if isinstance(divergence, PointwiseDivergence):
        log_p, log_q = (logits[:3].log_softmax(-1) for logits in (teacher, student))
        for part in divergence.value_and_slope(log_p, log_q, log_p.exp(), log_q.exp()):
            if part.shape != log_p.shape:
                return f"gives a value or slope of shape {list(part.shape)} for log_p of shape {list(log_p.shape)}"

    def values(student: Tensor) -> Tensor:
        return mixture_loss(student, teacher, [divergence.term(1.0, label="it")], backend="torch").terms["it"]

    leaf = student.clone().requires_grad_()
    weights = torch.ones(4, dtype=torch.float64)
    terms = [divergence.term(1.0, label="it")]
    mixture_loss(leaf, teacher, terms, row_weights=weights, backend="torch").loss.backward()
    found, gradient = values(student), leaf.grad
    assert gradient is not None
    if not (torch.isfinite(found).all() and torch.isfinite(gradient).all()):
        return "gives NaN or infinity for its value or gradient"
    if found.min() < -1e-6:
        return f"gives the value {found.min().item():.4g}, and none may be below 0,"
    if found[1] > 1e-6:
        return f"gives the value {found[1].item():.4g} for two equal distributions"
    if divergence.upper_bound is not None and found.max() > divergence.upper_bound * (1 + 1e-5):
        return f"gives the value {found.max().item():.4g}, above its declared upper_bound of {divergence.upper_bound:.4g},"
    moves = _STEP * torch.eye(student.shape[1], dtype=torch.float64)
    numeric = torch.stack([(values(student + move)[0] - values(student - move)[0]) / (2 * _STEP) for move in moves])
    if not torch.allclose(gradient[0], numeric, rtol=1e-3, atol=1e-5):
        return f"gives a gradient that isn't its value's, {gradient[0, 0].item():.4g} instead of {numeric[0].item():.4g},"
    return None


def check_teacher(teacher: Teacher) -> None:
    """Raise UserError where it declares what it doesn't implement."""
    for capability in CAPABILITIES:
        if capability in teacher.capabilities and getattr(type(teacher), capability) is getattr(Teacher, capability):
            raise UserError(f"The teacher {origin(teacher)} declares {capability!r}, but lacks that method. {_REMEDY}")


def fault(error: BaseException) -> str:
    """What an exception is and where it was raised. Without its words, which may quote a person's text."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"


def ask(teacher: Teacher, question: Callable[[], Answer]) -> Answer:
    """A teacher's answer. Raises UserError with its distribution's name for what a third party's raises."""
    try:
        return question()
    except UserError:
        raise
    except Exception as error:
        if type(teacher).__module__.startswith("lantern_pl."):
            raise  # of which all is to be seen
        raise UserError(f"The teacher {origin(teacher)} fails: {fault(error)}. {_REMEDY}") from None


def checked_level_probs(teacher: Teacher, pairs: Sequence[Pair], task: Task, look_at_values: bool = True) -> Tensor:
    """The level distributions [pairs, levels] that a teacher gives. Raises UserError where their shape is wrong and, with
    `look_at_values`, for what are none."""
    signal = ask(teacher, lambda: teacher.level_probs(pairs, task))
    who, expected = f"The teacher {origin(teacher)}", [len(pairs), len(task.levels)]
    if not isinstance(signal, LevelProbs):
        raise UserError(f"{who} gives a {type(signal).__name__} for levels, expected LevelProbs. {_REMEDY}")
    probs = signal.probs
    if list(probs.shape) != expected:
        raise UserError(f"{who} gives level_probs of shape {list(probs.shape)}, expected {expected}. {_REMEDY}")
    wrong = wrong_level_probs(probs)
    if look_at_values and wrong.any():
        row = probs[wrong][0].tolist()
        raise UserError(f"{who} gives level_probs {row}, expected probabilities that sum to 1. {_REMEDY}")
    return probs


def wrong_level_probs(probs: Tensor) -> Tensor:
    """Which of the rows [B] of level distributions [B, K] are none."""
    return ~((probs >= 0).all(-1) & ((probs.sum(-1) - 1).abs() < 1e-3))  # NaN is wrong too


def checked_signal(teacher: Teacher, batch: TokenBatch, rows: int, look_at_values: bool) -> Hidden | Logits | TopK:
    """What the teacher says at the batch's `rows` positions. Raises UserError where its shape is wrong.

    With `look_at_values`, also where its values are: a device has to be waited for then.
    """
    signal = ask(teacher, lambda: teacher.score_tokens(batch))
    wrong = _wrong_shape(teacher, signal, rows)
    if wrong is None and look_at_values:
        wrong = _wrong_values(signal, teacher.vocab_size or 0)
    if wrong:
        raise UserError(f"The teacher {origin(teacher)} gives {wrong}. {_REMEDY}")
    return signal


def check_hidden_layers(teacher: Teacher) -> None:
    """Raise UserError where a teacher of hidden states doesn't say how wide they are and how many layers there are."""
    for name in ("hidden_size", "hidden_layers"):
        if not (getattr(teacher, name) or 0) > 0:
            raise UserError(
                f"The teacher {origin(teacher)} has {name} {getattr(teacher, name)!r}, expected a number above 0. {_REMEDY}"
            )


def checked_token_hidden_states(
    teacher: Teacher, batch: TokenBatch, rows: int, layers: Sequence[int], look_at_values: bool
) -> list[Tensor]:
    """The hidden states [rows, d] of `layers` at the batch's positions. Raises UserError where their shape is wrong.

    With `look_at_values`, also where one isn't finite: a device has to be waited for then.
    """
    states = ask(teacher, lambda: teacher.token_hidden_states(batch, layers))
    return _checked_hidden_states(teacher, "token_hidden_states", states, layers, rows, look_at_values)


def checked_pair_hidden_states(
    teacher: Teacher, pairs: Sequence[Pair], task: Task, layers: Sequence[int], look_at_values: bool = True
) -> list[Tensor]:
    """The hidden states [B, d] of `layers`. Raises UserError where their shape is wrong and, with `look_at_values`, where
    one isn't finite."""
    states = ask(teacher, lambda: teacher.pair_hidden_states(pairs, task, layers))
    return _checked_hidden_states(teacher, "pair_hidden_states", states, layers, len(pairs), look_at_values)


def _checked_hidden_states(
    teacher: Teacher, what: str, states: list[Tensor], layers: Sequence[int], rows: int, look_at_values: bool
) -> list[Tensor]:
    who, expected = f"The teacher {origin(teacher)}", [[rows, teacher.hidden_size]] * len(layers)
    if not (isinstance(states, list | tuple) and all(isinstance(layer, Tensor) for layer in states)):
        raise UserError(f"{who} gives a {type(states).__name__} as {what}, expected a list of tensors. {_REMEDY}")
    shapes = [list(layer.shape) for layer in states]
    if shapes != expected:
        raise UserError(f"{who} gives {what} of shapes {shapes}, expected {expected}: rows x hidden_size. {_REMEDY}")
    if look_at_values and not all(layer.isfinite().all() for layer in states):
        raise UserError(f"{who} gives NaN or infinity among its {what}. {_REMEDY}")
    return states


def _wrong_shape(teacher: Teacher, signal: Hidden | Logits | TopK, rows: int) -> str | None:
    columns = teacher.vocab_size
    if isinstance(signal, TopK):
        shapes = [list(tensor.shape) for tensor in (signal.ids, signal.log_probs, signal.tail_log_mass)]
        expected = [[rows, teacher.top_k], [rows, teacher.top_k], [rows]]
        if shapes != expected:
            return f"ids, log_probs and tail_log_mass of shapes {shapes}, expected {expected} with top_k {teacher.top_k}"
        return None
    if isinstance(signal, Hidden):
        shape = [len(signal.hidden), signal.head.weight.shape[0]]
    elif isinstance(signal, Logits):
        shape = list(signal.logits.shape)
    else:
        return f"a {type(signal).__name__} for tokens, expected Hidden, Logits or TopK"
    if teacher.top_k is not None:
        return f"a {type(signal).__name__} for tokens, though it declares top_k {teacher.top_k}"
    if shape != [rows, columns]:
        return (
            f"a token signal of shape {shape}, expected {[rows, columns]}: a row per supervised position, vocab_size columns"
        )
    return None


def _wrong_values(signal: Hidden | Logits | TopK, vocabulary: int) -> str | None:
    if isinstance(signal, TopK):
        if ((signal.ids < 0) | (signal.ids >= vocabulary)).any():
            return f"ids of tokens outside of 0 to {vocabulary - 1}"
        mass = signal.log_probs.double().exp().sum(-1) + signal.tail_log_mass.double().exp()
        if not ((mass - 1).abs() < 1e-2).all():
            return "log_probs and tail_log_mass that don't make up a mass of 1"
        return None
    if isinstance(signal, Hidden):
        finite = signal.hidden.isfinite().all() and signal.head.weight.isfinite().all()
        return None if finite else "NaN or infinity for tokens"
    if signal.logits.isnan().any() or signal.logits.isposinf().any():
        return "NaN or infinity for tokens"
    # A token may be excluded, by minus infinity; not all of them.
    return "minus infinity for every token of a position" if signal.logits.isneginf().all(-1).any() else None
