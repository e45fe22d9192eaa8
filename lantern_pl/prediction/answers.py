"""What students say about a batch of pairs, as records for a table."""

from collections.abc import Sequence
from typing import Any

import torch
from lantern_kernels.heads import Bend
from torch import Tensor, nn

from lantern_pl.causal_lm import complete, hidden_at_positions, output_head, stop_tokens
from lantern_pl.data.featurize import DecoderBatch, EncoderBatch
from lantern_pl.pair_classifier import PairClassifier
from lantern_pl.signals import TokenBatch
from lantern_pl.tasks import Task
from lantern_pl.text import level_ids

Answer = dict[str, Any]


def encoder_answers(classifier: PairClassifier, batch: EncoderBatch) -> list[Answer]:
    """Of each pair: the most probable level, the probability of each, and the score."""
    probs = classifier(batch.inputs).float().softmax(-1)
    levels = (classifier.levels[best] for best in probs.argmax(-1).tolist())
    return [{"level": level, **said} for level, said in zip(levels, _distributions(classifier.levels, probs), strict=True)]


@torch.no_grad()
def decoder_answers(lm: Any, tokenizer: Any, task: Task, batch: DecoderBatch, max_new_tokens: int) -> list[Answer]:
    """Of each pair: the greedily written text, the level and the explanation that can be read from it, if any, and how
    probable each level is in the answer's place for it, whatever was written."""
    rows = zip(batch.tokens.input_ids, batch.tokens.attention_mask.bool(), strict=True)
    prompts = [ids[mask].tolist() for ids, mask in rows]
    distributions = _distributions(task.levels, _level_log_probs(lm, tokenizer, task, prompts).softmax(-1))
    stops = stop_tokens(lm, tokenizer)
    answers = []
    for ids, said in zip(complete(lm, prompts, max_new_tokens, stops, tokenizer.pad_token_id), distributions, strict=True):
        text = tokenizer.decode([token for token in ids if token not in stops], skip_special_tokens=True).strip()
        read = task.parse_answer(text)
        answers.append(
            {
                "level": read.level if read else None,
                **said,
                "text": text,
                "explanation": read.explanation if read else None,
                "valid_format": read is not None,
            }
        )
    return answers


def _distributions(levels: Sequence[str], probs: Tensor) -> list[Answer]:
    """Of each row of probs [B, K]: the probabilities by level, and the score, which is the expected place among the levels:
    0 for the worst alone, 1 for the best alone."""
    places = torch.linspace(0, 1, len(levels), device=probs.device)
    scores = (probs * places).sum(-1).tolist()
    return [
        {"level_probs": dict(zip(levels, row, strict=True)), "score": score}
        for row, score in zip(probs.tolist(), scores, strict=True)
    ]


def _level_log_probs(lm: Any, tokenizer: Any, task: Task, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Log-probability [B, K] of each level's name after the prompts and the beginning of an answer."""
    opening, levels = _level_tokens(tokenizer, task)
    device = next(lm.parameters()).device
    head = output_head(lm)
    totals = torch.zeros(len(prompts), len(levels), device=device)
    # Most tokenizers have one token for each level: then the only stem is the empty one, and there is one pass.
    for stem in sorted({ids[:end] for ids in levels for end in range(len(ids))}):
        hidden = hidden_at_positions(lm, _last_tokens([[*ids, *opening, *stem] for ids in prompts], device))
        logits = Bend(head.scale, head.softcap)(nn.functional.linear(hidden, head.weight, head.bias).float())
        log_probs = logits.log_softmax(-1)
        for column, ids in enumerate(levels):
            if len(ids) > len(stem) and ids[: len(stem)] == stem:
                totals[:, column] += log_probs[:, ids[len(stem)]]
    return totals


def _level_tokens(tokenizer: Any, task: Task) -> tuple[list[int], list[tuple[int, ...]]]:
    """Ids of what every answer begins with, and of each level's name after that."""

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    opening = encode(task.answer_prefix)

    def after_opening(text: str) -> list[int]:
        whole = encode(task.answer_prefix + text)
        # Where the two are tokens together, the text is taken on its own.
        return whole[len(opening) :] if whole[: len(opening)] == opening else encode(text)

    return opening, [tuple(ids) for ids in level_ids(after_opening, task)]


def _last_tokens(rows: Sequence[Sequence[int]], device: torch.device) -> TokenBatch:
    """The rows, right-padded, with the last token of each as its position."""
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long, device=device)
    mask = torch.zeros_like(ids)
    last = torch.zeros_like(ids, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row, device=device)
        mask[number, : len(row)] = 1
        last[number, len(row) - 1] = True
    return TokenBatch(ids, mask, last)
