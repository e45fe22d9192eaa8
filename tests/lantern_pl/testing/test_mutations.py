"""Wrong plugins, each caught by the check that is for it; and right ones, which pass them all."""

import itertools

import lantern_kernels.divergences as kernels
import pytest
import torch
from lantern_kernels.mixture import Mixture

from lantern_pl.divergences import Divergence, PointwiseDivergence
from lantern_pl.signals import LevelProbs, Logits, TopK
from lantern_pl.teachers import Teacher
from lantern_pl.testing import DivergenceContract, TeacherContract, failures

# Divergences


class RightKL(PointwiseDivergence):
    lantern_api = 1
    name = "right"

    def value(self, log_p, log_q):
        return log_p.exp() * (log_p - log_q) + log_q.exp() - log_p.exp()

    def slope(self, log_p, log_q):
        return log_q.exp() - log_p.exp()


class RightGeneral(Divergence):
    """Squared distance of the probabilities."""

    lantern_api = 1
    name = "right"

    def __call__(self, student_logits, teacher_logits):
        return (teacher_logits.softmax(-1) - student_logits.softmax(-1)).square().sum(-1)


def kl(p, q):
    return (p * (p / q).log()).sum(-1)


def squared(p, q):
    return (p - q).square().sum(-1)


def bounded(p, q):
    return (p - q).abs().sum(-1)


class Swapped(RightKL):
    def value(self, log_p, log_q):
        return super().value(log_q, log_p)


class SlopeWithAFactor(RightKL):
    def slope(self, log_p, log_q):
        return 2 * super().slope(log_p, log_q)


class SlopeTowardsQ(RightKL):
    """∂v/∂q, not ∂v/∂log q."""

    def slope(self, log_p, log_q):
        return 1 - (log_p - log_q).exp()


class SlopeForgetsThatQDependsOnLogQ(PointwiseDivergence):
    name = "total variation"

    def value_and_slope(self, log_p, log_q, p, q):
        return (q - p).abs(), (q - p).sign()


class ZeroPadded(RightGeneral):
    def __call__(self, student_logits, teacher_logits):
        padded = [logits.masked_fill(logits < -100, 0.0) for logits in (student_logits, teacher_logits)]
        return super().__call__(*padded)


class NormalisedOverTheBatch(RightGeneral):
    def __call__(self, student_logits, teacher_logits):
        return super().__call__(student_logits - student_logits.mean(0), teacher_logits)


class MeanOverRows(RightGeneral):
    def __call__(self, student_logits, teacher_logits):
        return super().__call__(student_logits, teacher_logits).mean()


class MeanOverTheVocabulary(RightGeneral):
    def __call__(self, student_logits, teacher_logits):
        return super().__call__(student_logits, teacher_logits) / student_logits.shape[-1]


class Unnormalised(RightGeneral):
    def __call__(self, student_logits, teacher_logits):
        return (teacher_logits - student_logits).square().sum(-1)


class SoftensByItself(RightGeneral):
    def __call__(self, student_logits, teacher_logits):
        return super().__call__(student_logits / 2, teacher_logits / 2)


class BoundTooLow(SlopeForgetsThatQDependsOnLogQ):
    upper_bound = 1.5


class DividesByQ(PointwiseDivergence):
    name = "chi squared"

    def value_and_slope(self, log_p, log_q, p, q):
        return (p - q).square() / q, q - p.square() / q


class WritesToItsArguments(RightKL):
    def value_and_slope(self, log_p, log_q, p, q):
        value, slope = super().value_and_slope(log_p, log_q, p, q)
        log_p.sub_(log_q)
        return value, slope


class Random(RightGeneral):
    def __call__(self, student_logits, teacher_logits):
        return super().__call__(student_logits + 0.01 * torch.randn_like(student_logits), teacher_logits)


class Detached(RightGeneral):
    def __call__(self, student_logits, teacher_logits):
        p, q = teacher_logits.softmax(-1), student_logits.softmax(-1)
        return ((p - q) * (p - q.detach())).sum(-1)


