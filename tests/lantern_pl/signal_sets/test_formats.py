"""What of a teacher's signal is stored, against the plain formula in float64; and that it comes back."""

import math

import pytest
import torch
from lantern_kernels import Term, linear_mixture_loss, mixture_loss
from torch import Tensor

from lantern_pl.errors import UserError
from lantern_pl.signal_sets.formats import Format, HiddenFormat, LogProbs, SampledFormat, TopKFormat, top_k_of
from lantern_pl.signals import Hidden, Logits, OutputHead, TopK

V = 300


def _logits(rows: int = 90, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(rows, V, generator=torch.Generator().manual_seed(0))


def _naive(logits: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    log_probs = (logits.double() / temperature).log_softmax(-1)
    best, ids = log_probs.topk(k)
    return ids, best, log_probs.scatter(-1, ids, -math.inf).exp().sum(-1).log()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("k", [1, 7, V])
def test_the_top_k_and_the_exact_tail(k: int, temperature: float) -> None:
    logits = _logits()
    found = top_k_of(Logits(logits), k, temperature)
    ids, log_probs, tail = _naive(logits, k, temperature)
    assert torch.equal(found.ids, ids)
    torch.testing.assert_close(found.log_probs.double(), log_probs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.tail_log_mass.double(), tail, atol=1e-5, rtol=1e-5)


def test_a_tail_of_next_to_nothing_keeps_its_size() -> None:
    logits = torch.zeros(1, V)
    logits[0, 3] = 60.0
    assert float(top_k_of(Logits(logits), 1, 1.0).tail_log_mass) == pytest.approx(math.log(V - 1) - 60, abs=1e-4)


def test_hidden_states_are_projected_as_the_head_says() -> None:
    hidden, weight, bias = torch.randn(70, 8), torch.randn(V, 8), torch.randn(V)
    signal = Hidden(hidden, OutputHead(weight, bias, softcap=5.0, scale=0.5))
    logits = 5.0 * torch.tanh(0.5 * (hidden.double() @ weight.double().T + bias.double()) / 5.0)
    found = top_k_of(signal, 5, 2.0)
    ids, log_probs, tail = _naive(logits, 5, 2.0)
    assert torch.equal(found.ids, ids)
    torch.testing.assert_close(found.log_probs.double(), log_probs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.tail_log_mass.double(), tail, atol=1e-5, rtol=1e-5)


def test_a_teacher_in_half_precision_is_scored_in_full_as_the_loss_does_it() -> None:
    generator = torch.Generator().manual_seed(4)
    hidden = (6 * torch.randn(50, 64, generator=generator)).bfloat16()
    signal = Hidden(hidden, OutputHead(torch.randn(V, 64, generator=generator).bfloat16(), torch.randn(V).bfloat16()))
    head = signal.for_loss()
    student = torch.randn(50, V, generator=generator)
    eye = torch.eye(V)
    student_head = type(head)(student, eye)
    whole = linear_mixture_loss(student_head, head, [Term("kl")], backend="torch").terms["kl"]
    top = top_k_of(signal, V, 1.0)
    found = linear_mixture_loss(student_head, top.for_loss(), [Term("kl")], backend="torch").terms["kl"]
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)


def test_fewer_of_a_top_k_signal_move_the_rest_to_the_tail() -> None:
    wide, narrow = top_k_of(Logits(_logits()), 20, 1.0), top_k_of(Logits(_logits()), 4, 1.0)
    shuffled = torch.randperm(20)
    again = top_k_of(TopK(wide.ids[:, shuffled], wide.log_probs[:, shuffled], wide.tail_log_mass), 4, 1.0)
    assert torch.equal(again.ids, narrow.ids)
    torch.testing.assert_close(again.log_probs, narrow.log_probs)
    torch.testing.assert_close(again.tail_log_mass, narrow.tail_log_mass, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_exact_log_probs_come_back_bit_by_bit(packed: bool) -> None:
    form = TopKFormat(6, V, "f32", packed, 1.0)
    arrays = form.encode(Logits(_logits()), seed=0)
    assert {name: (a.dtype, tuple(a.shape[1:])) for name, a in arrays.items()} == {
        name: (a.dtype, a.shape) for name, a in form.arrays().items()
    }
    back, exact = form.decode(arrays), top_k_of(Logits(_logits()), 6, 1.0)
    assert isinstance(back, TopK)
    assert torch.equal(back.ids, exact.ids)
    assert torch.equal(back.log_probs, exact.log_probs)
    assert torch.equal(back.tail_log_mass, exact.tail_log_mass)


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "js", "tvd"])
def test_a_divergence_on_the_top_k_is_a_lower_bound_that_is_reached_at_the_whole_vocabulary(name: str) -> None:
    teacher, student = _logits(), _logits() + torch.randn(90, V, generator=torch.Generator().manual_seed(1))
    whole = mixture_loss(student.double(), teacher.double(), [Term(name)], backend="torch").terms[name]
    previous = torch.zeros(90, dtype=torch.float64)
    for k in (1, 10, 100, V):
        top = TopKFormat(k, V, "f32", False, 1.0)
        signal = top.decode(top.encode(Logits(teacher), seed=0))
        value = mixture_loss(student.double(), signal.for_loss(), [Term(name)], backend="torch").terms[name]
        assert (value <= whole + 1e-6).all()
        assert (value >= previous - 1e-6).all()
        previous = value
    torch.testing.assert_close(previous, whole, atol=1e-5, rtol=1e-5)


