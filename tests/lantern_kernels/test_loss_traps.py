"""One test for each bug that shipped in a distillation project and that a loss can have."""

import math

import pytest
import torch
from lantern_kernels import Head, Term, linear_mixture_loss, mixture_loss
from naive import MIXTURES, naive_head, naive_loss

EACH = ["kl", "reverse_kl", "js", "tvd"]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def random_head(rows, columns, width, dtype=torch.float64):
    return Head(
        torch.randn(rows, width, dtype=dtype, requires_grad=True),
        torch.randn(columns, width, dtype=dtype, requires_grad=True),
    )


def rows_of(head, start, stop):
    return Head(head.hidden[start:stop], head.weight)


def test_mean_of_means_under_accumulation():
    """Micro-batches with unequal numbers of supervised positions add up to the batch, given the batch's row weights."""
    student, teacher = random_head(12, 30, 5), random_head(12, 30, 5)
    targets = torch.arange(12)
    targets[1:6] = -100  # 1 supervised position in the first six, 6 in the others
    count = int((targets != -100).sum())
    inputs = (student.hidden, student.weight)
    whole = torch.autograd.grad(
        linear_mixture_loss(student, teacher, MIXTURES["all"], targets=targets, cross_entropy=0.5).loss, inputs
    )

    def accumulated(row_weights):
        parts = [
            linear_mixture_loss(
                rows_of(student, start, stop),
                rows_of(teacher, start, stop),
                MIXTURES["all"],
                targets=targets[start:stop],
                cross_entropy=0.5,
                row_weights=row_weights,
            ).loss
            for start, stop in ((0, 6), (6, 12))
        ]
        return torch.autograd.grad(sum(parts), inputs)

    torch.testing.assert_close(accumulated(torch.full((6,), 1 / count, dtype=torch.float64)), whole)
    assert not torch.allclose(accumulated(None)[1] / 2, whole[1], rtol=0.1)


@pytest.mark.parametrize("out", ["target", "weight"])
def test_prompt_or_padding_rows_in_the_loss(out):
    """Rows that don't count get exactly zero gradient, and even NaN in them reaches nothing."""
    student, teacher = random_head(6, 30, 5), random_head(6, 30, 5)
    with torch.no_grad():
        student.hidden[[0, 4]] = torch.nan
        teacher.hidden[[0, 4]] = torch.nan
    targets = torch.tensor([-100, 1, 2, 3, -100, 5])
    keywords = {"targets": targets} if out == "target" else {"row_weights": (targets != -100) / 4}
    output = linear_mixture_loss(student, teacher, MIXTURES["all"], **keywords)
    output.loss.backward()
    assert output.loss.isfinite()
    assert (student.hidden.grad[[0, 4]] == 0).all()
    assert (student.hidden.grad[[1, 2, 3, 5]] != 0).all()
    assert student.weight.grad.isfinite().all()
    assert all((values[[0, 4]] == 0).all() for values in output.terms.values())


@pytest.mark.parametrize("ignore_index", [-1, 3])
def test_another_ignore_index(ignore_index):
    """It may be a class id too, such as that of a padding token."""
    student, targets = torch.randn(6, 30).requires_grad_(), torch.tensor([0, ignore_index, 2, ignore_index, 4, 5])
    keywords = {"targets": targets, "cross_entropy": 1.0, "ignore_index": ignore_index}
    loss = mixture_loss(student, None, [], **keywords).loss
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(student, targets, ignore_index=ignore_index))


@pytest.mark.parametrize("out", ["target", "weight"])
def test_fully_masked_batch(out):
    """A loss of 0 that is part of the graph, with zeros for gradients: a rank without supervised positions needs it."""
    student, teacher = random_head(4, 30, 5), random_head(4, 30, 5)
    with torch.no_grad():
        student.hidden.fill_(torch.nan)
    keywords = {"targets": torch.full((4,), -100)} if out == "target" else {"row_weights": torch.zeros(4)}
    loss = linear_mixture_loss(student, teacher, MIXTURES["all"], **keywords).loss
    loss.backward()
    assert loss == 0
    assert (student.hidden.grad == 0).all()
    assert (student.weight.grad == 0).all()


