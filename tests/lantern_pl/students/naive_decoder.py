"""The decoder's loss, written out."""

from typing import Any

import torch
from torch import Tensor

from lantern_pl.students import DecoderStudent


def naive_decoder_loss(student: DecoderStudent, batch: Any, kl: float, js: float, beta: float) -> Tensor:
    """The loss from all logits at all positions in float64, written out: summed over the supervised positions."""
    tokens = batch.tokens
    with torch.no_grad():
        u = student.teacher.lm(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).logits.double()  # type: ignore[union-attr]
    z = student.lm(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).logits.double()
    at = tokens.positions
    T = student.temperature
    log_p, log_q = (u[at] / T).log_softmax(-1), (z[at] / T).log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    m = beta * p + (1 - beta) * q
    d_kl = (p * (log_p - log_q)).sum()
    d_js = beta * (p * (log_p - m.log())).sum() + (1 - beta) * (q * (log_q - m.log())).sum()
    following = tokens.input_ids.roll(-1, dims=1)[at]
    ce = -z[at].log_softmax(-1).gather(-1, following[:, None]).sum()
    return T * T * (kl * d_kl + js * d_js) + student.cross_entropy * ce
