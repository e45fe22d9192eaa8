"""Cohen's kappa of two reviewers, against its formula, and where it isn't defined."""

import random

import pytest
from review_labels import LEVELS, decision

from lantern_pl.labelling.review.agreement import Agreement, agreements
from lantern_pl.labelling.store import Decision


def kappa_by_its_formula(said: list[tuple[str, str]], categories: list[str], quadratic: bool) -> float:
    """1 - observed over expected disagreement, weighted."""

    def weight(one: str, two: str) -> float:
        distance = categories.index(one) - categories.index(two)
        return distance**2 if quadratic else float(distance != 0)

    observed = sum(weight(*both) for both in said) / len(said)
    expected = sum(weight(one, two) for one, _ in said for _, two in said) / len(said) ** 2
    return 1 - observed / expected


def said_by_two(said: list[tuple[str, str]]) -> list[Decision]:
    return [
        decision(f"p{number}", name, "reject" if level == "rejected" else "edit", None if level == "rejected" else level)
        for number, both in enumerate(said)
        for name, level in zip(("ann", "ben"), both, strict=True)
    ]


def between(decisions: list[Decision]) -> Agreement:
    (found,) = agreements(decisions, {made.pair_id: "medium" for made in decisions}, LEVELS)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_kappa_is_its_formula(seed: int) -> None:
    rng = random.Random(seed)
    names = [*LEVELS, "rejected"]
    said = [(level, level if rng.random() < 0.6 else rng.choice(names)) for level in rng.choices(names, k=60)]
    found = between(said_by_two(said))
    assert found.reviewers == ("ann", "ben")
    assert (found.pairs, found.same) == (60, sum(one == two for one, two in said))
    assert found.kappa.value == pytest.approx(kappa_by_its_formula(said, names, quadratic=False), abs=1e-5)
    kept = [both for both in said if "rejected" not in both]
    assert found.quadratic.pairs == len(kept) < 60
    assert found.quadratic.value == pytest.approx(kappa_by_its_formula(kept, LEVELS, quadratic=True), abs=1e-5)


def test_a_near_miss_weighs_less_than_a_far_one() -> None:
    near = between(said_by_two([("low", "low"), ("high", "high"), ("low", "medium"), ("high", "high")]))
    far = between(said_by_two([("low", "low"), ("high", "high"), ("low", "high"), ("high", "high")]))
    assert near.quadratic.value > far.quadratic.value


def test_where_kappa_is_not_defined_the_reason_is_given() -> None:
    nothing = agreements(
        [decision("p1", "ann", "accept"), decision("p2", "ben", "accept")], {"p1": "low", "p2": "low"}, LEVELS
    )
    assert nothing[0].kappa.value is None
    assert nothing[0].kappa.reason == "no pair was decided by both"
    one_level = between(said_by_two([("high", "high")] * 5))
    assert one_level.kappa.value is None
    assert "'high'" in one_level.kappa.reason
    rejected = between(said_by_two([("rejected", "low"), ("high", "rejected")]))
    assert rejected.kappa.value is not None
    assert rejected.quadratic.value is None
    assert rejected.quadratic.pairs == 0


def test_an_accept_says_the_labels_own_level() -> None:
    said = [decision("p1", "ann", "accept"), decision("p1", "ben", "edit", "medium")]
    assert between(said).same == 1


def test_who_looked_again_does_not_raise_the_agreement() -> None:
    said = said_by_two([("low", "high"), ("high", "high")])
    assert between(said).same == 1
    # ben sees that ann differs, and follows.
    assert between([*said, decision("p0", "ben", "edit", "low", minute=30)]).same == 1
    # ann had corrected herself before ben came.
    corrected = [
        decision("p0", "ann", "edit", "low", 1),
        decision("p0", "ann", "edit", "high", 2),
        decision("p0", "ben", "edit", "high", 3),
    ]
    assert between(corrected).same == 1


def test_rules_and_pairs_without_labels_do_not_count_and_each_two_persons_are_compared() -> None:
    said = [decision("p1", name, "accept") for name in ("cem", "ann", "ben")]
    said += [
        decision("p1", "rules", "accept", rule="r"),
        decision("gone", "ann", "accept"),
        decision("gone", "ben", "reject"),
    ]
    found = agreements(said, {"p1": "low"}, LEVELS)
    assert [agreement.reviewers for agreement in found] == [("ann", "ben"), ("ann", "cem"), ("ben", "cem")]
    assert all(agreement.pairs == 1 for agreement in found)


def test_a_level_that_the_task_has_no_more_is_left_out() -> None:
    said = said_by_two([("perfect", "low"), ("low", "low"), ("high", "high")])
    assert between(said).pairs == 2
