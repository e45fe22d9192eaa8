"""What the losses refuse: each message names the argument, its value, what was expected, and comes before any work."""

import subprocess
import sys

import pytest
import torch
from lantern_kernels import Head, Term, TopK, checks, linear_mixture_loss, mixture_loss

LOGITS = torch.zeros(3, 5)
HIDDEN, WEIGHT = torch.zeros(3, 2), torch.zeros(5, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Term("kll"),
            r"divergence is 'kll'; did you mean kl.*; known names are|divergence is 'kll'; did you mean kl",
        ),
        (lambda: Term("wasserstein"), "divergence is 'wasserstein'; known names are kl, reverse_kl, js, tvd"),
        (lambda: Term("js", beta=1.0), "beta is 1.0; expected 0 < beta < 1"),
        (lambda: Term("js", beta=float("nan")), "beta is nan; expected 0 < beta < 1"),
        (lambda: Term("js", beta=1 - 1e-8), "beta is 0.99999999; expected 0 < beta < 1 by at least 1e-06"),
        (lambda: Term("js", beta="x"), "beta is 'x'; expected 0 < beta < 1"),
        (lambda: Term("js", alpha=0.5), "alpha=0.5 is no parameter of js, which takes beta"),
        (lambda: Term("kl", beta=0.5), "beta=0.5 is no parameter of kl, which takes no parameters"),
        (lambda: Term("kl", weight=float("inf")), "weight is inf; a term's weight must be a finite number"),
        (lambda: Term(object()), "divergence is <object object.*; expected a name"),
        (
            lambda: Term(Term("js").divergence, beta=0.2),
            "beta: parameters belong to a divergence given by name; JS is an",
        ),
    ],
)
def test_terms(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"student_logits": torch.zeros(5)}, r"student_logits has shape \[5\]; expected \[N, V\]"),
        ({"student_logits": torch.zeros(3, 0)}, r"student_logits has shape \[3, 0\]; expected at least one logit"),
        (
            {"student_logits": torch.zeros(3, 5, dtype=torch.long)},
            "student_logits has dtype torch.int64; expected a floating",
        ),
        ({"student_logits": [[0.0]]}, r"student_logits is a list; expected a tensor \[N, V\]"),
        ({"teacher_logits": torch.zeros(4, 5)}, "teacher_logits has 4 rows; expected 3"),
        ({"teacher_logits": torch.zeros(3, 5, device="meta")}, "teacher_logits is on meta; expected cpu"),
        ({"teacher_logits": None}, "terms has 1 divergences but there is no teacher"),
        ({"terms": []}, "terms is empty and cross_entropy is 0: there is nothing to compute"),
        ({"terms": "kl"}, "terms is 'kl'; expected a sequence of Terms"),
        ({"terms": ["kl"]}, r"terms\[0\] is 'kl'; expected a Term"),
        (
            {"terms": [Term("js"), Term("js", beta=0.1)]},
            r"terms\[1\] is labelled 'js', which is taken; give it a label",
        ),
        ({"terms": [Term("js", label="cross_entropy")]}, r"terms\[0\] is labelled 'cross_entropy', which is taken"),
        ({"temperature": 0.0}, "temperature is 0.0; expected a finite number above 0"),
        ({"temperature": None}, "temperature is None; expected a finite number above 0"),
        ({"terms": None}, "terms is None; expected a sequence of Terms"),
        ({"cross_entropy": "x"}, "cross_entropy is 'x'; expected a finite weight"),
        ({"targets": torch.zeros(3, dtype=torch.bool)}, r"targets has shape \[3\] and dtype torch.bool; expected integers"),
        (
            {"teacher_logits": TopK([[0]] * 3, torch.zeros(3, 1), torch.zeros(3))},
            "teacher_logits.ids is a list; expected a tensor",
        ),
        ({"temperature": float("inf")}, "temperature is inf; expected a finite number above 0"),
        ({"cross_entropy": 0.5}, "cross_entropy is 0.5 but targets is None; give targets"),
        ({"cross_entropy": float("nan")}, "cross_entropy is nan; expected a finite weight"),
        (
            {"targets": torch.tensor([0, 5, 1])},
            r"targets\[1\] is 5; expected 0 to 4, the student's vocabulary, or ignore_index",
        ),
        ({"targets": torch.tensor([0, 1, -1])}, r"targets\[2\] is -1; expected 0 to 4.* \(-100\)"),
        (
            {"targets": torch.zeros(3)},
            r"targets has shape \[3\] and dtype torch.float32; expected integers of shape \[3\]",
        ),
        ({"targets": torch.zeros(2, dtype=torch.long)}, r"targets has shape \[2\]"),
        ({"row_weights": torch.tensor([1.0, torch.nan, 0.0])}, r"row_weights\[1\] is nan; expected finite weights"),
        ({"row_weights": torch.ones(4)}, r"row_weights has shape \[4\]; expected \[3\], one weight per row"),
        ({"backend": "cuda"}, "backend is 'cuda'; expected one of 'auto', 'torch', 'inductor'"),
    ],
)
def test_arguments(keywords, message):
    arguments = {"student_logits": LOGITS, "teacher_logits": LOGITS, "terms": [Term("kl")], **keywords}
    with pytest.raises(ValueError, match=message):
        mixture_loss(**arguments)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"student": LOGITS}, r"student is a Tensor; expected a Head\(hidden, weight\)"),
        ({"student": Head(torch.zeros(3), WEIGHT)}, r"student.hidden has shape \[3\]; expected \[N, d\]"),
        ({"student": Head(HIDDEN, torch.zeros(5, 4))}, r"student.weight has shape \[5, 4\]; expected \[V, 2\]"),
        ({"student": Head(HIDDEN, torch.zeros(0, 2))}, r"student.weight has shape \[0, 2\]; expected at least one row"),
        (
            {"student": Head(HIDDEN, WEIGHT, torch.zeros(4))},
            r"student.bias has shape \[4\].* expected a floating \[5\]",
        ),
        (
            {"student": Head(HIDDEN, WEIGHT, softcap=0.0)},
            "student.softcap is 0.0; expected a finite number above 0, or None",
        ),
        ({"student": Head(HIDDEN, WEIGHT, scale=float("nan"))}, "student.scale is nan; expected a finite number"),
        ({"teacher": Head(torch.zeros(4, 2), WEIGHT)}, "teacher.hidden has 4 rows; expected 3"),
        ({"teacher": Head(HIDDEN, WEIGHT.to("meta"))}, "teacher.weight is on meta; expected cpu"),
        ({"teacher": torch.zeros(3)}, r"teacher has shape \[3\]; expected \[N, V\]"),
        ({"teacher": "logits"}, r"teacher is a str; expected a tensor \[N, V\]"),
        ({"chunk_size": 0}, "chunk_size is 0; expected a number of rows, at least 1, or None"),
        ({"chunk_size": 2.5}, "chunk_size is 2.5; expected a number of rows"),
        ({"chunk_size": True}, "chunk_size is True; expected a number of rows"),
        ({"skip_below": None}, "skip_below is None; expected a finite number"),
        ({"logits_before": -1}, "logits_before is -1; expected a number of logits, at least 0, or None"),
        ({"backend": "cuda"}, "backend is 'cuda'"),
    ],
)
def test_heads(keywords, message):
    arguments = {"student": Head(HIDDEN, WEIGHT), "teacher": LOGITS, "terms": [Term("kl")], **keywords}
    with pytest.raises(ValueError, match=message):
        linear_mixture_loss(**arguments)


def test_on_a_gpu_the_device_side_assertion_names_the_argument(monkeypatch):
    """Nothing waits for the device, which then has nothing but this message to say."""
    messages = []
    monkeypatch.setattr(torch, "_assert_async", lambda ok, message: messages.append(message))
    rows = torch.zeros(3, device="meta")
    checks.row_weights(rows, rows)
    checks.targets(rows.long(), rows, 5, -100)
    assert messages[0].startswith("row_weights has a value out of range; expected finite weights")
    assert messages[1].startswith("targets has a value out of range; expected 0 to 4")


def test_two_divergences_of_one_name_are_told_apart_by_their_labels():
    terms = [Term("js", label="js_low", beta=0.1), Term("js", beta=0.5)]
    assert list(mixture_loss(LOGITS, LOGITS, terms).terms) == ["js_low", "js"]


def test_the_package_needs_torch_alone():
    code = "import sys, lantern_kernels; print({'lightning', 'transformers', 'triton', 'lantern_pl'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
