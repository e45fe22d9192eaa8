"""What autograd sees of the losses: who gets a gradient, of which size, how often, and at what cost."""

import math

import pytest
import torch
from lantern_kernels import Head, Term, engine, linear_mixture_loss, mixture_loss, workspace
from naive import MIXTURES
from torch.utils._python_dispatch import TorchDispatchMode


def head(rows, columns, width, *, dtype=torch.float64, **keywords):
    """A head with random hidden states and weight, both of which require a gradient."""
    hidden = torch.randn(rows, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(columns, width, dtype=dtype, requires_grad=True)
    return Head(hidden, weight, **keywords)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("terms", MIXTURES.values(), ids=MIXTURES)
def test_gradcheck_of_logits(terms, temperature):
    student, teacher = (
        torch.randn(3, 6, dtype=torch.float64, requires_grad=True),
        torch.randn(3, 8, dtype=torch.float64),
    )

    def loss(student):
        return mixture_loss(
            student, teacher, terms, temperature=temperature, targets=torch.tensor([0, -100, 5]), cross_entropy=0.4
        ).loss

    assert torch.autograd.gradcheck(loss, student)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("teacher_columns", [8, 11])
def test_gradcheck_of_a_head(teacher_columns, softcap):
    teacher = head(5, teacher_columns, 6)
    bias = torch.randn(9, dtype=torch.float64, requires_grad=True)

    def loss(hidden, weight, bias):
        student = Head(hidden, weight, bias, softcap=softcap, scale=0.7)
        return linear_mixture_loss(student, teacher, MIXTURES["all"], temperature=2.0, chunk_size=2).loss

    student = head(5, 9, 4)
    assert torch.autograd.gradcheck(loss, (student.hidden, student.weight, bias))


def test_the_teacher_gets_no_gradient():
    student, teacher = head(4, 9, 3), head(4, 9, 5)
    linear_mixture_loss(student, teacher, [Term("js")]).loss.backward()
    assert teacher.hidden.grad is None
    assert teacher.weight.grad is None
    assert student.hidden.grad is not None


def test_upstream_gradient_scales_and_may_come_twice():
    student, teacher = head(4, 9, 3), head(4, 9, 3)
    loss = linear_mixture_loss(student, teacher, MIXTURES["all"]).loss
    once = torch.autograd.grad(loss, (student.hidden, student.weight), retain_graph=True)
    (3 * loss).backward(retain_graph=True)
    loss.backward(retain_graph=True)
    loss.backward()
    for tensor, gradient in zip((student.hidden, student.weight), once, strict=True):
        torch.testing.assert_close(tensor.grad, 5 * gradient)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_gradients_add_up_over_micro_batches():
    """A first gradient that autograd keeps mustn't be the tensor that the next one is added to."""
    student, teacher = head(4, 9, 3), head(4, 9, 3)
    first = linear_mixture_loss(student, teacher, [Term("kl")]).loss
    first.backward(retain_graph=True)
    alone = student.weight.grad.clone()
    linear_mixture_loss(student, teacher, [Term("kl")]).loss.backward()
    torch.testing.assert_close(student.weight.grad, 2 * alone)
    first.backward()
    torch.testing.assert_close(student.weight.grad, 3 * alone)


def test_without_grad_mode_there_is_a_value_and_no_graph():
    student, teacher = head(4, 9, 3), head(4, 9, 3)
    with_graph = linear_mixture_loss(student, teacher, MIXTURES["all"])
    with torch.no_grad():
        without = linear_mixture_loss(student, teacher, MIXTURES["all"])
    assert not without.loss.requires_grad
    assert without.loss == with_graph.loss.detach()
    torch.testing.assert_close(without.terms, with_graph.terms, rtol=0, atol=0)


PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)


class Operations(TorchDispatchMode):
    """Notes the shapes of the matrix products that run, and the size of the largest tensor that comes out."""

    def __init__(self):
        super().__init__()
        self.products: list[list[int]] = []
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
                if function.overloadpacket in PRODUCTS and min(tensor.shape) > 1:
                    self.products.append(list(tensor.shape))
        return result


def products(student, teacher, **keywords):
    with Operations() as operations:
        output = linear_mixture_loss(student, teacher, [Term("js")], **keywords)
    return output, operations


def test_full_logits_never_exist():
    student, teacher = head(400, 150, 2), head(400, 150, 2)
    _, operations = products(student, teacher, chunk_size=20)
    assert operations.largest == 20 * 150
    _, operations = products(student, teacher, chunk_size=400)
    assert operations.largest == 400 * 150


def test_a_default_chunk_is_bounded_by_memory_rather_than_by_rows():
    student, teacher = head(300, 60_000, 1, dtype=torch.float32), head(300, 60_000, 1, dtype=torch.float32)
    _, operations = products(student, teacher)
    both_sides = 2 * 4 * operations.largest
    assert both_sides <= engine._CHUNK_BYTES_CPU
    assert operations.products.count([150, 60_000]) == 4, "two chunks of even size"


