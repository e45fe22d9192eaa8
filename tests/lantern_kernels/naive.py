"""The loss written out on full logits in float64, for autograd: what every path of the package is held against."""

import math

import torch
from lantern_kernels import Term
from torch.nn.functional import pad

MIXTURES = {
    "kl": [Term("kl")],
    "reverse_kl": [Term("reverse_kl")],
    "js": [Term("js")],
    "js_0.1": [Term("js", beta=0.1)],
    "js_0.9": [Term("js", beta=0.9)],
    "tvd": [Term("tvd")],
    "all": [Term("kl", 0.3), Term("reverse_kl", 0.2), Term("js", 0.4, beta=0.3), Term("tvd", 0.7)],
}


def naive_head(hidden, weight, bias=None, softcap=None, scale=1.0):
    logits = hidden.double() @ weight.double().t()
    logits = scale * (logits if bias is None else logits + bias.double())
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def naive_loss(student, teacher, terms, *, temperature=1.0, targets=None, cross_entropy=0.0, row_weights=None):
    """The loss and the terms' values; every row counts."""
    columns = max(student.shape[1], 0 if teacher is None else teacher.shape[1])
    values, loss = {}, 0.0
    if terms:
        log_q, log_p = (
            pad(logits.double() / temperature, (0, columns - logits.shape[1]), value=-torch.inf)
            .log_softmax(-1)
            .clamp(min=-1e4)
            for logits in (student, teacher)
        )
        p, q = log_p.exp(), log_q.exp()
    for term in terms:
        if term.divergence.name == "kl":
            value = p * (log_p - log_q)
        elif term.divergence.name == "reverse_kl":
            value = q * (log_q - log_p)
        elif term.divergence.name == "tvd":
            value = 0.5 * (p - q).abs()
        else:
            beta = term.divergence.beta
            log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log(1 - beta))
            value = beta * p * (log_p - log_m) + (1 - beta) * q * (log_q - log_m)
        values[term.label] = value.sum(-1)
        loss = loss + temperature**2 * term.weight * values[term.label]
    if targets is not None:
        values["cross_entropy"] = -student.double().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
        loss = loss + cross_entropy * values["cross_entropy"]
    return (loss.mean() if row_weights is None else (loss * row_weights).sum()), values