class CountsColumns(RightGeneral):
    def __call__(self, student_logits, teacher_logits):
        differences = teacher_logits.softmax(-1) - student_logits.softmax(-1)
        return (differences.square() * torch.arange(1, 1 + differences.shape[-1])).sum(-1)


class OfAnotherVersion(RightKL):
    lantern_api = 2


class Nameless(PointwiseDivergence):
    lantern_api = 1

    def value_and_slope(self, log_p, log_q, p, q):
        return (p - q).square(), 2 * q * (q - p)


class OfNoVersion(Divergence):
    """A plugin says itself what it was written for: the base class has no version to inherit."""

    name = "no version"


class DetachedValue(RightKL):
    def value(self, log_p, log_q):
        return super().value(log_p, log_q.detach())


class InHalfPrecision(RightGeneral):
    def __call__(self, student_logits, teacher_logits):
        return super().__call__(student_logits.bfloat16(), teacher_logits.bfloat16()).to(student_logits.dtype)


class ConstantPerEntry(RightKL):
    def value(self, log_p, log_q):
        return super().value(log_p, log_q) + 1e-3


class BranchesOnTensors(RightKL):
    def value(self, log_p, log_q):
        return super().value(log_p, log_q) if (log_p > -1e5).all() else log_p


class TritonForgetsTheSlopesSign(kernels.KL, PointwiseDivergence):
    def value_and_slope(self, log_p, log_q, p, q):
        value, slope = super().value_and_slope(log_p, log_q, p, q)
        return value, -slope

    def triton_entry(self):
        return super().triton_entry()


def contract_of(divergence, reference_):
    class Contract(DivergenceContract):
        top_k_is_a_lower_bound = False

        def make(self):
            return divergence()

        def reference(self, p, q):
            return reference_(p, q)

    return Contract


@pytest.mark.parametrize(("divergence", "reference"), [(RightKL, kl), (RightGeneral, squared)])
def test_right_divergences_pass(divergence, reference):
    assert failures(contract_of(divergence, reference)) == {}


DIVERGENCE_MUTANTS = [
    (Swapped, kl, "test_agrees_with_the_reference", "teacher and student are swapped"),
    (SlopeWithAFactor, kl, "test_the_slope_is_the_derivative_of_the_value", "2 times it"),
    (SlopeWithAFactor, kl, "test_the_gradient_is_that_of_the_value", "look at the slope"),
    (SlopeTowardsQ, kl, "test_the_slope_is_the_derivative_of_the_value", "∂v/∂log q"),
    (SlopeForgetsThatQDependsOnLogQ, bounded, "test_the_slope_is_the_derivative_of_the_value", "∂v/∂log q"),
    (ZeroPadded, squared, "test_absent_tokens_change_nothing", "vocabulary is padded"),
    (NormalisedOverTheBatch, squared, "test_rows_are_independent", "normalise over the vocabulary"),
    (NormalisedOverTheBatch, squared, "test_chunks_and_accumulation_change_nothing", "rows must not depend"),
    (NormalisedOverTheBatch, squared, "test_a_masked_row_gets_no_gradient", "row"),
    (MeanOverRows, squared, "test_gives_one_value_per_row", "gives shape []"),
    (MeanOverTheVocabulary, squared, "test_absent_tokens_change_nothing", "value"),
    (Unnormalised, squared, "test_is_zero_for_equal_distributions", "isn't 0"),
    (SoftensByItself, squared, "test_temperature_is_left_to_the_framework", "divided by the temperature"),
    (BoundTooLow, bounded, "test_keeps_its_upper_bound", "above the declared upper_bound of 1.5"),
    (DividesByQ, lambda p, q: ((p - q).square() / q).sum(-1), "test_impossible_tokens_leave_no_nan", "division by q"),
    (WritesToItsArguments, kl, "test_writes_to_none_of_its_arguments", "writes to log_p"),
    (Random, squared, "test_every_call_gives_the_same", "no chance"),
    (Detached, squared, "test_the_gradient_is_that_of_the_value", "for a detach"),
    (CountsColumns, squared, "test_the_order_of_the_vocabulary_does_not_matter", "treat all tokens alike"),
    (OfAnotherVersion, kl, "test_is_a_divergence_of_this_api", "lantern_api is 2, expected 1"),
    (OfNoVersion, squared, "test_is_a_divergence_of_this_api", "lantern_api is None, expected 1"),
    (DetachedValue, kl, "test_autograd_agrees_with_the_slope", "look for a detach"),
    (Nameless, squared, "test_is_a_divergence_of_this_api", "name is missing"),
    (InHalfPrecision, squared, "test_agrees_with_the_reference", "isn't that of the reference"),
    (ConstantPerEntry, kl, "test_is_zero_for_equal_distributions", "isn't 0"),
    (BranchesOnTensors, kl, "test_the_compiler_can_trace_it", "branch"),
    (TritonForgetsTheSlopesSign, kl, "test_triton_says_the_same", "gradient"),
]


