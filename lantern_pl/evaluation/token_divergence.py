"""How far a model's next-token distributions are from the teacher's on annotated answers, and how unsure they are."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from lantern_kernels import Head, linear_mixture_loss
from torch import Tensor, nn

from lantern_pl.data.featurize import DecoderFeaturizer
from lantern_pl.data.pair import Pair
from lantern_pl.divergences.first_party import JS, KL, TVD
from lantern_pl.evaluation.bootstrap import Floats
from lantern_pl.plugin_checks import checked_signal
from lantern_pl.signals import Hidden, Logits, TopK
from lantern_pl.tasks import Task
from lantern_pl.teachers.contract import Teacher

Bar = Callable[[Sequence[Any], str], Iterable[Any]]
"""Goes through rows and shows how far it is, under a description."""
_CHUNK = 256
"""Positions whose logits are made at once."""


def comparable(teacher: Teacher, model: Teacher) -> bool:
    """Whether both score tokens, and the same ones; and the teacher's whole distribution at temperature 1, up to a tail."""
    scores = all("score_tokens" in each.capabilities for each in (teacher, model))
    as_it_is = teacher.top_k is None or (teacher.temperature == 1 and not teacher.sampled)
    return scores and model.tokenizer_fingerprint == teacher.tokenizer_fingerprint and as_it_is


@torch.no_grad()
def token_figures(
    model: Teacher,
    teacher: Teacher | None,
    pairs: Sequence[Pair],
    task: Task,
    max_length: int,
    device: torch.device,
    bar: Bar,
) -> dict[str, Floats]:
    """What each annotated answer comes to, [P] each: `tokens` it has, and means over these in nats: `kl` of the teacher to
    the model, `js` (½), `tvd` (0 to 1), and the model's `entropy`.

    Without a teacher that is `comparable` there are no divergences. Of a teacher that names only its most probable tokens,
    they are lower bounds; a model that does so has no figures. Teacher and model are on their devices already.
    """
    held = teacher if teacher is not None and comparable(teacher, model) else None
    tokenizer = model.tokenizer or (held.tokenizer if held is not None else None)
    if "score_tokens" not in model.capabilities or model.top_k is not None or tokenizer is None:
        return {}
    features = DecoderFeaturizer(tokenizer, task, max_length)
    terms = [] if held is None else [KL().term(1.0), JS().term(1.0), TVD().term(1.0)]
    rows: list[dict[str, float]] = []
    for pair in bar(pairs, "next tokens"):
        batch = features.collate([features.encode(pair)]).to(device)
        count = len(batch.targets)
        signal = checked_signal(model, batch.tokens, count, look_at_values=not rows)
        assert not isinstance(signal, TopK)
        found = {"tokens": float(count), "entropy": float(entropies(signal).mean())}
        if held is not None:
            theirs = checked_signal(held, batch.tokens, count, look_at_values=not rows)
            ours: Any = signal.for_loss()
            output = linear_mixture_loss(ours, theirs.for_loss(), terms)
            found |= {term.label: float(output.terms[term.label].mean()) for term in terms}
        rows.append(found)
    return {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else ())}


def entropies(signal: Hidden | Logits) -> Tensor:
    """Entropy [N] of each next-token distribution, in nats."""
    found = []
    for chunk in torch.arange(len(signal.hidden if isinstance(signal, Hidden) else signal.logits)).split(_CHUNK):
        rows = signal.at(chunk)
        logits = rows.logits if isinstance(rows, Logits) else _logits(rows.for_loss())
        log_probs = logits.float().log_softmax(-1)
        # −inf for a token that can't be: 0 · −inf is 0 here.
        found.append(-(log_probs.exp() * log_probs.clamp_min(-1e30)).sum(-1))
    return torch.cat(found)


def _logits(head: Head) -> Tensor:
    logits = nn.functional.linear(head.hidden.float(), head.weight.float(), None if head.bias is None else head.bias.float())
    logits = logits * head.scale
    return logits if head.softcap is None else (logits / head.softcap).tanh() * head.softcap
