"""A head's products of bf16 factors, as a GPU has them: here in an emulation, which multiplies them in float32."""

import pytest
import torch
from lantern_kernels import Head, Term, linear_mixture_loss, products
from naive import MIXTURES, naive_head, naive_loss

N, V, D = 12, 300, 16


@pytest.fixture
def calls(monkeypatch):
    """A device with narrow products; what they were called with."""
    seen = []

    def multiply(left, right, out):
        seen.append((left.dtype, right.dtype, out.dtype))
        out.copy_(left.float() @ right.float())

    def accumulate(total, left, right):
        seen.append((left.dtype, right.dtype, total.dtype))
        total.add_(left.float() @ right.float())

    monkeypatch.setattr(products, "has_narrow", lambda device: True)
    monkeypatch.setattr(products, "_narrow_multiply", multiply)
    monkeypatch.setattr(products, "_narrow_accumulate", accumulate)
    return seen


def heads(dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, t_hidden, t_weight, bias = (
        torch.randn(*shape, generator=generator).to(dtype) for shape in ((N, D), (V, D), (N, D + 2), (V + 4, D + 2), (V,))
    )
    return [tensor.requires_grad_() for tensor in (hidden, weight, bias)], Head(t_hidden, t_weight)


@pytest.mark.parametrize("skip_below", [0.0, 1e-4])
def test_the_loss_is_exact_and_gradients_are_within_their_bound(calls, skip_below):
    leaves, teacher = heads()
    output = linear_mixture_loss(Head(*leaves), teacher, MIXTURES["all"], chunk_size=5, skip_below=skip_below)
    got = torch.autograd.grad(output.loss, leaves)
    assert set(calls) == {(torch.bfloat16, torch.bfloat16, torch.float32)}
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    logits = naive_head(*exact)
    logits.retain_grad()
    expected, _ = naive_loss(logits, naive_head(teacher.hidden, teacher.weight), MIXTURES["all"])
    expected.backward()
    torch.testing.assert_close(output.loss.double(), expected.detach(), rtol=1e-5, atol=0)
    size, hidden, weight = logits.grad.abs(), exact[0].detach(), exact[1].detach()
    # What the logits' gradient was rounded by, what was skipped, and the rounding of the results themselves.
    for one, other, bound in (
        (got[0], exact[0].grad, size @ weight.abs()),
        (got[1], exact[1].grad, size.t() @ hidden.abs()),
    ):
        skipped = skip_below / N * (weight.abs().sum(0) if one is got[0] else hidden.abs().sum(0))
        assert ((one - other).abs() <= 2**-8 * (bound + other.abs()) * 1.01 + skipped + 1e-9).all()
    assert (got[2] - exact[2].grad).abs().max() <= 2**-8 * exact[2].grad.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_other_dtypes_take_wide_products(calls, dtype):
    leaves, teacher = heads(dtype)
    linear_mixture_loss(Head(*leaves), teacher, [Term("kl")]).loss.backward()
    assert not calls


def test_a_torch_that_cannot_add_in_the_product_adds_after_it(monkeypatch):
    def refuse(*arguments, **keywords):
        raise NotImplementedError("addmm.dtype_out")

    monkeypatch.setattr(torch, "addmm", refuse)
    monkeypatch.setattr(torch, "mm", lambda left, right, out_dtype: left.to(out_dtype) @ right.to(out_dtype))
    products._adds_narrow.cache_clear()
    total, left, right = torch.ones(3, 4), torch.rand(3, 5).bfloat16(), torch.rand(5, 4).bfloat16()
    products.accumulate(total, left, right, fresh=False)
    products._adds_narrow.cache_clear()
    torch.testing.assert_close(total, 1 + left.float() @ right.float())


def test_the_products_exist_in_this_torch():
    """Without a GPU, on tensors without data."""
    left, right = (torch.empty(*shape, dtype=torch.bfloat16, device="meta") for shape in ((16, 8), (8, 32)))
    total = torch.empty(16, 32, device="meta")
    products.multiply(left.float(), right, out=total)
    products._adds_narrow.cache_clear()
    assert products._adds_narrow(left.device, left.dtype)
    products.accumulate(total, left, right, fresh=False)
