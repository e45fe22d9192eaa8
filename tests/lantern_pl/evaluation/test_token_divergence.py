"""Divergences to the teacher and entropies: those of the naive formulas on whole logits."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lantern_pl.data.featurize import DecoderFeaturizer
from lantern_pl.data.records import read_pairs
from lantern_pl.evaluation.token_divergence import comparable, entropies, token_figures
from lantern_pl.signals import Hidden, Logits, OutputHead
from lantern_pl.tasks import Task
from lantern_pl.teachers.local_model import HFTeacher
from lantern_pl.teachers.rule_based import RubricTeacher

CPU = torch.device("cpu")


def test_they_are_those_of_their_definitions(small_lm: str, tiny_lm: Path, pairs_file: Path) -> None:
    pairs = read_pairs(pairs_file, Task())[:2]
    teacher, student = HFTeacher(small_lm).to(CPU), HFTeacher(str(tiny_lm)).to(CPU)
    assert comparable(teacher, student)
    found = token_figures(student, teacher, pairs, Task(), 320, CPU, lambda rows, what: rows)
    assert set(found) == {"tokens", "entropy", "kl", "js", "tvd"}
    features = DecoderFeaturizer(student.tokenizer, Task(), 320)
    for row, pair in enumerate(pairs):
        example = features.encode(pair)
        answer = slice(example.answer_start - 1, len(example.input_ids) - 1)
        with torch.no_grad():
            log_q, log_p = (
                model.lm(input_ids=torch.tensor([example.input_ids])).logits[0, answer].double().log_softmax(-1)
                for model in (student, teacher)
            )
        p, q = log_p.exp(), log_q.exp()
        log_m = ((p + q) / 2).log()
        naive = {
            "tokens": float(len(p)),
            "entropy": float(-(q * log_q).sum(-1).mean()),
            "kl": float((p * (log_p - log_q)).sum(-1).mean()),
            "js": float(((p * (log_p - log_m)).sum(-1) / 2 + (q * (log_q - log_m)).sum(-1) / 2).mean()),
            "tvd": float((p - q).abs().sum(-1).mean() / 2),
        }
        assert {name: values[row] for name, values in found.items()} == pytest.approx(naive, rel=1e-3)


def test_entropies_of_capped_scaled_and_excluded_logits() -> None:
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(600, 4), torch.randn(9, 4), torch.randn(9)
    logits = 3 * torch.tanh(0.5 * (hidden @ weight.T + bias) / 3)
    expected = torch.distributions.Categorical(logits=logits).entropy()
    of_hidden = entropies(Hidden(hidden, OutputHead(weight, bias, softcap=3.0, scale=0.5)))
    assert of_hidden.numpy() == pytest.approx(expected.numpy(), abs=1e-5)
    logits[:, 2] = -torch.inf
    expected = torch.distributions.Categorical(logits=logits[:, [0, 1, 3, 4, 5, 6, 7, 8]]).entropy()
    assert entropies(Logits(logits)).numpy() == pytest.approx(expected.numpy(), abs=1e-5)


def test_without_a_common_vocabulary_there_is_entropy_alone(small_lm: str, pairs_file: Path) -> None:
    pairs = read_pairs(pairs_file, Task())[:1]
    student = HFTeacher(small_lm).to(CPU)
    assert not comparable(RubricTeacher(), student)
    found = token_figures(student, RubricTeacher(), pairs, Task(), 320, CPU, lambda rows, what: rows)
    assert set(found) == {"tokens", "entropy"}
    assert np.isfinite(found["entropy"]).all()
    assert token_figures(RubricTeacher(), student, pairs, Task(), 320, CPU, lambda rows, what: rows) == {}
