"""What must hold for any two distributions: bounds, symmetries, inequalities, and what the value mustn't depend on."""

import itertools
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from lantern_kernels import Head, Term, linear_mixture_loss, mixture_loss
from naive import MIXTURES

sixty_examples = settings(deadline=None, max_examples=60)


@st.composite
def logit_pairs(draw, rows=3):
    """Student and teacher logits ``[rows, V]``, from flat to one-hot."""
    shape = (2, rows, draw(st.integers(2, 9)))
    both = torch.from_numpy(draw(arrays("float64", shape, elements=st.floats(-60, 60, width=32))))
    return both[0].clone(), both[1].clone()


def value(student, teacher, name, **parameters):
    """One divergence per row; `teacher` and `student` are logits."""
    return mixture_loss(student, teacher, [Term(name, **parameters)]).terms[name]


@sixty_examples
@given(logit_pairs())
def test_bounds(pair):
    for name in ("kl", "reverse_kl", "js", "tvd"):
        assert (value(*pair, name) >= -1e-14).all()
    assert (value(*pair, "js") <= math.log(2) + 1e-12).all()
    assert (value(*pair, "tvd") <= 1 + 1e-12).all()


@sixty_examples
@given(logit_pairs(), st.floats(0.01, 0.99))
def test_js_is_bounded_by_the_entropy_of_its_weights(pair, beta):
    bound = -beta * math.log(beta) - (1 - beta) * math.log1p(-beta)
    assert (value(*pair, "js", beta=beta) <= bound + 1e-12).all()


@sixty_examples
@given(logit_pairs())
def test_zero_iff_equal(pair):
    student, teacher = pair
    differs = (student.softmax(-1) - teacher.softmax(-1)).abs().amax(-1) > 1e-4
    for name in ("kl", "reverse_kl", "js", "tvd"):
        assert (value(student, student + 3.0, name) <= 1e-12).all()
        assert (value(student, teacher, name)[differs] > 1e-10).all()


@sixty_examples
@given(logit_pairs())
def test_symmetries(pair):
    student, teacher = pair
    torch.testing.assert_close(value(student, teacher, "js"), value(teacher, student, "js"))
    torch.testing.assert_close(value(student, teacher, "tvd"), value(teacher, student, "tvd"))
    torch.testing.assert_close(value(student, teacher, "kl"), value(teacher, student, "reverse_kl"))
    torch.testing.assert_close(value(student, teacher, "js", beta=0.2), value(teacher, student, "js", beta=0.8))


@sixty_examples
@given(logit_pairs())
def test_pinsker(pair):
    """TVD² ≤ KL/2."""
    for direction in ("kl", "reverse_kl"):
        assert (value(*pair, "tvd").square() <= value(*pair, direction) / 2 + 1e-12).all()


@sixty_examples
@given(logit_pairs(), st.lists(st.floats(0, 3), min_size=4, max_size=4), st.sampled_from([0.5, 1.0, 3.0]))
def test_a_mixture_is_the_sum_of_its_terms(pair, weights, temperature):
    student, teacher = pair[0].requires_grad_(), pair[1]
    terms = [Term(name, weight) for name, weight in zip(("kl", "reverse_kl", "js", "tvd"), weights, strict=True)]
    together = mixture_loss(student, teacher, terms, temperature=temperature)
    alone = [mixture_loss(student, teacher, [term], temperature=temperature) for term in terms]
    torch.testing.assert_close(together.loss, sum(output.loss for output in alone))
    (gradient,) = torch.autograd.grad(together.loss, student)
    parts = [torch.autograd.grad(output.loss, student)[0] for output in alone]
    torch.testing.assert_close(gradient, torch.stack(parts).sum(0))
    for term, output in zip(terms, alone, strict=True):
        torch.testing.assert_close(together.terms[term.label], output.terms[term.label])


@sixty_examples
@given(logit_pairs(), st.integers(1, 5), st.booleans(), st.booleans())
def test_invariant_to_padding_of_the_vocabulary(pair, extra, pad_student, pad_teacher):
    """Columns of −inf on either side, or on both, change neither the values nor the gradient of the real columns."""
    student, teacher = pair[0].requires_grad_(), pair[1]
    padding = torch.full((3, extra), -torch.inf, dtype=torch.float64)
    keywords = {"temperature": 2.0, "targets": torch.tensor([0, 1, 0]), "cross_entropy": 0.3}
    plain = mixture_loss(student, teacher, MIXTURES["all"], **keywords)
    padded = mixture_loss(
        torch.cat([student, padding], -1) if pad_student else student,
        torch.cat([teacher, padding], -1) if pad_teacher else teacher,
        MIXTURES["all"],
        **keywords,
    )
    torch.testing.assert_close(padded.terms, plain.terms)
    got, wanted = (torch.autograd.grad(output.loss, student)[0] for output in (padded, plain))
    torch.testing.assert_close(got, wanted)