def _sampled(form: SampledFormat, logits: Tensor, seed: int) -> TopK:
    arrays = form.encode(Logits(logits), seed)
    form.widest = int(arrays["entries"].max())
    signal = form.decode(arrays)
    assert isinstance(signal, TopK)
    return signal


def test_samples_are_frequencies_of_different_tokens() -> None:
    signal = _sampled(SampledFormat(50, V, False, 1.0), _logits(), seed=3)
    assert all(len(set(row)) == len(row) for row in signal.ids.tolist())
    frequencies = signal.log_probs.exp()
    torch.testing.assert_close(frequencies.sum(-1), torch.ones(90))
    torch.testing.assert_close((frequencies * 50).round(), frequencies * 50, atol=1e-4, rtol=0)
    assert (signal.tail_log_mass == -math.inf).all()


def test_the_same_seed_draws_the_same_and_another_one_others() -> None:
    draws = [_sampled(SampledFormat(50, V, True, 1.0), _logits(), seed).ids for seed in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1])
    assert draws[0].shape != draws[2].shape or not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_gradient_of_the_forward_kl_to_samples_is_unbiased(temperature: float) -> None:
    teacher = _logits(rows=1, spread=2.0)
    student = torch.randn(1, V, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def gradient(about: object) -> Tensor:
        leaf = student.clone().requires_grad_()
        mixture_loss(leaf, about, [Term("kl")], temperature=temperature, backend="torch").loss.backward()  # type: ignore[arg-type]
        assert leaf.grad is not None
        return leaf.grad

    form = SampledFormat(50, V, False, temperature)
    draws = torch.stack([gradient(_sampled(form, teacher, seed).for_loss()) for seed in range(800)])
    exact = gradient(teacher.double())
    # The frequency of a token of probability p is off by √(p(1−p)/50), and the gradient is T times that.
    p = (teacher.double() / temperature).softmax(-1)
    noise = temperature * (p * (1 - p) / (50 * len(draws))).sqrt()
    assert ((draws.mean(0) - exact).abs() < 5 * noise).all()


def test_hidden_states_come_back_as_they_were() -> None:
    hidden, head = torch.randn(9, 4).bfloat16(), OutputHead(torch.randn(V, 4))
    form = HiddenFormat(4, "bfloat16", V, head)
    back = form.decode(form.encode(Hidden(hidden, head), seed=0))
    assert isinstance(back, Hidden)
    assert torch.equal(back.hidden, hidden)


@pytest.mark.parametrize(
    ("form", "signal", "said"),
    [
        (TopKFormat(3, V, "u8", False, 1.0), Logits(torch.full((2, V), math.nan)), "NaN"),
        (SampledFormat(3, V, False, 1.0), Logits(torch.full((2, V), math.nan)), "NaN"),
        (HiddenFormat(4, "float32", V), Hidden(torch.full((2, 4), math.nan), OutputHead(torch.zeros(V, 4))), "NaN"),
        (HiddenFormat(4, "float32", V), Logits(torch.zeros(2, V)), "no hidden states"),
        (SampledFormat(3, V, False, 1.0), top_k_of(Logits(_logits()), 4, 1.0), "no unbiased sample"),
    ],
)
def test_what_cant_be_stored_is_refused(form: Format, signal: Hidden | Logits | TopK, said: str) -> None:
    with pytest.raises(UserError, match=said):
        form.encode(signal, seed=0)


def test_values_that_cant_be_are_refused() -> None:
    form = TopKFormat(3, V, "f32", False, 1.0)
    arrays = form.encode(Logits(_logits()), seed=0)
    for name, wrong, said in (
        ("ids", torch.full((90, 3), V, dtype=torch.int32).view(torch.uint32), "outside"),
        ("log_probs", torch.zeros(90, 3), "mass isn't 1"),
        ("log_probs", torch.full((90, 3), math.nan), "mass isn't 1"),
        ("tail_log_mass", torch.full((90,), math.nan), "tail"),
        ("tail_log_mass", torch.full((90,), 0.5), "tail"),
    ):
        with pytest.raises(UserError, match=said):
            form.check({**arrays, name: wrong})


@pytest.mark.parametrize("log_probs", ["u8", "f32"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_token_twice_is_refused(log_probs: LogProbs, packed: bool) -> None:
    form = TopKFormat(3, V, log_probs, packed, 1.0)
    arrays = form.encode(Logits(_logits()), seed=0)
    form.check(arrays)
    ids = "ids_low" if packed else "ids"
    twice = arrays[ids].to(torch.int32)
    twice[70, 2] = twice[70, 0]
    with pytest.raises(UserError, match="names a token twice"):
        form.check({**arrays, ids: twice.to(arrays[ids].dtype)})


def test_a_token_drawn_twice_over_is_refused() -> None:
    form = SampledFormat(50, V, False, 1.0, widest=50)
    arrays = form.encode(Logits(_logits()), seed=0)
    ids = arrays["ids"].to(torch.int64)
    ids[1] = ids[0]
    with pytest.raises(UserError, match="names a token twice"):
        form.decode({**arrays, "ids": ids.to(torch.uint32)})


def test_rows_of_a_padded_embedding_count_to_the_tail() -> None:
    """The last 20 of V are no tokens, and often the most probable ones here."""
    logits = _logits()
    logits[:, V - 20 :] += 4.0
    wide = top_k_of(Logits(logits), 60, 1.0)
    for signal in (Logits(logits), wide):
        found = top_k_of(signal, 6, 1.0, vocab_size=V - 20)
        assert int(found.ids.max()) < V - 20
        best, ids = logits.log_softmax(-1)[:, : V - 20].topk(6)
        assert torch.equal(found.ids, ids)
        torch.testing.assert_close(found.log_probs, best, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.tail_log_mass.exp(), 1 - best.exp().sum(-1), atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="fewer than k=60 tokens"):
        top_k_of(wide, 60, 1.0, vocab_size=V - 20)
    sampled = SampledFormat(50, V - 20, False, 1.0).encode(Logits(logits), seed=0)
    assert int(sampled["ids"].to(torch.int64).max()) < V - 20