@pytest.mark.parametrize(
    ("divergence", "reference", "check", "words"),
    DIVERGENCE_MUTANTS,
    ids=[f"{mutant.__name__}-{check}" for mutant, _, check, _ in DIVERGENCE_MUTANTS],
)
def test_a_wrong_divergence_is_caught_by_name(divergence, reference, check, words):
    found = failures(contract_of(divergence, reference), only=check.__eq__)
    assert words in found[check]


def test_a_loss_without_the_square_of_the_temperature_is_caught(monkeypatch):
    monkeypatch.setattr(Mixture, "factors", property(lambda self: [term.weight for term in self.terms]))
    found = failures(contract_of(RightKL, kl))
    assert set(found) == {"test_temperature_is_left_to_the_framework"}
    assert "T²" in found["test_temperature_is_left_to_the_framework"]


# Teachers


class RightTeacher(Teacher):
    """Looks the next token's logits up by the current token; and a pair's level by the lengths of its texts."""

    lantern_api = 1
    capabilities = frozenset({"level_probs", "score_tokens"})
    tokenizer_fingerprint = "of bigrams"
    vocab_size = 64

    def __init__(self):
        self.table = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))

    def identity(self):
        return {"seed": 0}

    def rows(self, batch):
        return batch.input_ids[batch.positions]

    def score_tokens(self, batch):
        return Logits(self.table[self.rows(batch)])

    def level_probs(self, pairs, task):
        lengths = torch.tensor([[len(pair.job_text), len(pair.candidate_text), 100.0] for pair in pairs])
        return LevelProbs(lengths / lengths.sum(-1, keepdim=True))


class RightTopK(RightTeacher):
    top_k = 5

    def score_tokens(self, batch):
        log_probs, ids = super().score_tokens(batch).logits.log_softmax(-1).sort(-1, descending=True)
        return TopK(ids[:, :5], log_probs[:, :5], log_probs[:, 5:].logsumexp(-1))


class RightHiddenStates(RightTeacher):
    """Looks hidden states up as well: layer l's are l + 1 times the embeddings'."""

    capabilities = frozenset({"level_probs", "pair_hidden_states", "score_tokens", "token_hidden_states"})
    hidden_size = 64
    hidden_layers = 2

    def layers(self, vectors, layers):
        return [vectors * (1 + range(self.hidden_layers + 1)[layer]) for layer in layers]

    def token_hidden_states(self, batch, layers):
        return self.layers(self.table[self.rows(batch)], layers)

    def pair_hidden_states(self, pairs, task, layers):
        return self.layers(self.table[[len(pair.job_text) % 64 for pair in pairs]], layers)


class HiddenStatesOfTheNextToken(RightHiddenStates):
    def token_hidden_states(self, batch, layers):
        return self.layers(self.table[batch.input_ids.roll(-1, 1)[batch.positions]], layers)


class HiddenStatesOfTheTokenBefore(RightHiddenStates):
    def token_hidden_states(self, batch, layers):
        return self.layers(self.table[batch.input_ids.roll(1, 1)[batch.positions]], layers)


