"""A teacher of which the k most probable tokens are known: the same loss on k + 1 events."""

import math
import re

import pytest
import torch
from lantern_kernels import Head, Logits, Term, TopK, linear_mixture_loss, mixture_loss
from naive import MIXTURES, naive_head

N, V = 5, 40


def make(k, *, temperature=1.0, dtype=torch.float64, columns=V):
    """Student logits, the teacher's, and its k most probable tokens."""
    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(N, columns, dtype=dtype), 3 * torch.randn(N, columns, dtype=dtype)
    log_p = (teacher / temperature).log_softmax(-1)
    log_probs, ids = log_p.topk(k)
    tail = log_p.scatter(-1, ids, -torch.inf).logsumexp(-1)
    return student.requires_grad_(), teacher, TopK(ids, log_probs, tail)


def on_events(student, top_k, temperature=1.0):
    """Logits of the k + 1 events: a softmax over them is the distribution over the events."""
    log_q = (student.double() / temperature).log_softmax(-1)
    tail = log_q.scatter(-1, top_k.ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_q.gather(-1, top_k.ids), tail], -1), torch.cat([top_k.log_probs, top_k.tail_log_mass[:, None]], -1)


@pytest.mark.parametrize("k", [1, 7, V - 1, V])
@pytest.mark.parametrize("terms", MIXTURES.values(), ids=MIXTURES)
def test_it_is_the_loss_on_the_events(terms, k):
    student, _, top_k = make(k, temperature=2.0)
    keywords = {"temperature": 2.0, "targets": torch.arange(N), "cross_entropy": 0.4, "row_weights": torch.rand(N)}
    ours = mixture_loss(student, top_k, terms, **keywords)
    q, p = (2.0 * logits for logits in on_events(student, top_k, 2.0))  # the temperature divides them again
    expected = mixture_loss(q, p, terms, temperature=2.0, row_weights=keywords["row_weights"])
    for label, value in expected.terms.items():
        torch.testing.assert_close(ours.terms[label], value)
    cross_entropy = torch.nn.functional.cross_entropy(student, torch.arange(N), reduction="none")
    loss = expected.loss + 0.4 * (cross_entropy * keywords["row_weights"].double()).sum()
    torch.testing.assert_close(ours.loss, loss)
    torch.testing.assert_close(torch.autograd.grad(ours.loss, student), torch.autograd.grad(loss, student))


@pytest.mark.parametrize("terms", MIXTURES.values(), ids=MIXTURES)
def test_it_is_a_lower_bound_that_is_met_at_k_equal_to_v(terms):
    student, teacher, _ = make(1)
    full = mixture_loss(student, teacher, terms)
    below = {label: torch.zeros(N, dtype=torch.float64) for label in full.terms}
    for k in (1, 2, 5, 20, V):
        got = mixture_loss(student, make(k)[2], terms).terms
        for label, value in got.items():
            assert (value >= below[label] - 1e-12).all(), "more tokens, more to tell apart"
            assert (value <= full.terms[label] + 1e-12).all()
        below = got
    met = mixture_loss(student, make(V)[2], terms)
    torch.testing.assert_close(met, full)
    torch.testing.assert_close(torch.autograd.grad(met.loss, student), torch.autograd.grad(full.loss, student))


def test_the_gradient_is_blind_to_a_shift_of_the_logits():
    student, _, top_k = make(4)
    (expected,) = torch.autograd.grad(mixture_loss(student, top_k, MIXTURES["all"]).loss, student)
    for shift in (-2e4, 2e4):
        logits = (student.detach() + shift).requires_grad_()
        (gradient,) = torch.autograd.grad(mixture_loss(logits, top_k, MIXTURES["all"]).loss, logits)
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)


def test_gradcheck():
    student, _, top_k = make(4)
    assert torch.autograd.gradcheck(lambda s: mixture_loss(s, top_k, MIXTURES["all"], temperature=1.5).loss, student)


