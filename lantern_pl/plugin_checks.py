"""What a selected plugin must do before it may train anything: one message that names its distribution where it doesn't.

These look at a handful of numbers at each run; the contracts of `lantern_pl.testing`, which authors run, look at far more.
"""

import math

import torch
from lantern_kernels import mixture_loss
from torch import Tensor

from lantern_pl.divergences.contract import Divergence, PointwiseDivergence
from lantern_pl.errors import UserError
from lantern_pl.plugins import origin
from lantern_pl.signals import Hidden, Logits, TokenBatch, TopK
from lantern_pl.teachers.contract import Teacher

_REMEDY = "Update or uninstall that distribution, or choose another plugin."


def check_divergence(divergence: Divergence) -> None:
    """Raise UserError unless it gives finite values and gradients within its bounds, one per row, on three rows."""
    who = f"The divergence {origin(divergence)}"
    student, teacher = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    student.requires_grad_()
    try:
        if isinstance(divergence, PointwiseDivergence):
            log_p, log_q = teacher.log_softmax(-1), student.detach().log_softmax(-1)
            for part in divergence.value_and_slope(log_p, log_q, log_p.exp(), log_q.exp()):
                if part.shape != log_p.shape:
                    raise ValueError(
                        f"value or slope has shape {list(part.shape)}, expected that of log_p: {list(log_p.shape)}"
                    )
        output = mixture_loss(student, teacher, [divergence.term(1.0, label="checked")], backend="torch")
        output.loss.backward()
    except Exception as error:  # whatever a plugin raises, its name belongs to the message
        raise UserError(f"{who} fails on three rows of logits: {type(error).__name__}: {error}. {_REMEDY}") from error
    values, gradient = output.terms["checked"], student.grad
    assert gradient is not None
    bound = math.inf if divergence.upper_bound is None else divergence.upper_bound
    wrong = None
    if not (torch.isfinite(values).all() and torch.isfinite(gradient).all()):
        wrong = "gives NaN or infinity for its value or gradient"
    elif values.min() < -1e-6:
        wrong = f"gives the value {values.min().item():.4g}, and none may be below 0"
    elif values.max() > bound * (1 + 1e-5):
        wrong = f"gives the value {values.max().item():.4g}, above its declared upper_bound of {bound:.4g}"
    if wrong:
        raise UserError(f"{who} {wrong} on three rows of logits. {_REMEDY}")


def check_level_probs(teacher: Teacher, probs: Tensor, pairs: int, levels: int) -> Tensor:
    """The level distributions [pairs, levels] that a teacher gave. Raises UserError for what are none."""
    who = f"The teacher {origin(teacher)}"
    if list(probs.shape) != [pairs, levels]:
        raise UserError(f"{who} gives level_probs of shape {list(probs.shape)}, expected {[pairs, levels]}. {_REMEDY}")
    wrong = ~((probs >= 0).all(-1) & ((probs.sum(-1) - 1).abs() < 1e-3))  # NaN is wrong too
    if wrong.any():
        row = probs[wrong][0].tolist()
        raise UserError(f"{who} gives level_probs {row}, expected probabilities that sum to 1. {_REMEDY}")
    return probs


def checked_signal(teacher: Teacher, batch: TokenBatch, look_at_values: bool) -> Hidden | Logits | TopK:
    """What the teacher says at the batch's positions. Raises UserError where its shape is wrong.

    With `look_at_values`, also where it holds NaN: a device has to be waited for then.
    """
    signal = teacher.score_tokens(batch)
    who = f"The teacher {origin(teacher)}"
    rows = int(batch.positions.sum())
    if isinstance(signal, Hidden):
        shape, values = [len(signal.hidden), signal.head.weight.shape[0]], signal.hidden
    elif isinstance(signal, Logits):
        shape, values = list(signal.logits.shape), signal.logits
    elif isinstance(signal, TopK):
        shape, values = [len(signal.ids), teacher.vocab_size or 0], signal.log_probs
    else:
        raise UserError(f"{who} gives a {type(signal).__name__} for tokens, expected Hidden, Logits or TopK. {_REMEDY}")
    if shape != [rows, teacher.vocab_size]:
        raise UserError(
            f"{who} gives a token signal of shape {shape}, expected {[rows, teacher.vocab_size]}: a row per supervised "
            f"position, vocab_size columns. {_REMEDY}"
        )
    if look_at_values and values.isnan().any():
        raise UserError(f"{who} gives NaN for tokens. {_REMEDY}")
    return signal