class HiddenStatesWithGradient(RightHiddenStates):
    def layers(self, vectors, layers):
        return super().layers(vectors.clone().requires_grad_(), layers)


class HiddenStatesOfTheBatch(RightHiddenStates):
    def layers(self, vectors, layers):
        return super().layers(vectors - vectors.mean(0), layers)


class HiddenStatesOfTheSecondToLastLayer(RightHiddenStates):
    def layers(self, vectors, layers):
        return super().layers(vectors, [1 if layer == -1 else layer for layer in layers])


class HiddenStatesOfAnotherWidth(RightHiddenStates):
    hidden_size = 60


class ForgetsItsLayers(RightHiddenStates):
    hidden_layers = None

    def layers(self, vectors, layers):
        return [vectors for _ in layers]


class SeesTheAnswer(RightTeacher):
    def rows(self, batch):
        return batch.input_ids.roll(-1, 1)[batch.positions]


class LagsBehind(RightTeacher):
    def rows(self, batch):
        return batch.input_ids.roll(1, 1)[batch.positions]


class WithGradient(RightTeacher):
    def __init__(self):
        super().__init__()
        self.table.requires_grad_()


class UnnormalisedTopK(RightTopK):
    def score_tokens(self, batch):
        signal = super().score_tokens(batch)
        return TopK(signal.ids, signal.log_probs + 0.5, signal.tail_log_mass)


class ForgetsTheTail(RightTopK):
    def score_tokens(self, batch):
        signal = super().score_tokens(batch)
        return TopK(signal.ids, signal.log_probs, torch.full_like(signal.tail_log_mass, -torch.inf))


class NamesATokenTwice(RightTopK):
    def score_tokens(self, batch):
        signal = super().score_tokens(batch)
        return TopK(signal.ids[:, [0, 0, 2, 3, 4]], signal.log_probs, signal.tail_log_mass)


class DeclaresAnotherK(RightTopK):
    top_k = 8


class CentresOverTheBatch(RightTeacher):
    def score_tokens(self, batch):
        logits = super().score_tokens(batch).logits
        return Logits(logits - logits.mean(0))


class MixesRowsUp(RightTeacher):
    def score_tokens(self, batch):
        return Logits(super().score_tokens(batch).logits.flip(0))


class CountsPadding(RightTeacher):
    def score_tokens(self, batch):
        width = torch.full((64,), 0.0).scatter(0, torch.tensor([batch.input_ids.shape[1]]), 1.0)
        return Logits(super().score_tokens(batch).logits + width)


class GivesAllPositions(RightTeacher):
    def rows(self, batch):
        return batch.input_ids.flatten()


class OfAnotherWidth(RightTeacher):
    vocab_size = 60

    def rows(self, batch):
        return super().rows(batch) % 60


class GivesNaN(RightTeacher):
    def score_tokens(self, batch):
        return Logits(super().score_tokens(batch).logits.log())


class LevelsAsLogits(RightTeacher):
    def level_probs(self, pairs, task):
        return LevelProbs(super().level_probs(pairs, task).probs.log())


class LevelsOfTheBatch(RightTeacher):
    def level_probs(self, pairs, task):
        probs = super().level_probs(pairs, task).probs
        return LevelProbs((probs / probs.sum(0)) / (probs / probs.sum(0)).sum(-1, keepdim=True))


class Dropout(RightTeacher):
    def score_tokens(self, batch):
        return Logits(torch.nn.functional.dropout(super().score_tokens(batch).logits, 0.1))


class Promises(RightTeacher):
    capabilities = frozenset({"annotate", "level_probs", "score_tokens"})


class Hides(RightTeacher):
    capabilities = frozenset({"level_probs"})


class Misspells(RightTeacher):
    capabilities = frozenset({"level_probs", "score_token"})


class Counts(RightTeacher):
    number = itertools.count()

    def __init__(self):
        super().__init__()
        self.made = next(self.number)

    def identity(self):
        return {"made": self.made}


class NamesAnAddress(RightTeacher):
    def identity(self):
        return {"table": "<Table object at 0x7f3a10>"}


