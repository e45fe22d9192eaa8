"""Every path against the naive formula in float64: dtypes, odd shapes, temperatures, terms, padding, heads, chunks."""

import pytest
import torch
from lantern_kernels import Head, Term, linear_mixture_loss, mixture_loss
from naive import MIXTURES, naive_head, naive_loss

# Relative to the largest gradient, and to the loss. The arithmetic is float32 for the half dtypes too: what's added is
# the rounding of the returned gradient, to 8 and 11 significant bits. In float32 a log-probability of -20 is itself
# known to 1e-6 only, and much of that cancels where p and q hardly overlap.
GRADIENT_TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-5, torch.bfloat16: 4e-3, torch.float16: 6e-4}
LOSS_TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 3e-6, torch.float16: 3e-6}


def logits(rows, columns, dtype=torch.float64, *, seed=0, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(rows, columns, generator=generator, dtype=torch.float64)).to(dtype)


def assert_same(ours, naive, inputs, dtype):
    """Loss, terms and gradients of `inputs` agree, within the tolerance of `dtype`."""
    (loss, values), (naive_loss_, naive_values) = ours, naive
    scale = max(1.0, naive_loss_.detach().abs())
    assert (loss.detach() - naive_loss_.detach()).abs() <= LOSS_TOLERANCE[dtype] * scale
    assert list(values) == list(naive_values)
    within = max(3e-6, LOSS_TOLERANCE[dtype])
    for label, value in naive_values.items():
        torch.testing.assert_close(values[label].double(), value.detach(), rtol=max(1e-5, within), atol=within, msg=label)
    inputs = [tensor for tensor in inputs if tensor is not None]
    for ours_, naive_ in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(naive_loss_, inputs), strict=True):
        assert ours_.dtype == dtype
        error = (ours_.double() - naive_.double()).abs().max()
        assert error <= GRADIENT_TOLERANCE[dtype] * naive_.abs().max() + 1e-9


@pytest.mark.parametrize("dtype", GRADIENT_TOLERANCE, ids=str)
@pytest.mark.parametrize("terms", MIXTURES.values(), ids=MIXTURES)
def test_logits_in_every_dtype(terms, dtype):
    student, teacher = logits(7, 507, dtype).requires_grad_(), logits(7, 507, dtype, seed=1)
    ours, naive = mixture_loss(student, teacher, terms), naive_loss(student, teacher, terms)
    assert_same(ours, naive, [student], dtype)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 1), (1, 7), (252, 7), (1, 507), (252, 507), (7, 32_001)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_logits_of_odd_shapes(rows, columns, temperature):
    student, teacher = logits(rows, columns, torch.float32).requires_grad_(), logits(rows, columns, seed=1).float()
    keywords = {"temperature": temperature, "targets": torch.arange(rows) % columns, "cross_entropy": 0.6}
    ours = mixture_loss(student, teacher, MIXTURES["all"], **keywords)
    assert_same(ours, naive_loss(student, teacher, MIXTURES["all"], **keywords), [student], torch.float32)