def test_no_rows_at_all():
    student, teacher = random_head(0, 30, 5), random_head(0, 30, 5)
    output = linear_mixture_loss(student, teacher, [Term("kl")])
    output.loss.backward()
    assert output.loss == 0
    assert output.terms["kl"].shape == (0,)
    assert (student.weight.grad == 0).all()


def test_direction_reversed():
    """By hand: p = (0.7, 0.2, 0.1) is the teacher's, q = (0.1, 0.1, 0.8) the student's."""
    p, q = torch.tensor([[0.7, 0.2, 0.1]]).double(), torch.tensor([[0.1, 0.1, 0.8]]).double()
    terms = [Term("kl"), Term("reverse_kl"), Term("tvd")]
    values = mixture_loss(q.log(), p.log(), terms).terms
    forward = 0.7 * math.log(7) + 0.2 * math.log(2) + 0.1 * math.log(1 / 8)
    reverse = 0.1 * math.log(1 / 7) + 0.1 * math.log(1 / 2) + 0.8 * math.log(8)
    assert values["kl"].item() == pytest.approx(forward, rel=1e-6)
    assert values["reverse_kl"].item() == pytest.approx(reverse, rel=1e-6)
    assert values["tvd"].item() == pytest.approx(0.7, rel=1e-6)


def test_beta_reversed():
    """β is the teacher's weight: with β = 0.1, m = (0.16, 0.11, 0.73)."""
    p, q, m = ([0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.16, 0.11, 0.73])
    expected = sum(0.1 * a * math.log(a / c) + 0.9 * b * math.log(b / c) for a, b, c in zip(p, q, m, strict=True))
    teacher, student = (torch.tensor([x]).double().log() for x in (p, q))
    value = mixture_loss(student, teacher, [Term("js", beta=0.1)]).terms["js"].item()
    assert value == pytest.approx(expected, rel=1e-6)
    assert value != pytest.approx(mixture_loss(student, teacher, [Term("js", beta=0.9)]).terms["js"].item(), rel=0.01)


@pytest.mark.parametrize("name", EACH)
def test_temperature_squared_missing_in_the_gradient(name):
    """The gradient at T is T²/T = T times that of the tempered logits at 1, and keeps its size as T grows."""
    student, teacher = torch.randn(5, 30).double().requires_grad_(), torch.randn(5, 30).double()
    (gradient,) = torch.autograd.grad(mixture_loss(student, teacher, [Term(name)], temperature=8.0).loss, student)
    tempered = (student.detach() / 8).requires_grad_()
    (untempered,) = torch.autograd.grad(mixture_loss(tempered, teacher / 8, [Term(name)]).loss, tempered)
    torch.testing.assert_close(gradient, 8 * untempered)


def test_the_logged_terms_are_without_weight_and_temperature_squared():
    student, teacher = torch.randn(5, 30), torch.randn(5, 30)
    logged = mixture_loss(student, teacher, [Term("kl", weight=0.3)], temperature=2.0).terms["kl"]
    torch.testing.assert_close(logged, mixture_loss(student / 2, teacher / 2, [Term("kl")]).terms["kl"])


def test_temperature_on_the_cross_entropy():
    """Targets are no soft distribution: their cross entropy is that of the model as it will be sampled."""
    student, targets = torch.randn(5, 30), torch.arange(5)
    for temperature in (1.0, 4.0):
        loss = mixture_loss(student, None, [], temperature=temperature, targets=targets, cross_entropy=1.0).loss
        torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(student, targets))


@pytest.mark.parametrize("name", EACH)
def test_padded_vocabulary_filled_with_zeros(name):
    """Missing columns have no probability. As zeros (logits of 0) they'd take up most of it here."""
    student, teacher = torch.randn(5, 30).double() - 9, torch.randn(5, 60).double() - 9
    teacher[:, 30:] = -torch.inf
    value = mixture_loss(student, teacher, [Term(name)]).terms[name]
    torch.testing.assert_close(value, mixture_loss(student, teacher[:, :30], [Term(name)]).terms[name])


