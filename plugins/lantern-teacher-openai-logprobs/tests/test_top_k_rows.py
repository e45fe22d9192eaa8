"""Rows of a top-k signal from what a server names."""

import math

import pytest
import torch
from lantern_kernels import Head, Term, linear_mixture_loss
from lantern_teacher_openai_logprobs.rows import RESOLUTION, Entries, top_k_signal

from lantern_pl.errors import UserError
from lantern_pl.signals import TopK


def entries(**probabilities: float) -> Entries:
    """From t3=0.5: token 3 with probability 0.5."""
    return [(int(name[1:]), math.log(p)) for name, p in probabilities.items()]


def mass(signal: TopK) -> torch.Tensor:
    return signal.log_probs.double().exp().sum(-1) + signal.tail_log_mass.double().exp()


def test_the_best_tokens_come_first_and_the_tail_is_what_they_leave() -> None:
    signal = top_k_signal([entries(t3=0.1, t7=0.6, t1=0.2, t4=0.05)], k=3, vocab_size=10)
    assert signal.ids.tolist() == [[7, 1, 3]]
    torch.testing.assert_close(signal.log_probs, torch.tensor([[0.6, 0.2, 0.1]]).log())
    torch.testing.assert_close(signal.tail_log_mass, torch.tensor([0.1]).log())
    assert (signal.ids.dtype, signal.log_probs.dtype, signal.tail_log_mass.dtype) == (
        torch.int64,
        torch.float32,
        torch.float32,
    )


def test_a_token_counts_once() -> None:
    signal = top_k_signal([entries(t3=0.5, t1=0.25) + entries(t3=0.5, t2=0.125)], k=3, vocab_size=10)
    assert signal.ids.tolist() == [[3, 1, 2]]
    torch.testing.assert_close(signal.tail_log_mass, torch.tensor([0.125]).log())


def test_ids_outside_the_vocabulary_are_part_of_the_tail() -> None:
    """A padded embedding has more rows than the tokenizer has tokens."""
    signal = top_k_signal([entries(t3=0.5, t12=0.25, t1=0.125)], k=2, vocab_size=5)
    assert signal.ids.tolist() == [[3, 1]]
    torch.testing.assert_close(signal.log_probs.exp(), torch.tensor([[0.5, 0.125]]))
    torch.testing.assert_close(signal.tail_log_mass.exp(), torch.tensor([0.375]))


@pytest.mark.parametrize("few", [entries(t3=0.5, t12=0.25), [(11, -0.1)], []], ids=["one", "none", "nothing"])
def test_a_row_of_fewer_than_k_is_refused(few: Entries) -> None:
    """No filling: any guess at what isn't named can bring a divergence above that of the whole distribution."""
    named = sum(token < 5 for token, _ in few)
    with pytest.raises(UserError, match=f"names {named} tokens of the vocabulary at a position where top_k=2 were asked"):
        top_k_signal([entries(t1=0.5, t2=0.1), few], k=2, vocab_size=5)


def test_rounding_never_makes_a_mass_above_1_nor_an_impossible_tail() -> None:
    rows = [entries(t0=0.99999999, t1=1e-9), entries(t0=0.7, t1=0.30001), entries(t0=1.0, t3=1e-30)]
    signal = top_k_signal(rows, k=2, vocab_size=10)
    torch.testing.assert_close(mass(signal), torch.ones(3, dtype=torch.double), rtol=0, atol=1e-6)
    torch.testing.assert_close(signal.tail_log_mass[1:2].exp(), torch.tensor([RESOLUTION]))
    assert signal.tail_log_mass.isfinite().all()


def test_nothing_is_left_where_the_whole_vocabulary_is_named() -> None:
    signal = top_k_signal([entries(t0=0.5, t2=0.3, t1=0.2), entries(t0=0.4, t1=0.4, t2=0.1, t3=0.1)], k=3, vocab_size=3)
    assert signal.tail_log_mass.tolist() == [-math.inf, -math.inf]
    assert signal.ids.tolist() == [[0, 2, 1], [0, 1, 2]]
    torch.testing.assert_close(mass(signal), torch.ones(2, dtype=torch.double))


@pytest.mark.parametrize("wrong", [[(1, 3.5), (2, 1.0)], [(1, math.nan), (2, -1.0)]], ids=["logits", "nan"])
def test_other_numbers_are_refused(wrong: Entries) -> None:
    with pytest.raises(UserError, match=r"make up a mass of .* at a position"):
        top_k_signal([entries(t1=0.5, t2=0.1), wrong], k=2, vocab_size=10)


def test_no_rows() -> None:
    signal = top_k_signal([], k=4, vocab_size=10)
    assert signal.ids.shape == signal.log_probs.shape == (0, 4)
    assert signal.tail_log_mass.shape == (0,)


def test_the_kernels_take_it() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(2, 4, generator=generator), torch.randn(6, 4, generator=generator)
    logits = torch.randn(2, 6, generator=generator)
    teacher = logits.log_softmax(-1)
    rows = [list(enumerate(row.tolist())) for row in teacher]
    ones = torch.ones(2)
    for name in ("kl", "reverse_kl", "js", "tvd"):
        full, some = (
            linear_mixture_loss(
                Head(hidden, weight), top_k_signal(rows, k, 6).for_loss(), [Term(name)], row_weights=ones
            ).terms[name]
            for k in (6, 3)
        )
        dense = linear_mixture_loss(Head(hidden, weight), Head(logits, torch.eye(6)), [Term(name)], row_weights=ones)
        torch.testing.assert_close(full, dense.terms[name])
        assert (some <= full + 1e-6).all()