@pytest.mark.parametrize("rows", [7, pytest.param(252, marks=pytest.mark.slow)])
def test_logits_and_heads_of_a_large_vocabulary(rows, monkeypatch):
    # The plain formula in float32 is this far off in torch too (1.2e-5 in the worst row, whose mass is on one token and
    # most of whose gradient cancels); `accurate` isn't.
    monkeypatch.setitem(GRADIENT_TOLERANCE, torch.float32, 2e-4 if rows == 7 else 2e-3)
    monkeypatch.setitem(LOSS_TOLERANCE, torch.float32, 3e-5)
    student, teacher = logits(rows, 151_936, torch.float32).requires_grad_(), logits(rows, 151_936, seed=1).float()
    ours = mixture_loss(student, teacher, MIXTURES["js"])
    naive = naive_loss(student, teacher, MIXTURES["js"])
    assert_same(ours, naive, [student], torch.float32)
    exact = mixture_loss(student, teacher, MIXTURES["js"], accurate=True)
    torch.testing.assert_close(exact.terms["js"].double(), naive[1]["js"].detach(), rtol=0, atol=1e-7)
    heads_ = heads(rows, 151_936, torch.float32)
    ours = linear_mixture_loss(*heads_, [Term("kl")])
    assert_same(ours, naive_linear(*heads_, [Term("kl")]), tensors(heads_[0]), torch.float32)


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bf16 products")
def test_products_in_bf16_on_a_cpu_for_who_asks():
    """As the README says; the loss and its gradients stay float32, with the error of factors that were rounded."""
    student, teacher = heads(32, 507, torch.float32)
    inputs = [student.hidden, student.weight]
    wanted = linear_mixture_loss(student, teacher, [Term("kl")])
    expected = torch.autograd.grad(wanted.loss, inputs)
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        output = linear_mixture_loss(student, teacher, [Term("kl")])
        got = torch.autograd.grad(output.loss, inputs)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
    torch.testing.assert_close(output.loss, wanted.loss, rtol=2e-2, atol=1e-3)
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).abs().max() <= 4e-2 * other.abs().max()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("terms", MIXTURES.values(), ids=MIXTURES)
def test_logits_at_every_temperature(terms, temperature):
    student, teacher = logits(7, 123).requires_grad_(), logits(7, 123, seed=1)
    keywords = {
        "temperature": temperature,
        "targets": torch.arange(7),
        "cross_entropy": 0.6,
        "row_weights": torch.linspace(0.1, 2.0, 7),
    }
    ours, naive = mixture_loss(student, teacher, terms, **keywords), naive_loss(student, teacher, terms, **keywords)
    assert_same(ours, naive, [student], torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_cross_entropy_alone_needs_no_teacher(temperature):
    student = logits(7, 123).requires_grad_()
    keywords = {"temperature": temperature, "targets": torch.arange(7), "cross_entropy": 1.5}
    assert_same(
        mixture_loss(student, None, [], **keywords), naive_loss(student, None, [], **keywords), [student], torch.float64
    )


def test_targets_of_another_integer_dtype():
    student = logits(7, 123).requires_grad_()
    ours = mixture_loss(student, None, [], targets=torch.arange(7, dtype=torch.int32), cross_entropy=1.0)
    naive = naive_loss(student, None, [], targets=torch.arange(7), cross_entropy=1.0)
    assert_same(ours, naive, [student], torch.float64)


@pytest.mark.parametrize(("columns", "teacher_columns"), [(507, 520), (520, 507), (1, 9), (9, 1)])
@pytest.mark.parametrize("terms", MIXTURES.values(), ids=MIXTURES)
def test_logits_of_padded_vocabularies(terms, columns, teacher_columns):
    student, teacher = logits(7, columns).requires_grad_(), logits(7, teacher_columns, seed=1)
    ours, naive = (
        mixture_loss(student, teacher, terms, temperature=2.0),
        naive_loss(student, teacher, terms, temperature=2.0),
    )
    assert_same(ours, naive, [student], torch.float64)


def heads(rows, columns, dtype=torch.float64, *, teacher_columns=None, width=12, bias=False, softcap=None, scale=1.0):
    """A student's head, and a teacher's of another hidden size."""
    student = Head(
        logits(rows, width, dtype, seed=2, spread=1.0).requires_grad_(),
        logits(columns, width, dtype, seed=3, spread=0.9).requires_grad_(),
        logits(1, columns, dtype, seed=4)[0].clone().requires_grad_() if bias else None,
        softcap,
        scale,
    )
    teacher = Head(
        logits(rows, width + 7, dtype, seed=5, spread=1.0),
        logits(teacher_columns or columns, width + 7, dtype, seed=6, spread=0.7),
    )
    return student, teacher


def naive_linear(student, teacher, terms, **keywords):
    full = [naive_head(h.hidden, h.weight, h.bias, h.softcap, h.scale) for h in (student, teacher)]
    return naive_loss(*full, terms, **keywords)


def tensors(head):
    return [head.hidden, head.weight, head.bias]


@pytest.mark.parametrize("dtype", GRADIENT_TOLERANCE, ids=str)
@pytest.mark.parametrize("terms", MIXTURES.values(), ids=MIXTURES)
def test_linear_in_every_dtype(terms, dtype):
    student, teacher = heads(7, 507, dtype, bias=True)
    ours = linear_mixture_loss(student, teacher, terms, chunk_size=3)
    assert_same(ours, naive_linear(student, teacher, terms), tensors(student), dtype)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 1), (1, 7), (252, 7), (1, 507), (252, 507), (7, 32_001)])
