"""DivergenceContract: what the framework relies on in a divergence, as checks that its author runs."""

import math
import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from lantern_kernels import Head, MixtureOutput, Term, linear_mixture_loss, mixture_loss
from lantern_kernels.divergences import has_triton_entry
from lantern_kernels.top_k import TopK
from torch import Tensor

from lantern_pl.divergences.contract import Divergence, PointwiseDivergence
from lantern_pl.plugins import API_VERSION
from lantern_pl.testing.checking import same

ROWS, VOCABULARY = 5, 11


class DivergenceContract:
    """Derive from it in a test module, implement `make` and `reference`, and pytest runs the checks.

    Everything is computed in float64 through `lantern_kernels.mixture_loss`, as students do it, unless a check says
    otherwise.
    """

    top_k_is_a_lower_bound = True
    """Merging events can't raise an f-divergence. Set it to False for a divergence that is none."""

    def make(self) -> Divergence:
        """The divergence, made anew at each call with the same arguments."""
        raise NotImplementedError("implement make(self): return your divergence")

    def reference(self, p: Tensor, q: Tensor) -> Tensor:
        """The divergence [n] by its textbook formula, of teacher's p and student's q: float64 [n, V], all above 0."""
        raise NotImplementedError("implement reference(self, p, q): the textbook formula, p the teacher's")

    # What it is

    def test_is_a_divergence_of_this_api(self) -> None:
        divergence = self.make()
        assert isinstance(divergence, Divergence), (
            f"{type(divergence).__name__} isn't a lantern_pl.divergences.Divergence: derive from it, or from "
            "PointwiseDivergence"
        )
        version = getattr(divergence, "lantern_api", None)
        assert version == API_VERSION, (
            f"lantern_api is {version!r}, expected {API_VERSION}: the version that you wrote it for"
        )
        assert isinstance(getattr(divergence, "name", None), str), "name is missing: the divergence is logged under it"
        assert divergence.name, "name is empty: the divergence is logged under it"
        bound = divergence.upper_bound
        assert bound is None or bound > 0, f"upper_bound is {bound!r}: expected a number above 0, or None for no bound"

    def test_gives_one_value_per_row(self) -> None:
        student, teacher = _logits()
        values = self.make()(student, teacher)
        assert values.shape == (ROWS,), (
            f"calling it on logits [{ROWS}, {VOCABULARY}] gives shape {list(values.shape)}, expected [{ROWS}]: sum over "
            "the vocabulary, the last dimension, and over nothing else"
        )

    # Its value

    def test_is_zero_for_equal_distributions(self) -> None:
        student, _ = _logits()
        values = self._values(student, student + torch.arange(ROWS)[:, None])
        zero = torch.zeros_like(values)
        same(values, zero, "the divergence of a distribution from itself isn't 0: look at the value's formula", atol=1e-9)

    def test_is_positive_for_different_distributions(self) -> None:
        values = self._values(*_logits())
        assert (values > 0).all(), f"the divergence of different distributions is {values.min().item():.3g}, expected > 0"

    def test_keeps_its_upper_bound(self) -> None:
        bound = self.make().upper_bound
        if bound is None:
            pytest.skip("it has no upper bound")
        for spread in (0.1, 3.0, 300.0):
            largest = self._values(*_logits(spread=spread)).max().item()
            assert largest <= bound * (1 + 1e-9), (
                f"its value reaches {largest:.6g}, above the declared upper_bound of {bound:.6g}: raise the bound, or look "
                "for a factor in the value"
            )

    def test_agrees_with_the_reference(self) -> None:
        student, teacher = _logits()
        p, q = teacher.softmax(-1), student.softmax(-1)
        found, expected, swapped = self._values(student, teacher), self.reference(p, q), self.reference(q, p)
        if torch.allclose(found, swapped) and not torch.allclose(expected, swapped):
            raise AssertionError("teacher and student are swapped: p (log_p) is the teacher's, q (log_q) the student's")
        same(found, expected, f"its value isn't that of the reference{_ratio(found, expected)}")

    def test_float32_agrees_with_float64(self) -> None:
        student, teacher = _logits()
        exact = self._values(student, teacher)
        rounded = self._values(student.float(), teacher.float()).double()
        same(
            rounded, exact, "in float32 its value is another: look for cancellation, overflow, or a fixed dtype", 1e-4, 1e-6
        )

    def test_every_call_gives_the_same(self) -> None:
        student, teacher = _logits()
        first = self._values(student, teacher)
        same(self._values(student, teacher), first, "two calls give different values: it must hold no state and no chance")

    def test_writes_to_none_of_its_arguments(self) -> None:
        student, teacher = _logits()
        before = student.clone(), teacher.clone()
        self.make()(student, teacher)
        same(student, before[0], "it writes to the student's logits: copy before operations in place")
        same(teacher, before[1], "it writes to the teacher's logits: copy before operations in place")
        divergence = self.make()
        if isinstance(divergence, PointwiseDivergence):
            arguments = _entries(student, teacher)
            copies = [argument.clone() for argument in arguments]
            divergence.value_and_slope(*arguments)
            for name, argument, copy in zip(("log_p", "log_q", "p", "q"), arguments, copies, strict=True):
                same(argument, copy, f"value_and_slope writes to {name}: copy before operations in place")

    # Its gradient

    def test_the_slope_is_the_derivative_of_the_value(self) -> None:
        divergence = self.make()
        if not isinstance(divergence, PointwiseDivergence):
            pytest.skip("it isn't pointwise: autograd differentiates it")
        log_p, log_q, p, q = _entries(*_logits())
        value, slope = divergence.value_and_slope(log_p, log_q, p, q)
        same(divergence.value(log_p, log_q), value, "`value` isn't the value of value_and_slope")
        same(divergence.slope(log_p, log_q), slope, "`slope` isn't the slope of value_and_slope")
        step = 1e-6
        above, below = (divergence.value(log_p, log_q + change) for change in (step, -step))
        numeric = (above - below) / (2 * step)
        same(
            slope,
            numeric,
            f"the slope isn't ∂v/∂log q of its value, q included{_ratio(slope, numeric)}",
            rtol=1e-5,
            atol=1e-7,
        )

    def test_autograd_agrees_with_the_slope(self) -> None:
        divergence = self.make()
        if not isinstance(divergence, PointwiseDivergence):
            pytest.skip("it isn't pointwise: autograd differentiates it")
        log_p, log_q, _, _ = _entries(*_logits())
        total = divergence.value(log_p, log_q.requires_grad_()).sum()
        assert total.requires_grad, "autograd finds no way from `value` back to log_q: look for a detach"
        (found,) = torch.autograd.grad(total, log_q)
        message = "autograd returns another derivative of `value` than the slope: look for a detach, or NaN behind a `where`"
        same(found, divergence.slope(log_p, log_q.detach()), message, rtol=1e-6, atol=1e-9)

    def test_the_gradient_is_that_of_the_value(self) -> None:
        student, teacher = _logits()
        found, numeric = self._gradient(student, teacher), self._numeric_gradient(student, teacher)
        same(
            found,
            numeric,
            f"its gradient isn't that of its value{_ratio(found, numeric)}: look at the slope, or for a detach",
            rtol=1e-5,
            atol=1e-7,
        )

    def test_temperature_is_left_to_the_framework(self) -> None:
        student, teacher = _logits()
        T = 2.5
        found, expected = (
            self._values(student, teacher, temperature=T),
            self.reference((teacher / T).softmax(-1), (student / T).softmax(-1)),
        )
        same(
            found,
            expected,
            f"at temperature {T} its value isn't the reference's{_ratio(found, expected)}: logits arrive divided by the "
            "temperature, and T² is the framework's",
        )
        gradient = self._gradient(student, teacher, temperature=T)
        numeric = T**2 * self._numeric_gradient(student, teacher, temperature=T)
        same(
            gradient,
            numeric,
            f"at temperature {T} the loss's gradient isn't T² times that of the value{_ratio(gradient, numeric)}: T² and "
            "1/T are the framework's",
            rtol=1e-5,
            atol=1e-7,
        )

    def test_a_masked_row_gets_no_gradient(self) -> None:
        student, teacher = _logits()
        weights = torch.full((ROWS,), 0.5, dtype=torch.float64)
        expected = self._gradient(student, teacher, row_weights=weights)
        weights[2], expected[2] = 0.0, 0.0
        student[2], teacher[2, 3] = math.nan, math.inf
        found = self._gradient(student, teacher, row_weights=weights)
        assert (found[2] == 0).all(), "a row of weight 0 gets a gradient: rows must not depend on each other"
        same(found, expected, "what stands in a row of weight 0 changes the other rows: rows must not depend on each other")

    # Rows

    def test_rows_are_independent(self) -> None:
        student, teacher = _logits()
        together = self._values(student, teacher)
        alone = torch.cat([self._values(student[i : i + 1], teacher[i : i + 1]) for i in range(ROWS)])
        same(alone, together, "a row alone has another value than in its batch: normalise over the vocabulary alone")

    def test_chunks_and_accumulation_change_nothing(self) -> None:
        student, teacher = _logits()
        weights = torch.linspace(0.1, 1, ROWS, dtype=torch.float64)
        whole = self._gradient(student, teacher, row_weights=weights)
        chunks = self._gradient(student, teacher, row_weights=weights, chunk_size=2)
        same(chunks, whole, "in chunks of two rows its gradient is another: rows must not depend on each other")
        halves = [self._gradient(student[i], teacher[i], row_weights=weights[i]) for i in (slice(0, 2), slice(2, ROWS))]
        same(torch.cat(halves), whole, "accumulated over two batches its gradient is another: it must not average over rows")

    # The vocabulary

    def test_absent_tokens_change_nothing(self) -> None:
        student, teacher = _logits()
        absent = torch.full((ROWS, 3), -math.inf, dtype=torch.float64)
        wide = [torch.cat([logits, absent], -1) for logits in (student, teacher)]
        value, gradient = self._values(student, teacher), self._gradient(student, teacher)
        message = (
            "columns that no model has (−inf, as where a vocabulary is padded) change its {}: their probability "
            "is 0, so their share must be 0"
        )
        for both in (wide, (wide[0], teacher), (student, wide[1])):
            same(self._values(*both), value, message.format("value"))
            found = self._gradient(*both)
            same(found[:, :VOCABULARY], gradient, message.format("gradient"))
            assert (found[:, VOCABULARY:] == 0).all(), "columns that no model has get a gradient"

    def test_impossible_tokens_leave_no_nan(self) -> None:
        student, teacher = _logits()
        teacher[:, :2] = student[:, 3:5] = -math.inf
        student[1], teacher[2] = 1e4 * student[1], 1e4 * teacher[2]
        for what, found in (("value", self._values(student, teacher)), ("gradient", self._gradient(student, teacher))):
            assert torch.isfinite(found).all(), (
                f"its {what} is NaN or infinite where one model holds a token for impossible: log-probabilities come as "
                "−1e4 then, so look for a division by q, an overflowing exponential, or 0·∞"
            )

    def test_the_order_of_the_vocabulary_does_not_matter(self) -> None:
        student, teacher = _logits()
        order = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(1))
        value, gradient = self._values(student, teacher), self._gradient(student, teacher)
        message = "renumbering the vocabulary changes its {}: it must treat all tokens alike"
        same(self._values(student[:, order], teacher[:, order]), value, message.format("value"))
        same(self._gradient(student[:, order], teacher[:, order]), gradient[:, order], message.format("gradient"))

    def test_the_most_probable_tokens_of_a_teacher(self) -> None:
        if not isinstance(self.make(), PointwiseDivergence):
            pytest.skip("it isn't pointwise: a top-k teacher is refused")
        student, teacher = _logits()
        full = self._values(student, teacher)
        everything = self._values(student, _top_k(teacher, VOCABULARY))
        same(
            everything,
            full,
            "with all tokens of a top-k teacher given, its value isn't the full one: look at entries of −1e4",
        )
        some = self._values(student, _top_k(teacher, 4))
        if self.top_k_is_a_lower_bound:
            assert (some <= full + 1e-12).all(), (
                "on a teacher's 4 most probable tokens and the rest as one event, its value exceeds the full one: no "
                "f-divergence does that; set top_k_is_a_lower_bound = False if yours is none"
            )

    # In company

    def test_a_mixture_is_the_sum_of_its_terms(self) -> None:
        student, teacher = _logits()
        mine, js = self.make().term(0.3, label="mine"), Term("js", 0.7)
        mixed = self._gradient(student, teacher, terms=[mine, js])
        alone = self._gradient(student, teacher, terms=[mine]) + self._gradient(student, teacher, terms=[js])
        same(mixed, alone, "mixed with js its gradient isn't the sum of the two: it must not depend on other terms")

    def test_the_compiler_can_trace_it(self) -> None:
        divergence = self.make()
        if not isinstance(divergence, PointwiseDivergence):
            pytest.skip("it isn't pointwise: it's never compiled")
        entries = _entries(*_logits())
        traced = torch.compile(divergence.value_and_slope, fullgraph=True, backend="aot_eager")
        for what, found, expected in zip(
            ("value", "slope"), traced(*entries), divergence.value_and_slope(*entries), strict=True
        ):
            same(found, expected, f"compiled, its {what} is another: look for Python branches on tensors")

    def test_triton_says_the_same(self) -> None:
        divergence = self.make()
        if not has_triton_entry(divergence):
            pytest.skip("it has no triton_entry: a GPU computes it in chunks with torch")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            pytest.skip("no GPU is at hand, and TRITON_INTERPRET=1 isn't set ahead of importing triton")
        student, teacher = (3 * logits.float().to(device) for logits in _logits())
        teacher[0, 2] = student[1, 4] = -math.inf
        teacher[2:4] = student[2:4] + 1e-3 * teacher[2:4]  # where a careless formula cancels
        results = []
        for backend in ("triton", "torch"):
            terms = [self.make().term(1.0, label="mine"), Term("js", 0.5)]
            results.append((self._values(student, teacher, backend), self._gradient(student, teacher, terms, backend)))
        for what, found, expected in zip(("value", "gradient"), *results, strict=True):
            same(found, expected, f"the Triton function gives another {what} than value_and_slope", rtol=1e-4, atol=1e-5)

    # How the checks compute

    def _loss(
        self,
        student: Tensor,
        teacher: Tensor | TopK,
        terms: Sequence[Term] | None = None,
        backend: str = "torch",
        **keywords: Any,
    ) -> MixtureOutput:
        terms = [self.make().term(1.0, label="mine")] if terms is None else terms
        if "chunk_size" in keywords:
            # The linear form has it; with the logits as hidden states it's the same loss.
            head = Head(student, torch.eye(student.shape[1], dtype=student.dtype))
            return linear_mixture_loss(head, teacher, terms, backend=backend, **keywords)
        return mixture_loss(student, teacher, terms, backend=backend, **keywords)

    def _values(self, student: Tensor, teacher: Tensor | TopK, backend: str = "torch", temperature: float = 1.0) -> Tensor:
        return self._loss(student, teacher, backend=backend, temperature=temperature).terms["mine"]

    def _gradient(
        self,
        student: Tensor,
        teacher: Tensor,
        terms: Sequence[Term] | None = None,
        backend: str = "torch",
        **keywords: Any,
    ) -> Tensor:
        """Of the rows' sum, unless row weights are given."""
        student = student.detach().clone().requires_grad_()
        keywords.setdefault("row_weights", torch.ones(len(student), dtype=student.dtype, device=student.device))
        self._loss(student, teacher, terms, backend, **keywords).loss.backward()
        assert student.grad is not None
        return student.grad

    def _numeric_gradient(self, student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """By central differences; column i of all rows at once, since rows are independent."""
        step, columns = 1e-5, []
        for change in step * torch.eye(student.shape[1], dtype=student.dtype):
            above, below = (self._values(student + s * change, teacher, temperature=temperature) for s in (1, -1))
            columns.append((above - below) / (2 * step))
        return torch.stack(columns, -1)


def _logits(spread: float = 1.5) -> tuple[Tensor, Tensor]:
    """Student's and teacher's, asymmetric: the student is much surer than the teacher."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, ROWS, VOCABULARY, generator=generator, dtype=torch.float64)
    return 1.7 * spread * student, spread * teacher


def _entries(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    return log_p, log_q, log_p.exp(), log_q.exp()


def _top_k(teacher: Tensor, k: int) -> TopK:
    log_probs, ids = teacher.log_softmax(-1).sort(-1, descending=True)
    return TopK(ids[:, :k], log_probs[:, :k], log_probs[:, k:].logsumexp(-1))


def _ratio(found: Tensor, expected: Tensor) -> str:
    """Words for a constant factor between the two, which tells most about what is wrong."""
    if found.shape != expected.shape:
        return ""
    ratios = (found / expected)[expected.abs() > 1e-6]
    constant = len(ratios) > 1 and (ratios - ratios.mean()).abs().max() < 1e-3 * ratios.mean().abs()
    factor = ratios.mean().item() if constant else 1.0
    return f" but {factor:.4g} times it" if abs(factor - 1) > 1e-3 else ""
