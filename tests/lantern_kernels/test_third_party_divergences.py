"""Divergences from elsewhere: the pointwise contract, the general one, and that they agree with the first-party."""

import pytest
import torch
from lantern_kernels import JS, KL, TVD, Head, ReverseKL, Term, linear_mixture_loss, mixture_loss

FIRST_PARTY = [KL(), ReverseKL(), JS(), JS(beta=0.1), JS(beta=0.9), TVD()]


class SquaredHellinger:
    """½ Σ (√p − √q)²: pointwise, of nobody's making here."""

    name = "hellinger"

    def value_and_slope(self, log_p, log_q, p, q):
        difference = (log_q / 2).exp() - (log_p / 2).exp()
        return 0.5 * difference.square(), 0.5 * (log_q / 2).exp() * difference


class SortedDistance:
    """Σ |p₍ᵢ₎ − q₍ᵢ₎| of the sorted probabilities: a divergence across tokenizers, and no sum over the vocabulary."""

    name = "sorted"

    def __call__(self, student_logits, teacher_logits):
        p, q = (logits.softmax(-1).sort(-1).values for logits in (teacher_logits, student_logits))
        return (p - q).abs().sum(-1)


def values(divergence, log_p, log_q):
    return divergence.value_and_slope(log_p, log_q, log_p.exp(), log_q.exp())[0]


class AsGeneral:
    """A pointwise divergence as a function of logits, for autograd."""

    def __init__(self, divergence):
        self.name, self._divergence = divergence.name, divergence

    def __call__(self, student_logits, teacher_logits):
        return values(self._divergence, teacher_logits.log_softmax(-1), student_logits.log_softmax(-1)).sum(-1)


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return (3 * torch.randn(7, 50, dtype=torch.float64)).requires_grad_(), 3 * torch.randn(7, 50, dtype=torch.float64)


@pytest.mark.parametrize("divergence", [*FIRST_PARTY, SquaredHellinger()], ids=lambda d: d.name)
def test_slope_is_the_derivative_of_value(divergence, pair):
    log_q = pair[0].detach().log_softmax(-1).requires_grad_()
    log_p = pair[1].log_softmax(-1)
    (slope,) = torch.autograd.grad(values(divergence, log_p, log_q).sum(), log_q)
    torch.testing.assert_close(divergence.value_and_slope(log_p, log_q, log_p.exp(), log_q.exp())[1], slope)


@pytest.mark.parametrize("divergence", FIRST_PARTY, ids=lambda d: d.name)
def test_the_two_ways_to_give_a_divergence_agree(divergence, pair):
    student, teacher = pair
    pointwise, general = (
        mixture_loss(student, teacher, [Term(d, weight=0.7)], temperature=2.0) for d in (divergence, AsGeneral(divergence))
    )
    torch.testing.assert_close(general.terms, pointwise.terms)
    (got,), (wanted,) = (torch.autograd.grad(output.loss, student) for output in (general, pointwise))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_they_mix_with_each_other_and_with_first_party_ones(chunk_size, pair):
    logits, teacher = pair
    weight = torch.randn(50, 50, dtype=torch.float64, requires_grad=True)
    terms = [Term(SortedDistance(), 0.2), Term("js", 0.5), Term(SquaredHellinger(), 0.3, label="h²")]
    keywords = {"temperature": 2.0, "targets": torch.arange(7), "cross_entropy": 0.4}
    ours = linear_mixture_loss(Head(logits, weight), teacher, terms, chunk_size=chunk_size, **keywords)
    assert list(ours.terms) == ["sorted", "js", "h²", "cross_entropy"]

    projected = logits @ weight.t()
    s, t = projected / 2, teacher / 2
    naive = 4 * (
        0.2 * SortedDistance()(s, t)
        + 0.5 * AsGeneral(JS())(s, t)
        + 0.3 * values(SquaredHellinger(), t.log_softmax(-1), s.log_softmax(-1)).sum(-1)
    ) + 0.4 * torch.nn.functional.cross_entropy(projected, torch.arange(7), reduction="none")
    torch.testing.assert_close(ours.loss, naive.mean())
    got, wanted = (torch.autograd.grad(loss, (logits, weight)) for loss in (ours.loss, naive.mean()))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("divergence", [SquaredHellinger(), SortedDistance()], ids=lambda d: d.name)
def test_they_see_finite_numbers_where_logits_are_not(divergence, pair):
    """A narrower student, a teacher with excluded tokens, and a token that the student excludes."""
    student, teacher = pair[0].detach()[:, :40].clone(), pair[1].clone()
    student[:, 5] = -torch.inf
    teacher[:, 20:30] = -torch.inf
    student.requires_grad_()
    output = mixture_loss(student, teacher, [Term(divergence)])
    (gradient,) = torch.autograd.grad(output.loss, student)
    assert output.loss.isfinite()
    assert gradient.isfinite().all()
    assert (gradient[:, 5] == 0).all()


def test_a_divergence_of_weight_zero_is_reported_and_has_no_gradient(pair):
    student, teacher = pair
    output = mixture_loss(student, teacher, [Term("kl", 0.0), Term(SortedDistance(), 0.0)])
    assert (output.terms["kl"] > 0).all()
    assert (output.terms["sorted"] > 0).all()
    assert output.loss == 0
    assert (torch.autograd.grad(output.loss, student)[0] == 0).all()


def test_a_general_divergence_must_return_one_value_per_row(pair):
    class Summed:
        name = "summed"

        def __call__(self, student_logits, teacher_logits):
            return (student_logits - teacher_logits).square().sum()

    with pytest.raises(ValueError, match=r"'summed' returned shape \[\] for 7 rows; expected \[7\]"):
        mixture_loss(*pair, [Term(Summed())])
