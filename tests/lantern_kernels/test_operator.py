"""Through torch.compile(fullgraph=True): both losses are one operator, with the same results."""

import pytest
import torch
from lantern_kernels import Head, Logits, Term, TopK, linear_mixture_loss, mixture_loss
from naive import MIXTURES

N, V, D = 6, 50, 8


@pytest.fixture(autouse=True)
def start_anew():
    torch._dynamo.reset()


def logits(columns=V, seed=0):
    return torch.randn(N, columns, generator=torch.Generator().manual_seed(seed))


def head(seed=0, **keywords):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for shape in ((N, D), (V, D), (V,))], keywords


def same(function, *inputs):
    """`function`, which returns an output, gives the same loss, terms and gradients compiled as it does eagerly."""
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    results = []
    for run in (compiled, function):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        output = run(*leaves)
        results.append((output.loss, output.terms, torch.autograd.grad(2.0 * output.loss, leaves)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("terms", MIXTURES.values(), ids=MIXTURES)
def test_logits(terms):
    teacher, targets = logits(V + 3, seed=1), torch.tensor([3, -100, 5, 6, 7, 8])
    same(lambda s: mixture_loss(s, teacher, terms, temperature=2.0, targets=targets, cross_entropy=0.4), logits())


def test_terms_made_within():
    teacher = logits(seed=1)
    same(lambda s: mixture_loss(s * 1.5, teacher, [Term("js", 0.7, beta=0.3), Term("kl", label="forward")]), logits())


def test_a_softcapped_student_and_no_teacher():
    keywords = {"targets": torch.arange(N), "cross_entropy": 1.0}
    same(lambda s: mixture_loss(Logits(s, softcap=3.0, scale=0.5), None, [], **keywords), logits())


@pytest.mark.parametrize("teacher", ["head", "logits", "top-k"])
def test_linear(teacher):
    tensors, _ = head()
    (hidden, weight, _), _ = head(seed=1)
    log_probs, ids = logits(seed=2).log_softmax(-1).topk(4)
    tail = (1 - log_probs.exp().sum(-1)).log()
    given = {"head": Head(hidden, weight, scale=0.7), "logits": logits(seed=2), "top-k": TopK(ids, log_probs, tail)}[teacher]
    weights = torch.linspace(0.0, 1.0, N)

    def loss(hidden, weight, bias):
        student = Head(hidden.tanh(), weight, bias, softcap=4.0)
        return linear_mixture_loss(student, given, MIXTURES["all"], row_weights=weights, chunk_size=4)

    same(loss, *tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_dtypes_as_inductor_compiles_them(dtype):
    """Inductor trusts what an operator promises of its results: in another dtype it would read their bytes as numbers."""
    (t_hidden, t_weight, _), _ = head(seed=1)
    tensors, teacher = head()[0], logits(seed=3)

    def loss(student, hidden, weight):
        given = mixture_loss(student.tanh(), teacher, MIXTURES["all"])
        projected = linear_mixture_loss(Head(hidden.tanh(), weight), Head(t_hidden, t_weight), MIXTURES["all"])
        return given.loss + projected.loss

    inputs = [tensor.to(dtype) for tensor in (logits(), *tensors[:2])]
    gradients = []
    for run in (torch.compile(loss, fullgraph=True, backend="inductor"), loss):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        gradients.append(torch.autograd.grad(1000.0 * run(*leaves), leaves))
    for got, wanted in zip(*gradients, strict=True):
        assert got.dtype == dtype
        assert (got - wanted).abs().max() <= 2 * torch.finfo(dtype).eps * wanted.abs().max()


def test_a_frozen_head():
    (hidden, weight, _), _ = head()
    (t_hidden, t_weight, _), _ = head(seed=1)
    same(lambda h: linear_mixture_loss(Head(h, weight), Head(t_hidden, t_weight), [Term("kl")]), hidden)


class Cubic:
    name = "cubic"

    def value_and_slope(self, log_p, log_q, p, q):
        difference = q - p
        return difference.abs() ** 3, 3 * difference.abs() ** 2 * difference.sign() * q


class Square:
    name = "square"

    def __call__(self, student_logits, teacher_logits):
        return (student_logits.softmax(-1) - teacher_logits.softmax(-1)).square().sum(-1)


def test_a_pointwise_divergence_from_elsewhere():
    teacher, terms = logits(seed=1), [Term(Cubic(), 0.5), Term("kl", 0.5)]
    same(lambda s: mixture_loss(s, teacher, terms, temperature=2.0), logits())


def test_a_general_divergence_is_refused():
    terms = [Term(Square())]
    compiled = torch.compile(lambda s, t: mixture_loss(s, t, terms).loss, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match="'square' isn't pointwise: it needs autograd"):
        compiled(logits(), logits(seed=1))


def test_without_gradient():
    compiled = torch.compile(lambda s, t: mixture_loss(s, t, [Term("tvd")]), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(logits(), logits(seed=1)), mixture_loss(logits(), logits(seed=1), [Term("tvd")]))


def test_values_are_checked_when_it_runs():
    compiled = torch.compile(
        lambda s, y: mixture_loss(s, None, [], targets=y, cross_entropy=1.0).loss, fullgraph=True, backend="aot_eager"
    )
    with pytest.raises(ValueError, match=r"targets\[0\] is 50; expected 0 to 49"):
        compiled(logits(), torch.full((N,), V))


def test_the_operator_keeps_the_rules_of_torch_library():
    student, teacher = logits().requires_grad_(), logits(seed=1)
    arguments = [
        student, None, None, teacher, None, None, torch.arange(N), None, "Logits", "Logits", None, 1.0, None, 1.0,
        "js beta=0.3", "js", [0.7], [True, False, False], 2.0, 0.5, -100, "torch", False, None, 0.0,
    ]  # fmt: skip
    torch.library.opcheck(torch.ops.lantern_kernels.loss.default, arguments)
