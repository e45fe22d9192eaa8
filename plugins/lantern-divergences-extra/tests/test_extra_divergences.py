"""The five divergences: the contract, how they hang together, and numbers at the edges of float32."""

import math

import pytest
import torch
from lantern_divergences_extra.divergences import Alpha, Jeffreys, SkewKL, SkewReverseKL, SquaredHellinger
from lantern_kernels import Term, mixture_loss

import lantern_pl.divergences
from lantern_pl.testing import DivergenceContract

ALL = [
    SkewKL(),
    SkewKL(0.9),
    SkewReverseKL(),
    SkewReverseKL(0.9),
    Jeffreys(),
    Alpha(),
    Alpha(0.1),
    Alpha(0.9),
    SquaredHellinger(),
]
FOR_EACH = pytest.mark.parametrize("divergence", ALL, ids=lambda d: f"{d.name}-{getattr(d, 'alpha', '')}")
kl, reverse_kl = lantern_pl.divergences.kl(), lantern_pl.divergences.reverse_kl()


def reference(divergence, p, q):
    """The textbook's formulas, p the teacher's: [n]."""
    alpha = getattr(divergence, "alpha", None)
    match divergence.name:
        case "skew_kl":
            entries = p * (p / (alpha * p + (1 - alpha) * q)).log()
        case "skew_reverse_kl":
            entries = q * (q / (alpha * q + (1 - alpha) * p)).log()
        case "jeffreys":
            entries = p * (p / q).log() + q * (q / p).log()
        case "alpha":
            entries = (p**alpha * q ** (1 - alpha) - alpha * p + (alpha - 1) * q) / (alpha * (alpha - 1))
        case "squared_hellinger":
            entries = 0.5 * (p.sqrt() - q.sqrt()).square()
    return entries.sum(-1)


class Contract(DivergenceContract):
    def reference(self, p, q):
        return reference(self.make(), p, q)


class TestSkewKL(Contract):
    alpha = 0.1

    def make(self):
        return SkewKL(self.alpha)


class TestSkewKLThatIsNearlyKL(TestSkewKL):
    alpha = 1e-4


class TestSkewKLOfEqualParts(TestSkewKL):
    alpha = 0.5


class TestSkewReverseKL(Contract):
    alpha = 0.1

    def make(self):
        return SkewReverseKL(self.alpha)


class TestSkewReverseKLThatIsNearlyReverseKL(TestSkewReverseKL):
    alpha = 1e-4


class TestSkewReverseKLOfEqualParts(TestSkewReverseKL):
    alpha = 0.5


class TestJeffreys(Contract):
    def make(self):
        return Jeffreys()


class TestAlpha(Contract):
    alpha = 0.5

    def make(self):
        return Alpha(self.alpha)


class TestAlphaThatLooksAtTheStudent(TestAlpha):
    alpha = 0.1


class TestAlphaThatLooksAtTheTeacher(TestAlpha):
    alpha = 0.8


class TestSquaredHellinger(Contract):
    def make(self):
        return SquaredHellinger()


# How they hang together. Divergences are called with the student's logits first, and written with the teacher first.


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 40, generator=generator, dtype=torch.float64)
    return 2 * student, teacher


@pytest.mark.parametrize(
    ("divergence", "limit"),
    [(SkewKL(1e-4), kl), (SkewReverseKL(1e-4), reverse_kl), (Alpha(1 - 1e-4), kl), (Alpha(1e-4), reverse_kl)],
    ids=["skew_kl", "skew_reverse_kl", "alpha near 1", "alpha near 0"],
)
def test_limits(divergence, limit, logits):
    torch.testing.assert_close(divergence(*logits), limit(*logits), rtol=5e-3, atol=0)
    assert not torch.allclose(kl(*logits), reverse_kl(*logits), rtol=0.1)


@pytest.mark.parametrize("alpha", [1e-4, 0.1, 0.5, 0.9])
def test_skew_reverse_kl_is_skew_kl_of_swapped_distributions(alpha, logits):
    student, teacher = logits
    torch.testing.assert_close(SkewReverseKL(alpha)(student, teacher), SkewKL(alpha)(teacher, student))


def test_halves_of_both_skews_make_js(logits):
    both = 0.5 * SkewKL(0.5)(*logits) + 0.5 * SkewReverseKL(0.5)(*logits)
    torch.testing.assert_close(both, lantern_pl.divergences.js()(*logits))


