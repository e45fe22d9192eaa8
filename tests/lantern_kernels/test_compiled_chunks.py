"""What Inductor makes of a chunk: the same results, compiled when it pays, and eager mode where it can't be."""

import warnings

import pytest
import torch
from lantern_kernels import TVD, Head, Term, chunk, linear_mixture_loss, mixture_loss
from naive import MIXTURES


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    """Every test starts as a process does, but for what was compiled already."""
    monkeypatch.setattr(chunk, "_seen", chunk.Counter())
    monkeypatch.setattr(chunk, "_not_compilable", set())


@pytest.fixture
def compilations(monkeypatch):
    """The recipes that were compiled for, in order."""
    seen, compile_ = [], chunk._compile
    monkeypatch.setattr(chunk, "_compile", lambda recipe, gradient: (seen.append(recipe), compile_(recipe, gradient))[1])
    return seen


def heads(rows, columns, teacher_columns, softcap=None):
    torch.manual_seed(0)
    student = Head(torch.randn(rows, 8, requires_grad=True), torch.randn(columns, 8, requires_grad=True), softcap=softcap)
    return student, Head(torch.randn(rows, 5), torch.randn(teacher_columns, 5))


def both(student, teacher, terms, **keywords):
    """Loss, terms and gradients, compiled and in eager mode."""
    results = []
    for backend in ("inductor", "torch"):
        output = linear_mixture_loss(student, teacher, terms, backend=backend, **keywords)
        results.append((output.loss, output.terms, torch.autograd.grad(output.loss, (student.hidden, student.weight))))
    return results


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_the_whole_mixture(rows):
    keywords = {"temperature": 2.0, "targets": torch.arange(rows), "cross_entropy": 0.5, "chunk_size": 4}
    compiled, eager = both(*heads(rows, 507, 520, softcap=5.0), MIXTURES["all"], **keywords)
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)


def test_at_temperature_one_with_excluded_tokens():
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 300), torch.randn(6, 300)
    student[:, 3] = teacher[:, 7:90] = -torch.inf
    outputs = []
    for backend in ("inductor", "torch"):
        logits = student.clone().requires_grad_()
        output = mixture_loss(logits, teacher, MIXTURES["all"], backend=backend)
        outputs.append((output.loss, output.terms, torch.autograd.grad(output.loss, logits)[0]))
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)
    assert (outputs[0][2][:, 3] == 0).all()


def test_a_schedule_and_terms_made_anew_share_one_compilation():
    student, teacher = heads(4, 50, 50)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    for step in range(1, 6):
        terms = [Term("js", weight=0.1 * step, beta=0.3), Term("kl", weight=1.0 / step)]
        compiled, eager = both(student, teacher, terms, temperature=1.0 + step)
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == 1


def test_state_in_slots_keeps_divergences_apart():
    class Scaled(TVD):
        __slots__ = ("factor",)

        def __init__(self, factor):
            self.factor = factor

    assert chunk._identity(TVD()) == chunk._identity(TVD())
    assert chunk._identity(Scaled(1.0)) != chunk._identity(Scaled(2.0))


def test_auto_compiles_once_that_pays(monkeypatch, compilations):
    monkeypatch.setattr(chunk, "_LOGITS_BEFORE_COMPILING", 3 * 4 * 50)
    student, teacher = heads(4, 50, 50)
    for expected in (0, 0, 0, 1, 2):
        linear_mixture_loss(student, teacher, [Term("js")])
        assert len(compilations) == expected
    linear_mixture_loss(student, teacher, [Term("js")], backend="torch")
    linear_mixture_loss(student, teacher, [Term("js", beta=0.1)])
    assert len(compilations) == 2, "another mixture counts by itself"


def test_a_caller_that_counts_for_itself_is_gone_by(monkeypatch, compilations):
    monkeypatch.setattr(chunk, "_LOGITS_BEFORE_COMPILING", 3 * 4 * 50)
    student, teacher = heads(4, 50, 50)
    for before, expected in ((0, 0), (2 * 4 * 50, 0), (3 * 4 * 50, 1), (0, 1)):
        linear_mixture_loss(student, teacher, [Term("js")], logits_before=before)
        assert len(compilations) == expected


class Untraceable:
    name = "untraceable"

    def value_and_slope(self, log_p, log_q, p, q):
        return (q - p) * (1.0 if log_p.sum().item() else 2.0), q - p


def test_what_cannot_be_compiled_runs_in_eager_mode_with_one_warning(monkeypatch):
    monkeypatch.setattr(chunk, "_LOGITS_BEFORE_COMPILING", 0)
    student, teacher = heads(4, 50, 50)
    terms = [Term(Untraceable())]
    with pytest.warns(UserWarning, match="eager mode is used, since the loss can't be compiled"):
        output = linear_mixture_loss(student, teacher, terms)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(linear_mixture_loss(student, teacher, terms), output)
    torch.testing.assert_close(linear_mixture_loss(student, teacher, terms, backend="torch"), output)


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(chunk, "_LOGITS_BEFORE_COMPILING", 0)
    student, teacher = heads(4, 51, 53)
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        with pytest.warns(UserWarning, match="eager mode is used"):
            linear_mixture_loss(student, teacher, [Term("tvd"), Term("kl")])
        with pytest.raises(RuntimeError, match="no-such-compiler"):
            linear_mixture_loss(student, teacher, [Term("tvd"), Term("reverse_kl")], backend="inductor")


def test_a_general_divergence_cannot_be_asked_for_compiled():
    class Square:
        name = "square"

        def __call__(self, student_logits, teacher_logits):
            return (student_logits - teacher_logits).square().sum(-1)

    with pytest.raises(ValueError, match="backend is 'inductor', but 'square' isn't pointwise"):
        mixture_loss(torch.randn(2, 3), torch.randn(2, 3), [Term(Square())], backend="inductor")