def test_teacher_mass_where_the_student_has_no_column():
    """KL is large and finite, and its gradient leads to the teacher's distribution over the columns that there are."""
    teacher = torch.tensor([[0.4, 0.2, 0.4]]).double().log()
    optimum = torch.tensor([[2 / 3, 1 / 3]]).double().log().requires_grad_()
    output = mixture_loss(optimum, teacher, [Term("kl")])
    assert output.loss.item() == pytest.approx(0.4 * 1e4, rel=1e-3)
    (gradient,) = torch.autograd.grad(output.loss, optimum)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("terms", MIXTURES.values(), ids=MIXTURES)
def test_minus_infinity_in_either_models_logits(terms, dtype):
    student, teacher = torch.randn(5, 30, dtype=dtype), torch.randn(5, 30, dtype=dtype)
    teacher[:, :9] = -torch.inf
    student[:, 5:12] = -torch.inf
    student.requires_grad_()
    keywords = {"targets": torch.full((5,), 20), "cross_entropy": 0.5}
    output = mixture_loss(student, teacher, terms, **keywords)
    (gradient,) = torch.autograd.grad(output.loss, student)
    assert all(values.isfinite().all() for values in output.terms.values())
    assert gradient.isfinite().all()
    assert (gradient[:, 5:12] == 0).all()
    loss, values = naive_loss(student, teacher, terms, **keywords)
    for label, value in values.items():
        torch.testing.assert_close(output.terms[label].double(), value.detach(), rtol=1e-5, atol=1e-5)
    expected = torch.autograd.grad(loss, student)[0].nan_to_num()  # autograd has 0·inf at the floor
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_underflow_of_log_m():
    """Entries that neither model gives e⁻¹⁰⁴, the smallest float32: their m is 0, and its logarithm isn't needed."""
    student = torch.tensor([[0.0, -110.0, -200.0, -5000.0, -90.0], [0.0, -300.0, -300.0, -300.0, -300.0]])
    teacher = torch.tensor([[-110.0, 0.0, -300.0, -4000.0, -95.0], [-300.0, 0.0, -300.0, -300.0, -300.0]])
    for beta in (1e-6, 0.1, 0.5, 0.9):
        logits = student.clone().requires_grad_()
        output = mixture_loss(logits, teacher, [Term("js", beta=beta)])
        _, values = naive_loss(student.double(), teacher.double(), [Term("js", beta=beta)])
        torch.testing.assert_close(output.terms["js"].double(), values["js"], rtol=1e-5, atol=0)
        (gradient,) = torch.autograd.grad(output.loss, logits)
        assert gradient.isfinite().all()
    # The nearest to 1 that is taken: 1 − β has few digits in float32, but it isn't 0.
    nearest = Term("js", beta=1 - 1e-6)
    output = mixture_loss(logits := student.clone().requires_grad_(), teacher, [nearest])
    _, values = naive_loss(student.double(), teacher.double(), [nearest])
    torch.testing.assert_close(output.terms["js"].double(), values["js"], rtol=0.1, atol=0)
    assert torch.autograd.grad(output.loss, logits)[0].isfinite().all()
    disjoint = mixture_loss(student, teacher, [Term("js")]).terms["js"]
    assert disjoint.tolist() == pytest.approx([math.log(2)] * 2, rel=1e-5)


