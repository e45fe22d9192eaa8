"""What the public functions refuse before any work: messages name the argument, its value and what was expected."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import SupportsFloat

import torch
from torch import Tensor

from lantern_kernels.divergences import Pointwise, has_triton_entry
from lantern_kernels.heads import Head, Logits, vocabulary
from lantern_kernels.terms import Term, check_labels
from lantern_kernels.top_k import TopK

BACKENDS = ("auto", "torch", "inductor", "triton")


def backend(name: str, terms: Sequence[Term], like: Tensor) -> None:
    if name not in BACKENDS:
        raise ValueError(f"backend is {name!r}; expected one of {', '.join(map(repr, BACKENDS))}")
    if name == "inductor":
        _every_divergence(lambda d: isinstance(d, Pointwise), name, terms, "isn't pointwise and can't be compiled")
    if name == "triton":
        _every_divergence(has_triton_entry, name, terms, "has no `triton_entry`")
        if not find_spec("triton"):
            raise ValueError(f"backend is {name!r}, but Triton isn't installed; use 'auto'")
        if not like.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(f"backend is {name!r}, but the student is on {like.device}; move it to a GPU, or use 'auto'")
        if like.dtype == torch.float64:
            raise ValueError(f"backend is {name!r}, which computes in float32, and the student is float64; use 'auto'")


def _every_divergence(fits: Callable[[object], bool], backend: str, terms: Sequence[Term], lack: str) -> None:
    lacking = [term.label for term in terms if not fits(term.divergence)]
    if lacking:
        raise ValueError(f"backend is {backend!r}, but {lacking[0]!r} {lack}; use 'auto'")


def mixture(terms: Sequence[Term], temperature: float, cross_entropy: float, has_teacher: bool, has_targets: bool) -> None:
    if isinstance(terms, str) or not isinstance(terms, Sequence):
        raise ValueError(f"terms is {terms!r}; expected a sequence of Terms, such as [Term('kl')]")
    check_labels(terms)
    if not (_is_finite(temperature) and temperature > 0):
        raise ValueError(f"temperature is {temperature!r}; expected a finite number above 0")
    if not _is_finite(cross_entropy):
        raise ValueError(f"cross_entropy is {cross_entropy!r}; expected a finite weight")
    if terms and not has_teacher:
        raise ValueError(f"terms has {len(terms)} divergences but there is no teacher; give one, or no terms")
    if cross_entropy != 0 and not has_targets:
        raise ValueError(f"cross_entropy is {cross_entropy!r} but targets is None; give targets, or weight 0")
    if not terms and cross_entropy == 0:
        raise ValueError("terms is empty and cross_entropy is 0: there is nothing to compute; give one of them")


def logits(name: str, value: Logits, like: Tensor | None = None) -> None:
    """A matrix of logits, with as many rows as `like` and on its device."""
    tensor = value.values
    _floating_matrix(name, tensor, "[N, V]")
    if tensor.shape[1] == 0:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; expected at least one logit per row")
    _scale_and_softcap(name, value)
    if like is not None:
        _same_rows(name, tensor, like)


def top_k(name: str, value: TopK, terms: Sequence[Term], like: Tensor, classes: int) -> TopK:
    """Most probable tokens of as many rows as `like` has, within a vocabulary of `classes`."""
    ids, log_probs, tail = value.ids, value.log_probs, value.tail_log_mass
    for part, tensor in vars(value).items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name}.{part} is a {type(tensor).__name__}; expected a tensor")
    if ids.ndim != 2 or not _is_integer(ids) or not 0 < ids.shape[1] <= classes:
        raise ValueError(
            f"{name}.ids has shape {list(ids.shape)} and dtype {ids.dtype}; expected integers [N, k] with k from 1 to "
            f"{classes}, the student's vocabulary"
        )
    _floating_matrix(f"{name}.log_probs", log_probs, "[N, k]")
    if log_probs.shape != ids.shape:
        raise ValueError(f"{name}.log_probs has shape {list(log_probs.shape)}; expected {list(ids.shape)}, as {name}.ids")
    if tail.shape != ids.shape[:1] or not tail.is_floating_point():
        raise ValueError(
            f"{name}.tail_log_mass has shape {list(tail.shape)} and dtype {tail.dtype}; expected floats [{ids.shape[0]}], "
            "one per row"
        )
    for part, tensor in (("ids", ids), ("log_probs", log_probs), ("tail_log_mass", tail)):
        _same_rows(f"{name}.{part}", tensor, like)
    if general := [term.label for term in terms if not isinstance(term.divergence, Pointwise)]:
        raise ValueError(f"{name} is a TopK, but {general[0]!r} isn't pointwise; give it full logits")
    outside = (ids < 0) | (ids >= classes)
    within = f"expected 0 to {classes - 1}"
    _no_row(f"{name}.ids", within, outside.any(1), lambda row: f"{name}.ids[{row}] is {ids[row].tolist()}; {within}")
    ordered = ids.sort(-1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]).any(1)
    once = "expected every token once"
    _no_row(f"{name}.ids", once, twice, lambda row: f"{name}.ids[{row}] is {ids[row].tolist()}; {once}")
    mass = log_probs.double().exp().sum(-1) + tail.double().exp()
    # A server's log-probabilities are rounded; NaN fails too.
    _no_row(
        f"{name}.log_probs with tail_log_mass",
        "expected a mass of 1",
        ~((mass <= 1 + 1e-2) & (mass >= 1 - 1e-2)),
        lambda row: (
            f"{name}.log_probs[{row}] and tail_log_mass[{row}] add up to a mass of {float(mass[row]):.4g}; expected 1"
        ),
    )
    return TopK(ids.long(), log_probs, tail)


def _no_row(name: str, expected: str, wrong: Tensor, message: Callable[[int], str]) -> None:
    if wrong.is_cuda or wrong.is_meta:
        # To look at it here would mean to wait for the device at each step; so the device looks, and stops.
        torch._assert_async(~wrong.any(), f"{name} has a value out of range; {expected}. Run on a CPU to see which row")
    elif wrong.any():
        raise ValueError(message(int(wrong.nonzero()[0, 0])))


def head(name: str, value: Head, like: Tensor | None = None) -> None:
    """A consistent head, with as many rows as `like` and on its device."""
    if not isinstance(value, Head):
        raise ValueError(f"{name} is a {type(value).__name__}; expected a Head(hidden, weight)")
    _floating_matrix(f"{name}.hidden", value.hidden, "[N, d]")
    _floating_matrix(f"{name}.weight", value.weight, "[V, d]")
    V, d = value.weight.shape
    if V == 0:
        raise ValueError(f"{name}.weight has shape {[V, d]}; expected at least one row, one per vocabulary entry")
    if value.hidden.shape[1] != d:
        raise ValueError(
            f"{name}.weight has shape {[V, d]}; expected [V, {value.hidden.shape[1]}], as {name}.hidden has shape "
            f"{list(value.hidden.shape)}"
        )
    _same_device(f"{name}.weight", value.weight, value.hidden)
    if value.bias is not None:
        if value.bias.shape != (V,) or not value.bias.is_floating_point():
            raise ValueError(
                f"{name}.bias has shape {list(value.bias.shape)} and dtype {value.bias.dtype}; expected a "
                f"floating [{V}], one value per vocabulary entry"
            )
        _same_device(f"{name}.bias", value.bias, value.hidden)
    _scale_and_softcap(name, value)
    if like is not None:
        _same_rows(f"{name}.hidden", value.hidden, like)


def _scale_and_softcap(name: str, value: Head | Logits) -> None:
    if value.softcap is not None and not (_is_finite(value.softcap) and value.softcap > 0):
        raise ValueError(f"{name}.softcap is {value.softcap!r}; expected a finite number above 0, or None")
    if not _is_finite(value.scale):
        raise ValueError(f"{name}.scale is {value.scale!r}; expected a finite number")


def targets(value: Tensor, like: Tensor, classes: int, ignore_index: int) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"targets is a {type(value).__name__}; expected a tensor of integers [{like.shape[0]}]")
    if value.shape != like.shape[:1] or not _is_integer(value):
        raise ValueError(
            f"targets has shape {list(value.shape)} and dtype {value.dtype}; expected integers of shape [{like.shape[0]}]"
        )
    _same_device("targets", value, like)
    expected = f"expected 0 to {classes - 1}, the student's vocabulary, or ignore_index ({ignore_index})"
    wrong = ((value < 0) | (value >= classes)) & (value != ignore_index)
    _no_row("targets", expected, wrong, lambda row: f"targets[{row}] is {int(value[row])}; {expected}")


def row_weights(value: Tensor, like: Tensor) -> None:
    if not isinstance(value, Tensor) or value.is_complex():
        raise ValueError(f"row_weights is {value!r:.80}; expected a tensor of numbers [{like.shape[0]}]")
    if value.shape != like.shape[:1]:
        raise ValueError(f"row_weights has shape {list(value.shape)}; expected [{like.shape[0]}], one weight per row")
    _same_device("row_weights", value, like)
    expected = "expected finite weights, 0 to leave a row out"
    _no_row("row_weights", expected, ~value.isfinite(), lambda row: f"row_weights[{row}] is {float(value[row])}; {expected}")


def chunk_size(value: int | None) -> None:
    if value is not None and not (_is_count(value) and value >= 1):
        raise ValueError(f"chunk_size is {value!r}; expected a number of rows, at least 1, or None")


def logits_before(value: int | None) -> None:
    if value is not None and not (_is_count(value) and value >= 0):
        raise ValueError(f"logits_before is {value!r}; expected a number of logits, at least 0, or None")


def sharded(terms: Sequence[Term], student: Head | Logits, teacher: Head | Logits | TopK | None, backend: str) -> None:
    if general := [term.label for term in terms if not isinstance(term.divergence, Pointwise)]:
        raise ValueError(f"process_group is given, but {general[0]!r} isn't pointwise; a sharded vocabulary needs that")
    if backend not in ("auto", "torch"):
        raise ValueError(f"process_group is given, which backend {backend!r} doesn't take; use 'auto'")
    if isinstance(teacher, Head | Logits) and vocabulary(teacher) != vocabulary(student):
        raise ValueError(
            f"process_group is given, and this rank has {vocabulary(student)} columns of the student and "
            f"{vocabulary(teacher)} of the teacher; expected as many: pad the smaller vocabulary with -inf"
        )


def skip_below(value: float) -> None:
    if not (_is_finite(value) and value >= 0):
        raise ValueError(f"skip_below is {value!r}; expected a finite number, at least 0")


def _floating_matrix(name: str, tensor: Tensor, shape: str) -> None:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} is a {type(tensor).__name__}; expected a tensor {shape}")
    if tensor.ndim != 2:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; expected {shape}")
    if not tensor.is_floating_point():
        raise ValueError(f"{name} has dtype {tensor.dtype}; expected a floating dtype")


def _same_rows(name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.shape[0] != like.shape[0]:
        raise ValueError(f"{name} has {tensor.shape[0]} rows; expected {like.shape[0]}, as many as the student has")
    _same_device(name, tensor, like)


def _same_device(name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}; expected {like.device}, where the student is")


def _is_finite(value: object) -> bool:
    """Whether it's a number that can be worked with; a Boolean is a mistake."""
    return isinstance(value, SupportsFloat) and not isinstance(value, bool | str | Tensor) and math.isfinite(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
