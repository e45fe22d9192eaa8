"""What a reviewer sees first, what comes back, and what is over."""

import math

import pytest
from review_labels import decision, labelled, labels_of

from lantern_pl.errors import UserError
from lantern_pl.labelling.review.decisions import by_pair, is_open, standing
from lantern_pl.labelling.review.labelled import LabelledPair
from lantern_pl.labelling.review.queue import came_back, next_open, review_order
from lantern_pl.labelling.review.session import Session
from lantern_pl.labelling.store import Decision


class Memory:
    """Decisions that are kept in a list."""

    def __init__(self, *decisions: Decision) -> None:
        self.kept = list(decisions)

    def decide(self, *decisions: Decision) -> None:
        self.kept += decisions

    def decisions(self) -> list[Decision]:
        return list(self.kept)


def one_sure(pair_id: str, confidence: float | None, votes: dict[str, float] | None = None) -> LabelledPair:
    return labelled(pair_id, confidence=confidence, votes=votes)


def test_divided_samples_come_first_then_the_least_confident_then_the_rest() -> None:
    pairs = [
        one_sure("p1", None),
        one_sure("p2", 0.9),
        one_sure("p3", 0.3),
        one_sure("p4", 0.99, {"low": 1, "medium": 4, "high": 0}),
        one_sure("p5", 0.99, {"low": 2, "medium": 2, "high": 1}),
        one_sure("p6", 0.1, {"low": 0, "medium": 5, "high": 0}),
        one_sure("p7", None),
    ]
    assert review_order(pairs, [], "ann") == ["p5", "p4", "p6", "p3", "p2", "p1", "p7"]


def test_votes_that_say_the_same_are_ordered_by_confidence() -> None:
    # Their entropies differ in the last digit.
    votes = [{"low": 7, "medium": 1, "high": 7}, {"low": 7, "medium": 7, "high": 1}]
    for first, second in (votes, votes[::-1]):
        pairs = [one_sure("p1", 0.7, first), one_sure("p2", 0.6, second)]
        assert review_order(pairs, [], "ann") == ["p2", "p1"]


def test_entropy_and_agreement_of_votes() -> None:
    pair = one_sure("p1", None, {"low": 1, "medium": 3, "high": 0})
    assert pair.entropy == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
    assert pair.agreement == 0.75
    assert one_sure("p1", None, {"low": 0.2, "medium": 0.5, "high": 0.3}).agreement == 0.5
    assert one_sure("p1", None, {"low": 3, "medium": 0, "high": 0}).agreement == 0
    # One sample agrees with nothing.
    assert one_sure("p1", None, {"low": 0, "medium": 1, "high": 0}).agreement is None
    assert one_sure("p1", None).agreement is None
    assert one_sure("p1", None, {"low": 0, "medium": 0, "high": 0}).entropy == 0


def test_what_a_reviewer_has_decided_is_skipped_and_others_decisions_are_not_his() -> None:
    pairs = {name: labelled(name) for name in ("p1", "p2", "p3")}
    decided = by_pair([decision("p1", "ann", "accept"), decision("p2", "ben", "accept")])
    assert next_open(list(pairs), None, pairs, decided, "ann") == "p2"
    assert next_open(list(pairs), "p2", pairs, decided, "ann") == "p3"
    assert next_open(list(pairs), "p3", pairs, decided, "ann") == "p2"
    assert next_open(list(pairs), "p1", pairs, decided, "ben") == "p3"


def test_a_disagreement_comes_back_to_both_once() -> None:
    said = [decision("p1", "ann", "accept", "medium", 1), decision("p1", "ben", "edit", "high", 2)]
    assert came_back(said, "ann", "medium")
    assert came_back(said, "ben", "medium")
    assert is_open(said, "cem", "medium")
    assert not came_back(said, "cem", "medium")
    kept = [*said, decision("p1", "ann", "accept", "medium", 3)]
    assert not is_open(kept, "ann", "medium")
    assert is_open(kept, "ben", "medium")
    both_kept = [*kept, decision("p1", "ben", "edit", "high", 4)]
    assert not is_open(both_kept, "ann", "medium")  # who keeps to an opinion doesn't ask the other again
    assert not is_open(both_kept, "ben", "medium")
    changed = [*both_kept, decision("p1", "ben", "reject", None, 5)]
    assert is_open(changed, "ann", "medium")
    agreed = [*both_kept, decision("p1", "ben", "accept", "medium", 5)]
    assert not is_open(agreed, "ann", "medium")
    assert not is_open(agreed, "ben", "medium")


def test_what_came_back_is_first() -> None:
    pairs = [one_sure("p1", 0.1), one_sure("p2", 0.9)]
    said = [decision("p2", "ann", "accept", "medium", 1), decision("p2", "ben", "reject", None, 2)]
    assert review_order(pairs, said, "ann") == ["p2", "p1"]
    assert review_order(pairs, said, "cem") == ["p1", "p2"]


def test_another_explanation_is_no_disagreement() -> None:
    said = [decision("p1", "ann", "accept"), decision("p1", "ben", "edit", None, 1, explanation="In other words.")]
    assert not is_open(said, "ann", "medium")


def test_what_rules_accept_comes_when_nothing_else_is_left() -> None:
    pairs = [one_sure("p1", 0.1), one_sure("p2", 0.9)]
    ruled = decision("p1", "rules", "accept", rule="valid_format")
    assert review_order(pairs, [ruled], "ann") == ["p2", "p1"]
    decided = by_pair([ruled])
    by_id = {pair.pair_id: pair for pair in pairs}
    assert next_open(["p1", "p2"], None, by_id, decided, "ann") == "p2"
    decided["p2"] = [decision("p2", "ann", "accept")]
    assert next_open(["p1", "p2"], "p2", by_id, decided, "ann") == "p1"
    # Where a person has looked at it, the next one is to look as well.
    doubted = by_pair([ruled, decision("p1", "ben", "reject")])
    assert next_open(["p1", "p2"], None, by_id, doubted, "ann") == "p1"
    taken_back = by_pair([ruled, decision("p1", "rules", "reject", minute=1, rule="others")])
    assert next_open(["p1", "p2"], None, by_id, taken_back, "ann") == "p1"


