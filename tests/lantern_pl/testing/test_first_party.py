"""Our own plugins pass the contracts that we ask of others."""

import functools

from lantern_pl.data.pair import Pair
from lantern_pl.divergences.first_party import JS, KL, TVD, ReverseKL
from lantern_pl.teachers.local_model import HFTeacher
from lantern_pl.teachers.rule_based import RubricTeacher
from lantern_pl.testing import DivergenceContract, TeacherContract


class TestKL(DivergenceContract):
    def make(self):
        return KL()

    def reference(self, p, q):
        return (p * (p / q).log()).sum(-1)


class TestReverseKL(DivergenceContract):
    def make(self):
        return ReverseKL()

    def reference(self, p, q):
        return (q * (q / p).log()).sum(-1)


class TestJS(DivergenceContract):
    beta = 0.5

    def make(self):
        return JS(self.beta)

    def reference(self, p, q):
        m = self.beta * p + (1 - self.beta) * q
        return (self.beta * p * (p / m).log() + (1 - self.beta) * q * (q / m).log()).sum(-1)


class TestJSThatLooksAtTheTeacher(TestJS):
    beta = 0.9


class TestTVD(DivergenceContract):
    def make(self):
        return TVD()

    def reference(self, p, q):
        return 0.5 * (p - q).abs().sum(-1)


class TestRubric(TeacherContract):
    def make(self):
        return RubricTeacher()


@functools.cache
def embedded_teacher():
    return HFTeacher("embedded:smollm2-135m", max_new_tokens=4)


class TestHF(TeacherContract):
    def make(self):
        return embedded_teacher()

    def pairs(self):
        texts = [
            ("We need Python.", "I know Python."),
            ("A nurse for the night shift.", "Ten years as a nurse, mostly at night."),
        ]
        return [Pair(str(i), str(i), str(i), *both) for i, both in enumerate(texts)]