@pytest.mark.parametrize("chunk_size", [None, 3, 100], ids="chunk_{}".format)
def test_linear_of_odd_shapes_and_chunks(rows, columns, chunk_size):
    student, teacher = heads(rows, columns, torch.float32)
    keywords = {"temperature": 2.0, "targets": torch.arange(rows) % columns, "cross_entropy": 0.6}
    ours = linear_mixture_loss(student, teacher, MIXTURES["all"], chunk_size=chunk_size, **keywords)
    assert_same(ours, naive_linear(student, teacher, MIXTURES["all"], **keywords), tensors(student), torch.float32)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0, 30.0])
@pytest.mark.parametrize("scale", [1.0, 0.0625, 1.7])
def test_linear_with_scale_bias_and_softcap(scale, softcap, bias):
    student, teacher = heads(7, 123, bias=bias, softcap=softcap, scale=scale)
    ours = linear_mixture_loss(student, teacher, MIXTURES["all"], temperature=2.0, chunk_size=3)
    naive = naive_linear(student, teacher, MIXTURES["all"], temperature=2.0)
    assert_same(ours, naive, tensors(student), torch.float64)


@pytest.mark.parametrize(("columns", "teacher_columns"), [(123, 140), (140, 123)])
def test_linear_of_padded_vocabularies(columns, teacher_columns):
    student, teacher = heads(7, columns, teacher_columns=teacher_columns, bias=True, softcap=5.0)
    ours = linear_mixture_loss(student, teacher, MIXTURES["all"], chunk_size=2)
    assert_same(ours, naive_linear(student, teacher, MIXTURES["all"]), tensors(student), torch.float64)


def test_linear_against_a_teacher_given_by_its_logits():
    student, teacher = heads(7, 123)
    given = naive_head(teacher.hidden, teacher.weight)
    ours = linear_mixture_loss(student, given, MIXTURES["all"], chunk_size=2)
    assert_same(ours, naive_linear(student, teacher, MIXTURES["all"]), tensors(student), torch.float64)


def test_linear_reads_a_teacher_with_bias_scale_and_softcap():
    student, teacher = heads(7, 123)
    teacher = Head(teacher.hidden, teacher.weight, logits(1, 123, seed=8)[0], softcap=4.0, scale=0.5)
    ours = linear_mixture_loss(student, teacher, [Term("js")])
    assert_same(ours, naive_linear(student, teacher, [Term("js")]), tensors(student), torch.float64)


@pytest.mark.parametrize("linear", [False, True])
def test_rows_left_out_by_target_or_weight(linear):
    """Ignored targets and zero weights remove rows; the default weight is 1 / the number of rows that count."""
    student, teacher = heads(9, 123)
    rows = torch.tensor([0, 2, 3, 7])
    targets = torch.full((9,), -100).scatter(0, rows, rows)
    weights = torch.zeros(9, dtype=torch.float64).scatter(0, rows, torch.tensor([0.5, 0.0, 2.0, 1.0]).double())
    chosen = [Head(head.hidden[rows], head.weight) for head in (student, teacher)]
    full = [naive_head(head.hidden, head.weight) for head in (student, teacher)]
    for row_weights in (None, weights):
        keywords = {"cross_entropy": 0.6, "temperature": 2.0}
        if linear:
            ours = linear_mixture_loss(
                student, teacher, MIXTURES["all"], targets=targets, row_weights=row_weights, chunk_size=3, **keywords
            )
        else:
            ours = mixture_loss(*full, MIXTURES["all"], targets=targets, row_weights=row_weights, **keywords)
        counting = None if row_weights is None else weights[rows]
        naive = naive_linear(*chosen, MIXTURES["all"], targets=rows, row_weights=counting, **keywords)
        present = rows if row_weights is None else rows[weights[rows] != 0]
        for label, value in ours.terms.items():
            expected = torch.zeros(9, dtype=torch.float64).scatter(0, rows, naive[1][label].detach())
            expected[[row for row in range(9) if row not in present]] = 0
            torch.testing.assert_close(value, expected)
        inputs = [student.hidden, student.weight]
        torch.testing.assert_close(ours.loss, naive[0])
        for got, wanted in zip(
            torch.autograd.grad(ours.loss, inputs, retain_graph=True),
            torch.autograd.grad(naive[0], inputs, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(got, wanted)
