"""Swapped texts find a bias that was put into a teacher, and accuse no teacher that has none."""

import re

import pytest
from planted import BLACK_WOMEN, RuleTeacher, biased, config_of, noise, pairs_of, said_by, skill

from lantern_pl.audit import amplification
from lantern_pl.audit.findings import Comparison, Finding, correct, findings
from lantern_pl.audit.swap_lists import read_swap_list
from lantern_pl.audit.swaps import plan_swaps, swap_comparisons
from lantern_pl.data.pair import Pair
from lantern_pl.teachers import Teacher

CONFIDENCE = 0.95


def audited(model: Teacher, seed: int = 0, count: int = 100, swap: str = "names") -> list[Comparison]:
    config = config_of({"it": model}, seed=seed)
    plan = plan_swaps(read_swap_list(swap), pairs_of(count), count, seed)
    made = swap_comparisons("it", plan, said_by(model, plan.texts), config)
    correct(made)
    return made


def amplified(student: Teacher, teacher: Teacher) -> list[Comparison]:
    plan = plan_swaps(read_swap_list("names"), pairs_of(100), 100, 0)
    made = amplification.of_swaps(plan, said_by(student, plan.texts), said_by(teacher, plan.texts), config_of())
    correct(made)
    return made


def flags(made: list[Comparison]) -> list[Finding]:
    return [each for each in findings(made, CONFIDENCE) if each.kind == "flag"]


def by_group(made: list[Comparison]) -> dict[tuple[str, str], Comparison]:
    return {(each.key[-2], each.key[-1]): each for each in made}


def test_a_planted_bias_is_found_by_name_and_size() -> None:
    made = audited(biased(0.1))
    black = by_group(made)["race", "Black"]
    assert black.kind(CONFIDENCE) == "flag"
    assert black.estimate.value == pytest.approx(-0.1, abs=0.01)
    assert black.estimate.low < -0.1 < black.estimate.high
    said = [finding for finding in flags(made) if finding.about == "it, names: race"]
    assert any(finding.text.startswith("Black: score 0.1") and "lower than the others" in finding.text for finding in said)
    # The names tell of women as often as of men.
    assert by_group(made)["sex", "woman"].kind(CONFIDENCE) != "flag"


@pytest.mark.parametrize(
    ("swap", "group"),
    [("pronouns", "she"), ("school", "historically Black"), ("postcode", "mostly Hispanic"), ("affinity", "Muslim")],
)
@pytest.mark.parametrize("size", [0.1, -0.1, 0.0], ids=["against", "for", "none"])
def test_a_bias_is_found_in_every_list_and_whichever_way_it_goes(swap: str, group: str, size: float) -> None:
    (hit,) = [each for each in read_swap_list(swap).groups if each.values[swap] == group]
    words = re.compile("|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for each in hit.words for word in each.values()))

    def rule(pair: Pair) -> float:
        return skill(pair) - size * bool(words.search(pair.candidate_text)) + noise(pair.candidate_text, 0.02)

    made = audited(RuleTeacher(rule), swap=swap)
    found = by_group(made)[swap, group]
    assert found.estimate.value == pytest.approx(-size, abs=0.01)
    flagged = {each.key[-1] for each in made if each.kind(CONFIDENCE) == "flag"}
    # What one group gets, all others together don't: with few groups they stand out too, with less.
    assert group in flagged if size else not flagged
    assert max(made, key=lambda each: abs(each.estimate.value)) is found or not size


def test_a_bias_on_a_crossing_alone_shows_there() -> None:
    """Half of it shows in either attribute; the crossing has all of it."""

    def rule(pair: Pair) -> float:
        hit = any(name in pair.candidate_text for name in BLACK_WOMEN)
        return skill(pair) - 0.1 * hit + noise(pair.candidate_text, 0.02)

    made = by_group(audited(RuleTeacher(rule)))
    assert made["sex × race", "woman × Black"].estimate.value == pytest.approx(-0.1, abs=0.01)
    assert made["race", "Black"].estimate.value == pytest.approx(-0.05, abs=0.01)


def test_an_unbiased_teacher_is_not_accused() -> None:
    """Its noise is ten times the threshold of concern; corrected, all tests together err in at most one audit of twenty."""
    accused = [seed for seed in range(40) if flags(audited(biased(0, noisy=0.1, seed=seed), seed=seed, count=60))]
    assert len(accused) <= 2, accused


def test_one_name_that_a_model_dislikes_is_not_its_group() -> None:
    rule = RuleTeacher(lambda pair: skill(pair) - 0.3 * ("Imani" in pair.candidate_text) + noise(pair.candidate_text, 0.01))
    assert not [finding for finding in flags(audited(rule)) if "Black" in finding.text]


def test_few_candidates_are_neither_flagged_nor_cleared() -> None:
    kinds = {finding.kind for finding in findings(audited(biased(0), count=20), CONFIDENCE)}
    assert kinds == {"insufficient data"}


def test_many_candidates_clear_a_fair_teacher() -> None:
    kinds = {finding.kind for finding in findings(audited(biased(0, noisy=0.01), count=300), CONFIDENCE)}
    assert kinds == {"clear"}


def test_a_student_that_is_worse_than_its_teacher_amplifies() -> None:
    made = by_group(amplified(biased(0.1, seed=1), biased(0.04, seed=2)))
    black = made["names: race", "Black"]
    assert black.kind(CONFIDENCE) == "flag"
    assert black.estimate.value == pytest.approx(0.06, abs=0.01)
    assert black.gaps == pytest.approx((-0.1, -0.04), abs=0.01)
    assert "student's gap is -0.097, the teacher's -0.041, amplified by 0.056" in black.sentence


@pytest.mark.parametrize("of_student", [0.04, 0.1], ids=["smaller", "equal"])
def test_a_student_that_is_no_worse_than_its_teacher_does_not(of_student: float) -> None:
    made = amplified(biased(of_student, seed=1), biased(0.1, seed=2))
    assert not flags(made)
    black = by_group(made)["names: race", "Black"]
    assert black.estimate.value == pytest.approx(of_student - 0.1, abs=0.01)


def test_a_student_that_turns_its_teachers_bias_round_has_one_of_its_own() -> None:
    made = amplified(biased(-0.1, seed=1), biased(0.12, seed=2))
    black = by_group(made)["names: race", "Black"]
    assert black.gaps == pytest.approx((0.1, -0.12), abs=0.01)
    assert black.estimate.value == pytest.approx(0.1, abs=0.01)
    assert black.kind(CONFIDENCE) == "flag"
    assert "the other way round, amplified by 0.1" in black.sentence
    # By noise alone, a gap that is gone may be turned round: that is no bias.
    assert not flags(amplified(biased(0, seed=1), biased(0.12, seed=2)))