@pytest.mark.parametrize("terms", MIXTURES.values(), ids=MIXTURES)
def test_a_student_that_puts_all_its_mass_on_the_known_tokens(terms):
    """In float32 one minus the known mass is nothing but rounding."""
    student, _, top_k = make(3, dtype=torch.float32)
    student = student.detach().scatter_add(-1, top_k.ids, torch.full((N, 3), 25.0)).requires_grad_()
    ours = mixture_loss(student, top_k, terms)
    exact = student.detach().double().requires_grad_()
    expected = mixture_loss(exact, TopK(top_k.ids, top_k.log_probs.double(), top_k.tail_log_mass.double()), terms)
    torch.testing.assert_close(ours.loss.double(), expected.loss, rtol=1e-5, atol=1e-6)
    got, wanted = torch.autograd.grad(ours.loss, student)[0], torch.autograd.grad(expected.loss, exact)[0]
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max() + 1e-7


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_linear(chunk_size):
    _, _, top_k = make(4, temperature=2.0)
    student = Head(
        torch.randn(N, 6, dtype=torch.float64, requires_grad=True),
        torch.randn(V, 6, dtype=torch.float64, requires_grad=True),
        torch.randn(V, dtype=torch.float64, requires_grad=True),
        softcap=4.0,
        scale=0.5,
    )
    targets = torch.tensor([3, -100, 5, 6, 7])
    keywords = {"temperature": 2.0, "targets": targets, "cross_entropy": 0.4}
    ours = linear_mixture_loss(student, top_k, MIXTURES["all"], chunk_size=chunk_size, **keywords)
    logits = naive_head(student.hidden, student.weight, student.bias, student.softcap, student.scale)
    expected = mixture_loss(logits, top_k, MIXTURES["all"], **keywords)
    torch.testing.assert_close(ours.loss, expected.loss)
    inputs = (student.hidden, student.weight, student.bias)
    torch.testing.assert_close(torch.autograd.grad(ours.loss, inputs), torch.autograd.grad(expected.loss, inputs))


def test_tokens_that_the_student_excludes_and_a_teacher_without_a_tail():
    student, _, top_k = make(4)
    excluded = student.detach().clone()
    excluded[:, top_k.ids[0, 0]] = -torch.inf
    excluded.requires_grad_()
    no_tail = TopK(top_k.ids, top_k.log_probs.log_softmax(-1), torch.full((N,), -math.inf))
    output = mixture_loss(excluded, no_tail, MIXTURES["all"])
    (gradient,) = torch.autograd.grad(output.loss, excluded)
    assert output.loss.isfinite()
    assert gradient.isfinite().all()
    assert (gradient[:, top_k.ids[0, 0]] == 0).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
@pytest.mark.parametrize("columns", [40, 507, 5000])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("softcap", [None, 8.0])
def test_the_triton_kernels(softcap, temperature, columns):
    """In the interpreter, on logits and on a head, with rows that don't count, against the same in float64."""
    student, _, top_k = make(4, temperature=temperature, columns=columns)
    keywords = {
        "temperature": temperature,
        "targets": torch.tensor([int(top_k.ids[0, 1]), 5, -100, 7, 39]),
        "cross_entropy": 0.4,
        "row_weights": torch.tensor([0.5, 1.0, 1.0, 0.0, 2.0]),
    }
    expected = mixture_loss(Logits(student, softcap, 1.2), top_k, MIXTURES["all"], **keywords)
    single = student.detach().float().clone()
    single[3] = torch.nan  # doesn't count
    single.requires_grad_()
    rounded = TopK(top_k.ids, top_k.log_probs.float(), top_k.tail_log_mass.float())
    ours = mixture_loss(Logits(single, softcap, 1.2), rounded, MIXTURES["all"], backend="triton", **keywords)
    torch.testing.assert_close(ours.loss.double(), expected.loss, rtol=1e-5, atol=1e-6)
    for label, value in expected.terms.items():
        torch.testing.assert_close(ours.terms[label].double(), value, rtol=1e-5, atol=1e-5)
    got, wanted = torch.autograd.grad(3 * ours.loss, single)[0], torch.autograd.grad(3 * expected.loss, student)[0]
    assert (got - wanted).abs().max() <= 2e-5 * wanted.abs().max()
    assert (got[2:4] == 0).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
