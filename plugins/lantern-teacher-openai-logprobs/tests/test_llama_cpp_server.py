"""A real llama.cpp server, held against the same weights in this process.

Both read the same Q4_1 file. transformers multiplies with the dequantised weights in float32, llama.cpp rounds activations
to 8 bits first, which moves the probabilities by some hundredths: the tolerances are what that comes to here.
"""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lantern_pl.signals import TokenBatch, TopK
from lantern_pl.teachers.local_model import HFTeacher

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def hf() -> HFTeacher:
    return HFTeacher("embedded:smollm2-135m")


def distributions(signal: TopK, vocab_size: int = 49_152) -> Tensor:
    """Probabilities of all tokens, [N, V + 1]: those named, 0 for the others, and what is left as the last one."""
    named = torch.zeros(len(signal.ids), vocab_size).scatter(-1, signal.ids, signal.log_probs.exp())
    return torch.cat([named, signal.tail_log_mass.exp()[:, None]], -1)


def distances(one: TopK, other: TopK) -> Tensor:
    """Total variation between their rows, [N]."""
    return 0.5 * (distributions(one) - distributions(other)).abs().sum(-1)


def only_named(log_probs: Tensor, served: TopK) -> TopK:
    """What remains of full rows [N, V] where only the tokens that the server named are known."""
    rest = log_probs.scatter(-1, served.ids, -torch.inf).logsumexp(-1)
    return TopK(served.ids, log_probs.gather(-1, served.ids), rest)


def log_probs(hf: HFTeacher, batch: TokenBatch) -> Tensor:
    signal = hf.score_tokens(batch)
    return torch.nn.functional.linear(signal.hidden.float(), signal.head.weight.float()).log_softmax(-1)


@pytest.fixture(scope="module")
def served(llama_server: str, teacher: Make, batch: TokenBatch) -> TopK:
    signal: TopK = teacher(llama_server, top_k=20, max_concurrency=1).score_tokens(batch)
    return signal


@pytest.fixture(scope="module")
def ours(hf: HFTeacher, batch: TokenBatch) -> Tensor:
    return log_probs(hf, batch)


def test_it_says_what_the_same_weights_say_here(served: TopK, ours: Tensor) -> None:
    distance = distances(served, only_named(ours, served))
    assert distance.mean() < 0.04
    assert distance.max() < 0.1
    assert (served.log_probs[:, 0] - ours.gather(-1, served.ids)[:, 0]).abs().max() < 0.3
    # Rows of neighbours, as a wrong shift would give them, are another matter.
    assert distances(served, only_named(ours.roll(1, 0), served)).mean() > 0.3


def test_the_most_probable_tokens_are_named(served: TopK, ours: Tensor) -> None:
    assert (served.ids[:, 0] == ours.argmax(-1)).float().mean() >= 0.9
    # What isn't named is hardly more probable than the last that is.
    others = ours.scatter(-1, served.ids, -torch.inf).amax(-1)
    assert (others - served.log_probs[:, -1]).max() < 1.0
    assert (served.log_probs.diff(dim=-1) <= 0).all()


def test_one_request_at_a_time_gives_the_same_in_any_batch(llama_server: str, teacher: Make, batch: TokenBatch) -> None:
    able = teacher(llama_server, max_concurrency=1)
    together, again = able.score_tokens(batch), able.score_tokens(batch)
    alone = []
    for row in (2, 0, 1):
        part = (slice(row, row + 1), slice(0, int(batch.attention_mask[row].sum())))
        alone.append(able.score_tokens(TokenBatch(batch.input_ids[part], batch.attention_mask[part], batch.positions[part])))
    alone = [alone[1], alone[2], alone[0]]
    for name in ("ids", "log_probs", "tail_log_mass"):
        assert torch.equal(getattr(again, name), getattr(together, name))
        assert torch.equal(torch.cat([getattr(signal, name) for signal in alone]), getattr(together, name))


def test_what_was_asked_before_does_not_count(llama_server: str, teacher: Make, hf: HFTeacher) -> None:
    """The same tokens read in two portions leave a cache that rounds otherwise."""
    able = teacher(llama_server, max_concurrency=1)
    ids = torch.tensor([hf.tokenizer.encode("Must have: Python, Kubernetes, and six years in a team of nurses. " * 7)])
    late = torch.zeros_like(ids, dtype=torch.bool)
    late[0, -3:] = True
    in_two_portions = late.clone()
    in_two_portions[0, 60] = True
    before, _, after = (
        able.score_tokens(TokenBatch(ids, torch.ones_like(ids), positions)) for positions in (late, in_two_portions, late)
    )
    assert torch.equal(before.log_probs, after.log_probs)


def test_rows_side_by_side_come_in_their_order(llama_server: str, teacher: Make, batch: TokenBatch, served: TopK) -> None:
    """Up to rounding: the server reads what two slots ask for in one go."""
    side_by_side = teacher(llama_server, top_k=20).score_tokens(batch)
    assert distances(side_by_side, served).max() < 0.15


def test_the_tokens_after_a_position_do_not_count(llama_server: str, teacher: Make, batch: TokenBatch) -> None:
    able = teacher(llama_server, max_concurrency=1)
    positions = torch.zeros_like(batch.positions)
    positions[0, 6] = True
    ids = batch.input_ids.clone()
    ids[0, 7] += 7
    before, after = (
        able.score_tokens(TokenBatch(given, batch.attention_mask, positions)) for given in (batch.input_ids, ids)
    )
    assert torch.equal(before.ids, after.ids)
    ids[0, 6] += 7
    assert distances(before, able.score_tokens(TokenBatch(ids, batch.attention_mask, positions))).min() > 0.1


def test_the_cost_is_told_once(
    llama_server: str, teacher: Make, batch: TokenBatch, caplog: pytest.LogCaptureFixture
) -> None:
    able = teacher(llama_server)
    with caplog.at_level(logging.WARNING):
        able.score_tokens(batch)
        able.score_tokens(batch)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert f"costs a request of its own, {int(batch.positions.sum())} in this batch" in told[0]
    assert "at that pace this batch takes about" in told[0]


def test_part_of_a_character_is_no_trap(llama_server: str, teacher: Make, hf: HFTeacher) -> None:
    """Where the model would say a token that is part of a character, the server generates on: not here."""
    ids = torch.tensor([hf.tokenizer.encode("Emoji: 😀😃😄😁😆😀😃😄😁")])
    positions = torch.ones_like(ids, dtype=torch.bool)
    batch = TokenBatch(ids, torch.ones_like(ids), positions)
    served, ours = teacher(llama_server, top_k=20).score_tokens(batch), log_probs(hf, batch)
    assert any("�" in hf.tokenizer.decode([token]) for token in served.ids[:, 0].tolist())
    assert distances(served, only_named(ours, served)).max() < 0.1


def test_it_has_an_identity(llama_server: str, teacher: Make) -> None:
    assert teacher(llama_server).identity()["model"] == "smollm2-135m-q4_1"