def test_calls_share_their_buffers_but_not_a_call_within_a_call():
    """A CPU maps large blocks anew for each call otherwise; and an inner call mustn't write over the outer's."""

    class Nested:
        name = "nested"

        def __call__(self, student_logits, teacher_logits):
            linear_mixture_loss(head(4, 9, 3), head(4, 9, 3), [Term("js")])
            return (student_logits - teacher_logits).square().sum(-1)

    student, teacher = head(4, 9, 3), head(4, 9, 5)
    expected = (student.hidden @ student.weight.t() - teacher.hidden @ teacher.weight.t()).square().sum(-1)
    for _ in range(2):
        torch.testing.assert_close(
            linear_mixture_loss(student, teacher, [Term(Nested())]).terms["nested"], expected.detach()
        )
    assert len(workspace._blocks.free[torch.float64]) == workspace._KEPT
    with torch.inference_mode():
        linear_mixture_loss(head(4, 30, 3), head(4, 30, 3), [Term("js")])
    linear_mixture_loss(head(4, 30, 3), head(4, 30, 3), [Term("js")]).loss.backward()


def test_a_large_buffer_is_given_back_to_the_system(monkeypatch):
    monkeypatch.setattr(workspace, "_blocks", workspace._Blocks())
    monkeypatch.setattr(workspace, "_LARGEST_KEPT", 4 * 9 * 8)
    linear_mixture_loss(head(5, 9, 3), head(5, 9, 3), [Term("js")])
    assert workspace._blocks.free == {torch.float64: []}
    linear_mixture_loss(head(4, 9, 3), head(4, 9, 3), [Term("js")])
    assert [block.numel() for block in workspace._blocks.free[torch.float64]] == [36, 36]


def test_given_logits_are_read_in_place_and_left_as_they_are():
    student, teacher = (torch.randn(6, 50, dtype=torch.float64) for _ in range(2))
    copies = student.clone(), teacher.clone()
    with torch.inference_mode():
        frozen = teacher.clone()
    for backend in ("torch", "inductor"):
        logits = student.clone().requires_grad_()
        mixture_loss(logits, frozen, [Term("js")], backend=backend).loss.backward()
        torch.testing.assert_close((logits.detach(), frozen.clone()), copies, rtol=0, atol=0)
        exact = student.clone().requires_grad_()
        p, q = teacher.softmax(-1), exact.softmax(-1)
        m = (p + q) / 2
        (0.5 * (p * (p / m).log() + q * (q / m).log()).sum(-1).mean()).backward()
        torch.testing.assert_close(logits.grad, exact.grad)


def test_four_matrix_products_a_chunk_fewer_when_frozen_and_two_without_gradient():
    student, teacher = head(4, 9, 3), head(4, 9, 5)
    logits, to_hidden, to_weight = [4, 9], [4, 3], [9, 3]
    assert products(student, teacher)[1].products == [logits, logits, to_hidden, to_weight]

    frozen = Head(student.hidden, student.weight.detach())
    output, operations = products(frozen, teacher)
    assert operations.products == [logits, logits, to_hidden]
    (gradient,) = torch.autograd.grad(output.loss, frozen.hidden)
    (expected,) = torch.autograd.grad(products(student, teacher)[0].loss, student.hidden)
    torch.testing.assert_close(gradient, expected)

    assert products(Head(student.hidden.detach(), student.weight), teacher)[1].products == [logits, logits, to_weight]
    with torch.no_grad():
        assert products(student, teacher)[1].products == [logits, logits]


def test_rows_that_do_not_count_are_not_projected():
    student, teacher = head(9, 9, 3), head(9, 9, 5)
    targets = torch.full((9,), -100)
    targets[[2, 5]] = 0
    _, operations = products(student, teacher, targets=targets)
    assert operations.products == [[2, 9], [2, 9], [2, 3], [9, 3]]


def test_autocast_does_not_reach_the_arithmetic():
    student, teacher = head(7, 50, 16, dtype=torch.float32), head(7, 50, 16, dtype=torch.float32)
    plain = linear_mixture_loss(student, teacher, MIXTURES["all"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = linear_mixture_loss(student, teacher, MIXTURES["all"])
    assert cast.loss.dtype == torch.float32
    assert cast.loss == plain.loss
    inputs = (student.hidden, student.weight)
    for got, wanted in zip(torch.autograd.grad(cast.loss, inputs), torch.autograd.grad(plain.loss, inputs), strict=True):
        assert torch.equal(got, wanted)


def test_the_inputs_are_left_as_they_were():
    student, teacher = head(4, 9, 3, softcap=2.0), torch.randn(4, 9, dtype=torch.float64)
    before = [tensor.detach().clone() for tensor in (student.hidden, student.weight, teacher)]
    linear_mixture_loss(student, teacher, MIXTURES["all"], temperature=2.0).loss.backward()
    mixture_loss(student.weight, None, [], targets=torch.zeros(9, dtype=torch.long), cross_entropy=1.0).loss.backward()
    for tensor, copy in zip((student.hidden, student.weight, teacher), before, strict=True):
        assert torch.equal(tensor, copy)


def test_chunks_on_an_accelerator_are_whole_tiles_of_a_thousand_rows_and_more():
    for total in (8192, 5000, 1025, 1):
        for vocabulary in (32_000, 151_936, 262_144):
            rows = engine.rows_of_a_chunk(total, None, 4 * vocabulary, on_cpu=False)
            assert rows % 128 == 0
            assert rows >= min(1024, total) or math.ceil(total / rows) == math.ceil(total / 1024)
    assert engine.rows_of_a_chunk(8192, None, 4 * 151_936, on_cpu=False) == 1024
    assert engine.rows_of_a_chunk(8192, 100, 4 * 151_936, on_cpu=False) == 100