def test_the_triton_kernels_on_an_ignored_target_above_the_vocabulary_and_on_an_excluded_one():
    student, _, top_k = make(4, dtype=torch.float32)
    student = student.detach().clone()
    student[1, 7] = -torch.inf
    student.requires_grad_()
    keywords = {"targets": torch.tensor([3, 7, V + 5, 4, V + 5]), "cross_entropy": 0.4, "ignore_index": V + 5}
    got, wanted = (mixture_loss(student, top_k, [Term("kl")], backend=name, **keywords) for name in ("triton", "torch"))
    assert wanted.terms["cross_entropy"][1] == 1e4
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
@pytest.mark.parametrize("k", [1, V - 1, V])
def test_the_triton_kernels_at_both_ends(k):
    student, _, top_k = make(k, dtype=torch.float32)
    ours = mixture_loss(student, top_k, MIXTURES["all"], backend="triton")
    expected = mixture_loss(student, top_k, MIXTURES["all"], backend="torch")
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    got, wanted = (torch.autograd.grad(output.loss, student) for output in (ours, expected))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_the_triton_kernels_on_a_head():
    _, _, top_k = make(4, dtype=torch.float32)
    student = Head(torch.randn(N, 6, requires_grad=True), torch.randn(V, 6, requires_grad=True), softcap=4.0)
    outputs = [
        linear_mixture_loss(student, top_k, MIXTURES["all"], chunk_size=2, backend=backend)
        for backend in ("triton", "torch")
    ]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(output.loss, (student.hidden, student.weight)) for output in outputs]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


class Square:
    name = "square"

    def __call__(self, student_logits, teacher_logits):
        return (student_logits - teacher_logits).square().sum(-1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": torch.full((N, 2), V)}, f"teacher_logits.ids[0] is [{V}, {V}]; expected 0 to {V - 1}"),
        ({"ids": torch.full((N, 2), -1)}, "teacher_logits.ids[0] is [-1, -1]; expected 0 to"),
        ({"ids": torch.full((N, 2), 3)}, "teacher_logits.ids[0] is [3, 3]; expected every token once"),
        ({"ids": torch.rand(N, 2)}, "teacher_logits.ids has shape [5, 2] and dtype torch.float32; expected integers [N, k]"),
        (
            {"log_probs": torch.rand(N, 3)},
            "teacher_logits.log_probs has shape [5, 3]; expected [5, 2], as teacher_logits.ids",
        ),
        ({"tail_log_mass": torch.rand(N, 1)}, "teacher_logits.tail_log_mass has shape [5, 1]"),
        ({"tail_log_mass": torch.zeros(N)}, "add up to a mass of"),
        ({"log_probs": torch.full((N, 2), -9.0), "tail_log_mass": torch.full((N,), -9.0)}, "add up to a mass of 0.0003"),
        ({"tail_log_mass": torch.full((N,), math.nan)}, "add up to a mass of nan; expected 1"),
    ],
)
def test_refusals(change, message):
    student, _, top_k = make(2)
    with pytest.raises(ValueError, match=re.escape(message)):
        mixture_loss(student, TopK(**{**vars(top_k), **change}), [Term("kl")])


def test_refusals_of_what_a_top_k_teacher_cannot_do():
    student, _, top_k = make(2)
    with pytest.raises(ValueError, match="teacher_logits is a TopK, but 'square' isn't pointwise; give it full logits"):
        mixture_loss(student, top_k, [Term(Square())])
    with pytest.raises(ValueError, match=re.escape("teacher_logits.ids has 5 rows; expected 4")):
        mixture_loss(student[:4], top_k, [Term("kl")])
    with pytest.raises(ValueError, match="backend is 'inductor', which doesn't read a TopK teacher"):
        mixture_loss(student, top_k, [Term("kl")], backend="inductor")