def test_most_persons_decide_and_a_tie_is_disputed() -> None:
    pair = labelled("p1")
    ann, ben = decision("p1", "ann", "accept", "medium", 1), decision("p1", "ben", "edit", "high", 2, explanation="Ben's.")
    assert standing([], pair) is None
    assert standing([ann, ben], pair).state == "disputed"
    cem = decision("p1", "cem", "accept", "medium", 3)
    stands = standing([ann, ben, cem], pair)
    assert (stands.state, stands.level, stands.explanation) == ("accept", "medium", pair.explanation)
    assert [decided.reviewer for decided in stands.decided] == ["ann", "cem"]
    dan = decision("p1", "dan", "edit", "high", 4)
    stands = standing([ben, dan], pair)
    assert (stands.state, stands.level, stands.explanation) == ("edit", "high", "Ben's.")
    assert standing([ben, dan, decision("p1", "ben", "reject", None, 5)], pair).state == "disputed"
    assert standing([decision("p1", "ben", "reject", None, 5)], pair).state == "reject"


def test_a_person_outranks_a_rule_whenever_it_ran() -> None:
    pair = labelled("p1")
    rejected, ruled = decision("p1", "ann", "reject", None, 1), decision("p1", "rules", "accept", "medium", 2, rule="r")
    assert standing([rejected, ruled], pair).state == "reject"
    assert standing([ruled], pair).state == "accept"
    assert standing([ruled, decision("p1", "rules", "reject", None, 3, rule="s")], pair) is None


def test_an_accepted_label_stays_what_was_accepted() -> None:
    seen = decision("p1", "ann", "accept", "medium", explanation="As it was then.")
    ruled = decision("p1", "rules", "accept", "medium", explanation="As it was then.", rule="r")
    for made in (seen, ruled):
        stands = standing([made], labelled("p1", level="high", explanation="Made anew."))
        assert (stands.level, stands.explanation) == ("medium", "As it was then.")


def test_a_session_goes_forward_back_and_ends() -> None:
    store = Memory()
    session = Session(labels_of(one_sure("p1", 0.1), one_sure("p2", 0.5), one_sure("p3", 0.9)), store, "ann")
    shown = session.first()
    assert (shown.pair.pair_id, shown.progress.done, shown.progress.all) == ("p1", 0, 3)
    assert session.next("p1").pair.pair_id == "p2"
    shown = session.accept("p1", "medium", "Knows Python, not Kafka.", "")
    assert shown.pair.pair_id == "p2"
    assert shown.progress.done == 1
    shown = session.accept("p2", "high", "  Knows Kafka.  ", " sure ")
    back = session.previous("p3")
    assert (back.pair.pair_id, back.level, back.explanation, back.note) == ("p2", "high", "Knows Kafka.", "sure")
    assert session.previous("p1").pair.pair_id == "p1"
    shown = session.reject("p3", "")
    assert shown.pair is None
    assert shown.progress.done == 3
    assert session.previous(None).pair.pair_id == "p3"
    assert [(made.pair_id, made.verdict, made.level) for made in store.kept] == [
        ("p1", "accept", "medium"),
        ("p2", "edit", "high"),
        ("p3", "reject", None),
    ]
    assert Session(session.labels, store, "ann").first().pair is None
    assert Session(session.labels, store, "ben").first().pair.pair_id == "p1"


def test_accepting_the_form_is_an_edit_only_where_it_says_something_else() -> None:
    store = Memory()
    session = Session(labels_of(labelled("p1"), labelled("p2", explanation=None)), store, "ann")
    session.accept("p1", "medium", " Knows Python,\r\nnot  Kafka.", "")
    session.accept("p1", "medium", "Knows Python.", "")
    session.accept("p2", "medium", "", "")
    assert [(made.verdict, made.explanation) for made in store.kept] == [
        ("accept", "Knows Python, not Kafka."),
        ("edit", "Knows Python."),
        ("accept", None),
    ]
    for level, explanation in ((None, "Fine."), ("perfect", "Fine."), ("medium", " ")):
        with pytest.raises(UserError):
            session.accept("p1", level, explanation, "")
    with pytest.raises(UserError, match="no pair 'gone'"):
        session.reject("gone", "")
    assert len(store.kept) == 3


def test_others_opinions_are_shown_only_after_the_own_one() -> None:
    ben, cem = decision("p1", "ben", "edit", "high", 1), decision("p1", "cem", "reject", None, 2)
    assert Session(labels_of(labelled("p1")), Memory(ben, cem), "ann").first().others == ()
    session = Session(labels_of(labelled("p1")), Memory(ben), "ann")
    assert session.first().others == ()
    again = session.accept("p1", "medium", "Knows Python, not Kafka.", "")
    assert again.pair.pair_id == "p1"  # it came back at once, now that both have decided
    assert [other.reviewer for other in again.others] == ["ben"]
    assert session.accept("p1", "medium", "Knows Python, not Kafka.", "").pair is None


def test_progress_counts_what_rules_accepted_apart() -> None:
    store = Memory(decision("p1", "rules", "accept", rule="r"), decision("p2", "ann", "accept"))
    progress = Session(labels_of(labelled("p1"), labelled("p2"), labelled("p3")), store, "ann").first().progress
    assert (progress.all, progress.done, progress.waiting, progress.spared) == (3, 1, 1, 1)