@pytest.mark.parametrize("name", EACH)
def test_bf16_logits(name):
    """Hidden states in bf16 are projected to float32: the gradient is that of exact logits, not of rounded ones."""
    teacher = Head(torch.randn(8, 64).bfloat16(), torch.randn(500, 64).mul_(0.3).bfloat16())
    noise = 0.02 * torch.randn(8, 64)
    student = Head((teacher.hidden + noise).bfloat16().requires_grad_(), teacher.weight)
    exact = naive_head(student.hidden, student.weight).detach().requires_grad_()
    target = naive_head(teacher.hidden, teacher.weight)
    (expected,) = torch.autograd.grad(naive_loss(exact, target, [Term(name)])[0], exact)
    expected = expected @ teacher.weight.double()

    def error(gradient):
        return ((gradient.double() - expected).norm() / expected.norm()).item()

    (ours,) = torch.autograd.grad(linear_mixture_loss(student, teacher, [Term(name)]).loss, student.hidden)
    rounded = (student.hidden @ student.weight.t()).detach().requires_grad_()
    (theirs,) = torch.autograd.grad(mixture_loss(rounded, teacher.hidden @ teacher.weight.t(), [Term(name)]).loss, rounded)
    assert error(ours) < 3e-3
    assert error(theirs.float() @ teacher.weight.float()) > 2e-2


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "js"])
def test_noise_near_convergence(name):
    """At a divergence of 5e-7 over 151,936 entries the usual float32 forms are wrong by half and more."""
    teacher = 3 * torch.randn(2, 151_936)
    student = teacher + 1e-3 * torch.randn_like(teacher)
    exact = naive_loss(student, teacher, [Term(name)])[1][name]
    assert (exact < 1e-6).all()
    ours = mixture_loss(student, teacher, [Term(name)]).terms[name]
    torch.testing.assert_close(ours.double(), exact, rtol=2e-2, atol=0)


def test_row_values_with_wrong_gradients():
    """The values per row are for logging and have no gradient, rather than one that isn't theirs."""
    student = torch.randn(5, 30, requires_grad=True)
    output = mixture_loss(student, torch.randn(5, 30), MIXTURES["all"])
    assert output.loss.requires_grad
    assert not any(values.requires_grad for values in output.terms.values())


TINY = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("model_type", "settings", "head"),
    [
        ("gemma2", {"final_logit_softcapping": 3.0, "head_dim": 16, "num_key_value_heads": 2}, {"softcap": 3.0}),
        ("cohere", {"logit_scale": 0.0625}, {"scale": 0.0625}),
        ("granite", {"logits_scaling": 8.0}, {"scale": 1 / 8}),
        ("llama", {}, {}),
    ],
)
def test_softcap_and_logit_scale_ignored(model_type, settings, head):
    """A head with the constants of the model's config makes the model's own logits."""
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(model_type, **TINY, **settings, pad_token_id=0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    torch.nn.init.normal_(model.get_output_embeddings().weight)
    ids = torch.randint(1, 96, (1, 9))
    with torch.no_grad():
        logits = model(ids).logits[0]
        hidden = model.model(ids).last_hidden_state[0].requires_grad_()
    student = Head(hidden, model.get_output_embeddings().weight, **head)
    output = linear_mixture_loss(student, logits, MIXTURES["all"])
    torch.testing.assert_close(output.loss, torch.zeros(()), atol=1e-6, rtol=0)
    assert mixture_loss(hidden @ student.weight.t(), logits, [Term("kl")]).loss > 1e-2 or not head


@pytest.mark.parametrize("linear", [False, True])
def test_float16_gradients_are_scaled_before_they_are_rounded(linear):
    """As GradScaler scales a loss: rounded first, most of a mean over many rows is below float16's smallest number."""
    torch.manual_seed(0)
    rows, columns, scale = 64, 2000, 65536.0
    hidden, weight = torch.randn(rows, 8).half().requires_grad_(), torch.randn(columns, 8).half().requires_grad_()
    weights = torch.full((rows,), 1e-5)
    teacher = torch.randn(rows, columns)
    if linear:
        leaves = (hidden, weight)
        output = linear_mixture_loss(Head(hidden, weight), teacher, [Term("kl")], row_weights=weights)
    else:
        leaves = ((hidden.float() @ weight.float().t()).detach().half().requires_grad_(),)
        output = mixture_loss(*leaves, teacher, [Term("kl")], row_weights=weights)
    gradients = torch.autograd.grad(output.loss * scale, leaves)
    assert all(gradient.dtype == torch.float16 for gradient in gradients)
    assert all((gradient == 0).float().mean() < 0.1 for gradient in gradients)