class SwitchesGradientsOff(RightTeacher):
    def level_probs(self, pairs, task):
        torch.set_grad_enabled(False)
        return super().level_probs(pairs, task)


def teacher_contract_of(teacher):
    class Contract(TeacherContract):
        def make(self):
            return teacher()

    return Contract


@pytest.mark.parametrize("teacher", [RightTeacher, RightTopK, RightHiddenStates])
def test_right_teachers_pass(teacher):
    assert failures(teacher_contract_of(teacher)) == {}


TEACHER_MUTANTS = [
    (SeesTheAnswer, "test_a_position_sees_its_own_token_and_none_after_it", "it's shifted"),
    (LagsBehind, "test_a_position_sees_its_own_token_and_none_after_it", "doesn't depend on the token at l"),
    (WithGradient, "test_token_signals_carry_no_gradient", "torch.no_grad()"),
    (UnnormalisedTopK, "test_token_signals_are_distributions", "aren't normalised"),
    (ForgetsTheTail, "test_token_signals_are_distributions", "aren't normalised"),
    (NamesATokenTwice, "test_token_signals_are_distributions", "twice"),
    (DeclaresAnotherK, "test_a_token_signal_has_a_row_per_position", "top_k is 8"),
    (CentresOverTheBatch, "test_token_signals_depend_on_their_row_alone", "asked alone"),
    (MixesRowsUp, "test_token_signals_depend_on_their_row_alone", "asked alone"),
    (CountsPadding, "test_token_signals_depend_on_their_row_alone", "without padding"),
    (GivesAllPositions, "test_a_token_signal_has_a_row_per_position", "a row per position"),
    (OfAnotherWidth, "test_a_token_signal_has_a_row_per_position", "vocab_size columns"),
    (GivesNaN, "test_token_signals_are_distributions", "NaN"),
    (LevelsAsLogits, "test_level_probs_are_distributions", "not logits"),
    (LevelsOfTheBatch, "test_level_probs_depend_on_their_pair_alone", "normalisation over the batch"),
    (Dropout, "test_token_signals_depend_on_their_row_alone", "switch dropout off"),
    (Dropout, "test_leaves_no_trace", "random numbers"),
    (Promises, "test_does_what_it_declares_and_refuses_the_rest", "declares 'annotate' but refuses it"),
    (Hides, "test_does_what_it_declares_and_refuses_the_rest", "does 'score_tokens' without declaring it"),
    (Misspells, "test_declares_what_it_can", "score_token"),
    (Counts, "test_its_identity_is_plain_and_stable", "made alike"),
    (NamesAnAddress, "test_its_identity_is_plain_and_stable", "at 0x7f3a10"),
    (SwitchesGradientsOff, "test_leaves_no_trace", "torch.no_grad()"),
    (HiddenStatesOfTheNextToken, "test_hidden_states_are_those_of_their_position", "they are shifted"),
    (HiddenStatesOfTheTokenBefore, "test_hidden_states_are_those_of_their_position", "don't depend on the token at l"),
    (HiddenStatesWithGradient, "test_hidden_states_carry_no_gradient", "torch.no_grad()"),
    (HiddenStatesOfTheBatch, "test_hidden_states_depend_on_their_row_alone", "asked alone"),
    (HiddenStatesOfTheSecondToLastLayer, "test_hidden_states_have_a_row_each", "both mean the last"),
    (HiddenStatesOfAnotherWidth, "test_hidden_states_have_a_row_each", "rows x hidden_size"),
    (ForgetsItsLayers, "test_hidden_states_have_a_row_each", "hidden_layers isn't set"),
]


@pytest.mark.parametrize(
    ("teacher", "check", "words"),
    TEACHER_MUTANTS,
    ids=[f"{mutant.__name__}-{check}" for mutant, check, _ in TEACHER_MUTANTS],
)
def test_a_wrong_teacher_is_caught_by_name(teacher, check, words):
    try:
        found = failures(teacher_contract_of(teacher), only=check.__eq__)
    finally:
        torch.set_grad_enabled(True)
    assert words in found[check]