@sixty_examples
@given(logit_pairs(rows=7), st.integers(1, 9))
def test_invariant_to_chunking(pair, chunk_size):
    weight = torch.eye(pair[0].shape[1], dtype=torch.float64).requires_grad_()
    hidden, teacher = pair[0].requires_grad_(), pair[1]
    outputs = [
        linear_mixture_loss(Head(hidden, weight), teacher, MIXTURES["all"], chunk_size=size) for size in (7, chunk_size)
    ]
    torch.testing.assert_close(outputs[0].terms, outputs[1].terms)
    whole, chunked = (torch.autograd.grad(output.loss, (hidden, weight)) for output in outputs)
    torch.testing.assert_close(chunked, whole)


class Ranks:
    """Ranks of a process group that are threads of this process."""

    def __init__(self, count):
        self.barrier, self.given, self.here = threading.Barrier(count, timeout=60), [None] * count, threading.local()

    def exchange(self, tensor):
        self.given[self.here.rank] = tensor.clone()
        self.barrier.wait()
        everyone = list(self.given)
        self.barrier.wait()
        return everyone

    def all_gather(self, out, tensor, group):
        for mine, theirs in zip(out, self.exchange(tensor), strict=True):
            mine.copy_(theirs)

    def all_reduce(self, tensor, group):
        tensor.copy_(sum(self.exchange(tensor)))

    def run(self, function):
        def on(rank):
            self.here.rank = rank
            return function(rank)

        count = len(self.given)
        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(count) as pool:
            patch.setattr(dist, "get_rank", lambda group: self.here.rank)
            patch.setattr(dist, "get_world_size", lambda group: count)
            patch.setattr(dist, "all_gather", self.all_gather)
            patch.setattr(dist, "all_reduce", self.all_reduce)
            return list(pool.map(on, range(count)))


@settings(deadline=None, max_examples=25)
@given(logit_pairs(), st.data())
def test_invariant_to_sharding(pair, data):
    student, teacher = pair
    columns = student.shape[1]
    cuts = sorted(data.draw(st.sets(st.integers(1, columns - 1), max_size=3)))
    widths = [end - start for start, end in itertools.pairwise([0, *cuts, columns])]
    keywords = {"temperature": 2.0, "targets": torch.tensor([0, columns - 1, columns // 2]), "cross_entropy": 0.3}
    # TVD's slope jumps where two probabilities are equal, which rounding decides otherwise in each share.
    for terms in (MIXTURES["js_0.1"], MIXTURES["kl"]):
        whole = student.clone().requires_grad_()
        expected = mixture_loss(whole, teacher, terms, **keywords)
        parts = [part.clone().requires_grad_() for part in student.split(widths, 1)]

        def on(rank, terms=terms, parts=parts):
            t_part = teacher.split(widths, 1)[rank]
            return mixture_loss(parts[rank], t_part, terms, process_group=dist.GroupMember, **keywords)

        outputs = Ranks(len(widths)).run(on)
        gradients = [torch.autograd.grad(output.loss, part)[0] for output, part in zip(outputs, parts, strict=True)]
        for output in outputs:
            torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
        wanted = torch.autograd.grad(expected.loss, whole)[0]
        torch.testing.assert_close(torch.cat(gradients, 1), wanted, rtol=1e-8, atol=1e-9)


@sixty_examples
@given(logit_pairs())
def test_the_gradient_is_blind_to_a_shift_of_the_logits(pair):
    """Adding a constant to all logits changes nothing, so that the gradient sums to zero in every row."""
    student = pair[0].requires_grad_()
    for terms in MIXTURES.values():
        (gradient,) = torch.autograd.grad(mixture_loss(student, pair[1], terms).loss, student)
        assert (gradient.sum(-1).abs() <= 1e-12).all()


@sixty_examples
@given(logit_pairs())
def test_js_tends_to_the_two_directions_of_kl(pair):
    """JS_β / β → KL(p‖q) as β → 0, and JS_β / (1−β) → KL(q‖p) as β → 1: β is the teacher's weight."""
    student, teacher = pair[0] / 20, pair[1] / 20
    assume((student.softmax(-1) - teacher.softmax(-1)).abs().max() > 1e-2)
    torch.testing.assert_close(
        value(student, teacher, "js", beta=1e-6) / 1e-6, value(student, teacher, "kl"), rtol=1e-2, atol=1e-6
    )
    torch.testing.assert_close(
        value(student, teacher, "js", beta=1 - 1e-6) / 1e-6, value(student, teacher, "reverse_kl"), rtol=1e-2, atol=1e-6
    )


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "js", "tvd"])
def test_descent_on_the_student_reaches_the_teacher(name):
    teacher = torch.tensor([[2.0, 0.0, -1.0, 0.5]])
    student = torch.zeros(1, 4, requires_grad=True)
    optimizer = torch.optim.Adam([student], lr=0.05)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 300)
        optimizer.zero_grad()
        mixture_loss(student, teacher, [Term(name)]).loss.backward()
        optimizer.step()
    torch.testing.assert_close(student.softmax(-1), teacher.softmax(-1), atol=2e-3, rtol=0)
