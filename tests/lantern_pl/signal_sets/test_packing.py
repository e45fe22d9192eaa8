"""Ids and log-probabilities in few bytes: what comes back, and how far off it is."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lantern_kernels import Term, TopK, mixture_loss

from lantern_pl.signal_sets.packing import (
    decode_log_probs,
    encode_log_probs,
    high_bits,
    id_bytes,
    pack_ids,
    unpack_ids,
)


@settings(max_examples=60, deadline=None)
@given(vocabulary=st.integers(2, 1 << 24), k=st.integers(1, 70), rows=st.integers(0, 5), seed=st.integers(0, 99))
def test_packed_ids_come_back(vocabulary: int, k: int, rows: int, seed: int) -> None:
    ids = torch.randint(0, vocabulary, (rows, k), generator=torch.Generator().manual_seed(seed))
    if rows:
        ids[0, 0], ids[-1, -1] = vocabulary - 1, vocabulary - 1
    arrays = pack_ids(ids, vocabulary)
    assert torch.equal(unpack_ids(arrays["ids_low"], arrays.get("ids_high"), vocabulary), ids)
    assert sum(array.element_size() * math.prod(array.shape[1:]) for array in arrays.values()) == id_bytes(
        k, vocabulary, True
    )


@pytest.mark.parametrize(
    ("vocabulary", "bits"),
    [(49_152, 16), (65_536, 16), (65_537, 17), (131_072, 17), (151_936, 18), (262_144, 18), (262_145, 20), (1 << 20, 20)],
)
def test_ids_take_as_many_bits_as_the_vocabulary_needs(vocabulary: int, bits: int) -> None:
    assert 16 + high_bits(vocabulary) == bits
    assert id_bytes(32, vocabulary, True) == 32 * bits // 8
    assert id_bytes(32, vocabulary, False) == 128


def test_a_position_takes_no_more_than_was_promised() -> None:
    for vocabulary in (49_152, 151_936, 262_144):
        assert id_bytes(32, vocabulary, False) + 32 + 2 <= 165
        assert id_bytes(32, vocabulary, True) + 32 + 2 <= 115


def _distributions(spread: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits [500, 5000] in float64, the 32 best ids, their log-probabilities, and the log mass of the others."""
    logits = spread * torch.randn(500, 5000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    log_probs, ids = logits.log_softmax(-1).topk(32)
    return logits, ids, log_probs, logits.log_softmax(-1).scatter(-1, ids, -math.inf).logsumexp(-1)


@pytest.mark.parametrize("spread", [1.0, 3.0, 8.0])
def test_what_is_read_has_the_mass_that_was_written(spread: float) -> None:
    _, _, log_probs, tail = _distributions(spread)
    stored = tail.half().float()
    back = decode_log_probs(encode_log_probs(log_probs.float()), stored).double()
    assert ((back.exp().sum(-1) + stored.double().exp() - 1).abs() < 1e-6).all()
    # A step at log-probability x is 2·√(20·x)/254 wide; the scaling to the mass moves all of a row alike.
    steps = 2 * (20 * log_probs.neg().clamp(max=20)).sqrt() / 254
    likely = log_probs > -19
    assert ((back - log_probs).abs()[likely] <= (steps + 0.03)[likely]).all()


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "js", "tvd"])
@pytest.mark.parametrize("spread", [1.0, 3.0, 8.0])
def test_rounding_moves_no_divergence_by_much(spread: float, name: str) -> None:
    logits, ids, log_probs, tail = _distributions(spread)
    student = logits + torch.randn(500, 5000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    stored_tail = tail.half().float()
    stored = TopK(ids, decode_log_probs(encode_log_probs(log_probs.float()), stored_tail).double(), stored_tail.double())

    def run(teacher: TopK) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = student.clone().requires_grad_()
        output = mixture_loss(leaf, teacher, [Term(name)], backend="torch")
        output.loss.backward()
        assert leaf.grad is not None
        return output.terms[name], leaf.grad

    (exact, gradient), (rounded, rounded_gradient) = run(TopK(ids, log_probs, tail)), run(stored)
    assert (rounded.mean() - exact.mean()).abs() < 1e-4
    assert (rounded > -1e-6).all()
    # The total variation's gradient is the sign of p - q, which rounding turns where the two are next to equal.
    assert (rounded_gradient - gradient).norm() < (0.12 if name == "tvd" else 0.02) * gradient.norm()


def test_excluded_tokens_stay_excluded() -> None:
    log_probs = torch.tensor([[0.0, -math.inf, -math.inf], [math.log(0.5), math.log(0.25), -math.inf]])
    tail = torch.tensor([-math.inf, math.log(0.25)])
    back = decode_log_probs(encode_log_probs(log_probs), tail)
    assert torch.equal(back == -math.inf, log_probs == -math.inf)
    torch.testing.assert_close(back.exp().sum(-1) + tail.exp(), torch.ones(2))


def test_a_sure_teacher_stays_sure() -> None:
    back = decode_log_probs(encode_log_probs(torch.tensor([[-1e-6, -14.0]])), torch.tensor([-20.0]))
    assert back[0, 0].exp() > 0.999998