def test_jeffreys_is_the_sum_of_both_kl(logits):
    torch.testing.assert_close(Jeffreys()(*logits), kl(*logits) + reverse_kl(*logits))


def test_alpha_of_a_half_is_four_times_squared_hellinger(logits):
    torch.testing.assert_close(Alpha(0.5)(*logits), 4 * SquaredHellinger()(*logits))


@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.5])
def test_alpha_and_its_complement_are_each_other_swapped(alpha, logits):
    student, teacher = logits
    torch.testing.assert_close(Alpha(alpha)(student, teacher), Alpha(1 - alpha)(teacher, student))


# At the edges


@FOR_EACH
def test_the_bound_is_reached_by_distributions_without_common_tokens(divergence):
    apart = torch.zeros(1, 6, dtype=torch.float64), torch.zeros(1, 6, dtype=torch.float64)
    apart[0][:, :3] = apart[1][:, 3:] = -torch.inf
    value = mixture_loss(*apart, [Term(divergence)]).loss.item()
    if divergence.upper_bound is None:
        assert value > 1e3
    else:
        assert value == pytest.approx(divergence.upper_bound, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@FOR_EACH
def test_no_entry_is_negative_or_not_a_number(divergence, dtype):
    """Also not its gradient by autograd, through the branches that weren't taken."""
    steps = torch.tensor(
        [-1e4, -300.0, -100.0, -90.0, -41.0, -39.0, -20.0, -2.0, -1.001, -1.0, -0.5, -1e-3, 0.0], dtype=dtype
    )
    log_p, log_q = (grid.clone() for grid in torch.meshgrid(steps, steps, indexing="ij"))
    log_q.requires_grad_()
    value, slope = divergence.value_and_slope(log_p, log_q, log_p.exp(), log_q.exp())
    (derivative,) = torch.autograd.grad(value.sum(), log_q)
    assert value.isfinite().all()
    assert slope.isfinite().all()
    # Up to the rounding of terms of the size of p and q.
    assert (value >= -2 * torch.finfo(dtype).eps * (log_p.exp() + log_q.exp())).all()
    assert (value[log_p == log_q] == 0).all()
    torch.testing.assert_close(derivative, slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("backend", "tolerance"), [("torch", 1e-3), ("triton", 1e-5)])
@FOR_EACH
def test_accurate_near_convergence(divergence, backend, tolerance):
    """In float32, at divergences of 5·10⁻⁹ to 10⁻⁶."""
    generator = torch.Generator().manual_seed(0)
    teacher = 3 * torch.randn(2, 5000, generator=generator)
    student = teacher + 1e-3 * torch.randn(2, 5000, generator=generator)
    p, q = teacher.double().softmax(-1), student.double().softmax(-1)
    exact = reference(divergence, p, q)
    assert (exact < 2e-6).all()
    found = mixture_loss(student, teacher, [Term(divergence, label="found")], backend=backend).terms["found"]
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=0)


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 1e-9, 1 - 1e-9, 1.0, 2.0, math.nan, math.inf])
@pytest.mark.parametrize(
    ("divergence", "instead"),
    [(SkewKL, "use kl"), (SkewReverseKL, "use reverse_kl"), (Alpha, "use reverse_kl, for more kl")],
)
def test_alpha_out_of_its_range_is_refused(divergence, alpha, instead):
    with pytest.raises(ValueError, match=rf"alpha is {alpha!r}; expected a number from 0.0001 to 0.9999, .*{instead}"):
        divergence(alpha)


# In company


@pytest.mark.parametrize("name", ["skew_kl", "skew_reverse_kl", "jeffreys", "alpha", "squared_hellinger"])
def test_configs_find_them_by_name(name):
    divergence = getattr(lantern_pl.divergences, name)()
    assert type(divergence).__module__ == "lantern_divergences_extra.divergences"
    assert divergence.name == name


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_all_of_them_are_fused_with_a_first_party_one(temperature):
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, 4, 507, generator=generator)
    teacher[0, 2] = student[1, 4] = -math.inf
    terms = [Term("js", 0.2), *[Term(d, 0.1 + 0.1 * i, label=f"{i}") for i, d in enumerate(ALL)]]
    outputs, gradients = [], []
    for backend in ("triton", "torch"):
        leaf = student.clone().requires_grad_()
        outputs.append(mixture_loss(leaf, teacher, terms, backend=backend, temperature=temperature))
        gradients.append(torch.autograd.grad(outputs[-1].loss, leaf)[0])
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss)
    torch.testing.assert_close(outputs[0].terms, outputs[1].terms, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)
