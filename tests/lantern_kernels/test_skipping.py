"""Leaving negligible entries out of the gradients' products: within the stated bound, and never more than asked for."""

import pytest
import torch
from lantern_kernels import Head, linear_mixture_loss
from lantern_kernels import heads as heads_
from naive import MIXTURES

N, V, D = 24, 600, 8


def problem(spread):
    """A student near a teacher; the larger the spread, the more concentrated both."""
    torch.manual_seed(0)
    weight = spread * torch.randn(V, D, dtype=torch.float64)
    hidden = torch.randn(N, D, dtype=torch.float64)
    student = Head(
        hidden.clone().requires_grad_(), weight.clone().requires_grad_(), torch.zeros(V).double().requires_grad_()
    )
    return student, Head(hidden + 0.1 * torch.randn(N, D).double(), weight)


def run(student, teacher, terms, **keywords):
    output = linear_mixture_loss(student, teacher, terms, **keywords)
    return output, torch.autograd.grad(output.loss, (student.hidden, student.weight, student.bias))


@pytest.mark.parametrize("chunk_size", [None, 5])
@pytest.mark.parametrize("threshold", [1e-8, 1e-5, 1e-3, 1.0])
@pytest.mark.parametrize("terms", MIXTURES.values(), ids=MIXTURES)
def test_the_stated_bound(terms, threshold, chunk_size):
    student, teacher = problem(spread=3.0)
    weights = torch.rand(N, dtype=torch.float64)
    keywords = {"row_weights": weights, "temperature": 2.0, "chunk_size": chunk_size}
    exact, (hidden, weight, bias) = run(student, teacher, terms, **keywords)
    output, (h, w, b) = run(student, teacher, terms, skip_below=threshold, **keywords)
    torch.testing.assert_close(output, exact)
    torch.testing.assert_close(b, bias)
    norms, largest = student.weight.norm(dim=1), weights.max()
    assert ((h - hidden).norm(dim=1) <= threshold * largest * norms.sum() + 1e-12).all()
    assert ((w - weight).norm(dim=1) <= threshold * largest * student.hidden.norm(dim=1).sum() + 1e-12).all()


def test_something_is_left_out_and_what_matters_stays(monkeypatch):
    student, teacher = problem(spread=3.0)
    kept, choose = [], heads_._columns_above

    def noting(gradient, negligible):
        columns = choose(gradient, negligible)
        kept.append(None if columns is None else (gradient.clone(), negligible, columns))
        return columns

    monkeypatch.setattr(heads_, "_columns_above", noting)
    run(student, teacher, MIXTURES["kl"], skip_below=2**-12, chunk_size=12)
    for gradient, negligible, columns in kept:
        assert 0 < len(columns) < 0.6 * V
        dropped = torch.ones(V, dtype=torch.bool).index_fill(0, columns, False)
        assert (gradient[:, dropped].abs() <= negligible).all()
        assert (gradient[:, columns].abs() > negligible).any(0).all()


def test_flat_distributions_take_the_dense_way(monkeypatch):
    student, teacher = problem(spread=0.01)
    _, exact = run(student, teacher, MIXTURES["kl"])
    _, got = run(student, teacher, MIXTURES["kl"], skip_below=1e-12)
    torch.testing.assert_close(got, exact, rtol=0, atol=0)


def test_a_chunk_without_anything_to_keep():
    student, _ = problem(spread=3.0)
    same = Head(student.hidden.detach(), student.weight.detach())
    _, gradients = run(student, same, MIXTURES["kl"], skip_below=1e-6, chunk_size=6)
    assert all((gradient.abs() <= 1e-12).all() for gradient in gradients)


def test_nan_is_not_left_out():
    student, teacher = problem(spread=3.0)
    student.hidden.data[2] = torch.nan
    _, (hidden, _, _) = run(student, teacher, MIXTURES["kl"], skip_below=2**-12)
    assert hidden[2].isnan().all()


@pytest.mark.parametrize("value", [-1e-3, float("nan"), float("inf")])
def test_refusals(value):
    with pytest.raises(ValueError, match=r"skip_below is .*; expected a finite number, at least 0"):
        linear_mixture_loss(*problem(1.0), MIXTURES["kl"], skip_below=value)
