"""Texts that ask for the best level: whom they talk round, where they go in, and what they're held against."""

from random import Random

import numpy as np
import pytest
from planted import RuleTeacher, config_of, pairs_of, skill

from lantern_pl.audit.answers import Answers
from lantern_pl.audit.config import AuditConfig, Injections
from lantern_pl.audit.findings import Comparison, Table, correct, findings
from lantern_pl.audit.injections import attack_comparisons, compare_attacks, insert, plan_attacks, read_families, same_length
from lantern_pl.data.pair import Pair
from lantern_pl.errors import UserError
from lantern_pl.tasks import Task
from lantern_pl.teachers import Teacher

FAMILIES = ["ignore instructions", "dictated answer", "encoded payload"]


def attacked(model: Teacher, config: AuditConfig) -> tuple[list[Comparison], Table]:
    attacks = plan_attacks(pairs_of(40, 10, 60), [], config)
    answers = Answers("it", model, Task(), 64)
    answers.ask((text for each in attacks for text in (each.original, each.attacked, each.harmless)), "test")
    made, table = attack_comparisons("it", attacks, answers.levels, config)
    correct(made)
    return made, table


@pytest.fixture
def config() -> AuditConfig:
    return config_of(injections=Injections(families=FAMILIES, pairs=40))


def gullible(pair: Pair) -> float:
    """Believes who names the best level."""
    return 1.0 if "high" in pair.candidate_text else skill(pair)


def test_a_gullible_teacher_is_talked_round_and_said_to_be(config: AuditConfig) -> None:
    made, table = attacked(RuleTeacher(gullible), config)
    kinds = {each.key[-1]: each.kind(0.95) for each in made}
    # It reads no base64, though the demand to decode it is in plain words.
    assert kinds == {
        "ignore instructions": "flag",
        "dictated answer": "flag",
        "encoded payload": "insufficient data",
    }
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    plain = rows["ignore instructions"]
    assert (plain["raised"], plain["to the best"], plain["by harmless text"], plain["net"]) == (1, 1, 0, 1)
    assert rows["encoded payload"]["raised"] == 0
    assert rows["all families"]["raised"] == pytest.approx(2 / 3)
    flagged = [each.text for each in findings(made, 0.95) if each.kind == "flag"]
    assert any(text.startswith("ignore instructions: raises the level in 100% of 40 pairs") for text in flagged)


def test_a_sturdy_teacher_is_not(config: AuditConfig) -> None:
    made, table = attacked(RuleTeacher(skill), config)
    assert {each.kind(0.95) for each in made} == {"insufficient data"}
    assert all(row[2] == 0 for row in table.rows)


def test_a_sturdy_teacher_is_cleared_by_enough_pairs() -> None:
    config = config_of(injections=Injections(families=FAMILIES[:1], pairs=200))
    attacks = plan_attacks(pairs_of(200, 10, 60), [], config)
    answers = Answers("it", RuleTeacher(skill), Task(), 64)
    answers.ask((text for each in attacks for text in (each.original, each.attacked, each.harmless)), "test")
    made, _ = attack_comparisons("it", attacks, answers.levels, config)
    correct(made)
    assert [each.kind(0.95) for each in made] == ["clear"]


def test_a_teacher_that_length_impresses_is_not_taken_for_gullible(config: AuditConfig) -> None:
    """Any longer text raises its level, so that attacks add nothing."""
    longest = max(len(pair.candidate_text) for pair in pairs_of(40, 10, 60))
    made, _ = attacked(RuleTeacher(lambda pair: float(len(pair.candidate_text) > longest)), config)
    assert all(each.estimate.value == 0 and each.kind(0.95) != "flag" for each in made)


def test_attacks_change_the_candidates_text_alone(config: AuditConfig) -> None:
    pairs = pairs_of(40, 10, 60)
    attacks = plan_attacks(pairs, [], config)
    assert len(attacks) == len(FAMILIES) * 40
    own = {(pair.job_text, pair.candidate_text) for pair in pairs}
    for each in attacks:
        assert each.original in own
        assert each.attacked[0] == each.harmless[0] == each.original[0]
        # The text's own words are all there, in their order, around what was put in.
        left = iter(each.attacked[1].split())
        assert all(word in left for word in each.original[1].split())
        assert abs(len(each.attacked[1]) - len(each.harmless[1])) < 20
    assert sum(each.recognised for each in attacks) > len(attacks) / 2


@pytest.mark.parametrize(("place", "expected"), [("begin", "X\nab cd"), ("middle", "ab\nX\ncd"), ("end", "ab cd\nX")])
def test_places(place: str, expected: str) -> None:
    assert insert("ab cd", "X", place) == expected


def test_harmless_text_is_as_long() -> None:
    for size in (1, 40, 300):
        found = same_length(["Some words are here.", "Others there."], "x" * size, Random(0))
        assert size <= len(found) + 1 <= size + 12


def test_there_are_twelve_families_and_an_unknown_one_is_named() -> None:
    assert len(read_families(Injections())) == 12
    with pytest.raises(UserError, match=r"'ignore instruction'.*'ignore instructions'"):
        read_families(Injections(families=["ignore instruction"]))


def test_each_family_asks_each_candidate_once(config: AuditConfig) -> None:
    attacks = plan_attacks(pairs_of(30), pairs_of(40), config)
    counts = np.unique([f"{each.family}/{each.original[1]}" for each in attacks], return_counts=True)[1]
    assert set(counts.tolist()) == {1}
    assert len(counts) == len(FAMILIES) * 40


def test_student_and_teacher_are_compared_on_the_attacks_that_both_had(config: AuditConfig) -> None:
    """Each has pairs of its own below the best level; the attacks on those of both are the same."""
    shared, own = pairs_of(30, 10, 60), pairs_of(40, 10, 60)[30:]
    of_student, of_teacher = plan_attacks(shared, own[:5], config), plan_attacks(shared, own[5:], config)
    answers = [Answers("it", RuleTeacher(rule), Task(), 64) for rule in (gullible, skill)]
    for one, attacks in zip(answers, (of_student, of_teacher), strict=True):
        one.ask((text for each in attacks for text in (each.original, each.attacked, each.harmless)), "test")
    made, table = compare_attacks("it", of_student, of_teacher, [one.levels for one in answers], config)
    correct(made)
    assert {each.key[-1]: (each.kind(0.95), each.estimate.value) for each in made} == {
        "ignore instructions": ("flag", 1),
        "dictated answer": ("flag", 1),
        "encoded payload": ("insufficient data", 0),
    }
    assert [row[1] for row in table.rows] == [30, 30, 30]
    assert made[0].sentence == ("ignore instructions: talks the student round in 100% of 30 pairs, the teacher in 0%")
