"""Rules that accept labels in a person's stead, and quotes found in texts."""

import json
from collections import Counter
from typing import Any

import pytest
from review_labels import GOOD, LEVELS, MET, UNMET, labelled
from support import OPEN_DATA

from lantern_pl.errors import UserError
from lantern_pl.labelling.review.labelled import LabelledPair, Requirement
from lantern_pl.labelling.review.quotes import find_quote, plain, support
from lantern_pl.labelling.review.rules import Rules

STRICT = Rules(min_agreement=0.8, min_confidence=0.7)


def test_a_good_label_passes() -> None:
    assert STRICT.failed(GOOD, LEVELS) == ()


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("valid_format", {"level": "perfect"}),
        ("valid_format", {"explanation": " \n"}),
        ("valid_format", {"explanation": None}),
        ("valid_format", {"confidence": 1.5}),
        ("valid_format", {"confidence": float("nan")}),
        ("valid_format", {"requirements": [MET, Requirement("Kafka", "nice", "perhaps", None)]}),
        ("valid_format", {"requirements": [MET, Requirement(None, "nice", "unmet", None)]}),
        ("no_flags", {"flags": ["bidi control"]}),
        ("evidence_verbatim", {"requirements": [UNMET]}),
        ("evidence_verbatim", {"requirements": []}),
        ("evidence_verbatim", {"requirements": [MET, Requirement("Java", "must", "met", "ten years of Java")]}),
        ("evidence_verbatim", {"requirements": [Requirement("Python", "must", "met", "Five years of python")]}),
        ("min_agreement", {"votes": {"low": 0.0, "medium": 7.0, "high": 3.0}}),
        ("min_agreement", {"votes": {"low": 0.0, "medium": 1.0, "high": 0.0}}),
        ("min_agreement", {"votes": None}),
        ("min_confidence", {"confidence": 0.69}),
        ("min_confidence", {"confidence": None}),
    ],
)
def test_each_rule_is_failed_by_name(rule: str, changes: dict[str, Any]) -> None:
    assert rule in STRICT.failed(labelled("p1", **changes), LEVELS)


def test_a_rule_that_is_off_is_not_asked() -> None:
    off = Rules(valid_format=False, no_flags=False, evidence_verbatim=False)
    bad = labelled("p1", level="?", explanation="", flags=["x"], requirements=[], votes=None, confidence=None)
    assert off.failed(bad, LEVELS) == ()
    assert str(off) == "no rules"


def test_a_share_is_met_exactly() -> None:
    assert Rules(min_agreement=0.8).failed(labelled("p1", votes={"low": 1, "medium": 4, "high": 0}), LEVELS) == ()
    tenths = {"low": 0.1, "medium": 0.7, "high": 0.2}
    assert Rules(min_agreement=0.7).failed(labelled("p1", votes=tenths), LEVELS) == ()


def test_rules_are_recorded_as_they_are() -> None:
    assert str(Rules(min_agreement=0.8, min_support=0.5, evidence_verbatim=False)) == (
        "valid_format, no_flags, min_support=0.5, min_agreement=0.8"
    )


@pytest.mark.parametrize("value", [0, -0.1, 1.01, float("nan")])
def test_a_share_out_of_range_is_named(value: float) -> None:
    with pytest.raises(UserError, match="min_confidence is "):
        Rules(min_confidence=value)


def test_words_of_a_teacher_without_verdicts_count_as_its_evidence() -> None:
    paraphrase = Requirement("Has led Python teams for years.", None, None, None)
    pair = labelled("p1", requirements=[paraphrase])
    assert "evidence_verbatim" in Rules().failed(pair, LEVELS)
    assert Rules(evidence_verbatim=False, min_support=0.5).failed(pair, LEVELS) == ()
    quote = Requirement("five years of Python", None, None, "five years of Python")
    assert Rules().failed(labelled("p1", requirements=[quote]), LEVELS) == ()
    assert "evidence_verbatim" in Rules().failed(labelled("p1", requirements=[quote, paraphrase]), LEVELS)


def test_support_is_that_of_the_worst_evidence() -> None:
    made_up = Requirement("Holds astronaut certificates.", None, None, None)
    good = Requirement("Python developer with Kafka", None, None, None)
    rules = Rules(evidence_verbatim=False, min_support=0.5)
    assert rules.failed(labelled("p1", requirements=[good]), LEVELS) == ()
    assert rules.failed(labelled("p1", requirements=[good, made_up]), LEVELS) == ("min_support",)
    assert rules.failed(labelled("p1", requirements=[]), LEVELS) == ("min_support",)


@pytest.mark.parametrize("share", [0.34, 0.4, 0.5, 0.75, 1.0])
def test_no_level_has_more_than_its_share_and_no_pair_too_few_is_taken(share: float) -> None:
    counts = {"low": 3, "medium": 20, "high": 9}
    pairs = [
        labelled(f"p{level}{number}", level=level, votes=None, confidence=number / 20)
        for level, count in counts.items()
        for number in range(count)
    ]
    failed = Rules(max_level_share=share).judge(pairs, LEVELS)
    accepted = Counter(pair.level for pair in pairs if not failed[pair.pair_id])
    assert max(accepted.values()) <= share * accepted.total() + 1e-9
    more = Counter({level: min(count, max(accepted.values()) + 1) for level, count in counts.items()})
    assert accepted == counts or max(more.values()) > share * more.total()
    # Those left out are the least confident ones.
    for pair in pairs:
        if failed[pair.pair_id]:
            kept = [other for other in pairs if other.level == pair.level and not failed[other.pair_id]]
            assert all(pair.confidence <= other.confidence for other in kept)
            assert failed[pair.pair_id] == ("max_level_share",)


def test_what_fails_otherwise_takes_no_share() -> None:
    pairs = [labelled("p1", level="low"), labelled("p2", level="high"), labelled("p3", level="high", flags=["x"])]
    failed = Rules(max_level_share=0.5).judge(pairs, LEVELS)
    assert failed == {"p1": (), "p2": (), "p3": ("no_flags",)}


def test_a_single_level_cannot_be_half_of_anything() -> None:
    assert Rules(max_level_share=0.5).judge([GOOD], LEVELS) == {"p1": ("max_level_share",)}


@pytest.mark.parametrize(
    ("text", "quote", "found"),
    [
        ("I bring five years\n  of Python.", "five years of Python", "five years\n  of Python"),
        ("Go is a language. I went to Google.", "Go", "Go"),
        ("Googling, then Go.", "Go", "Go"),
        ("uses a+b (fast)", "a+b (fast)", "a+b (fast)"),
        ("a cafe\u0301 owner", "caf\u00e9 owner", "caf\u00e9 owner"),
        ("non\u00a0breaking space", "non breaking", "non\u00a0breaking"),
        ("\u6771\u4eac\u3067\u50cd\u304f", "\u6771\u4eac", "\u6771\u4eac"),
    ],
)
def test_a_quote_is_found_where_it_stands(text: str, quote: str, found: str) -> None:
    span = find_quote(text, quote)
    assert span is not None
    assert plain(text)[slice(*span)] == found


def test_a_whole_word_goes_before_a_part_of_one() -> None:
    assert find_quote("Googling, then Go.", "Go") == (15, 17)
    assert find_quote("Googling", "Go") == (0, 2)


@pytest.mark.parametrize("quote", ["", " ", "x", "five years of Perl", "FIVE YEARS", ".*"])
def test_what_is_not_there_is_not_found(quote: str) -> None:
    assert find_quote("x, five years of Python", quote) is None


def test_support_sees_words_and_their_forms() -> None:
    assert support("developing Python services", "She developed a service in Python") == 1.0
    assert support("developing Cobol", "She developed in Python") == 0.5
    assert support("C++ and C#", "knows C++") == 0.5
    assert support("candidate with more than the role", "anything") == 0.0
    assert support("", "anything") == 0.0


@pytest.mark.skipif(not OPEN_DATA.exists(), reason=f"{OPEN_DATA} isn't there")
def test_rules_judge_the_annotations_of_a_real_black_box_teacher() -> None:
    pairs = [
        LabelledPair(
            pair_id=row["pair_id"],
            job_id=row["job_id"],
            candidate_id=row["resume_id"],
            job_text=row["job_text"],
            candidate_text=row["resume_text"],
            level=row["fit"],
            explanation=row["explanation"],
            confidence=row["confidence"],
            requirements=[Requirement(said, None, None, None) for said in row["evidence"]],
        )
        for row in map(json.loads, OPEN_DATA.read_text().splitlines())
    ]

    def share(rules: Rules) -> float:
        return sum(not failed for failed in rules.judge(pairs, LEVELS).values()) / len(pairs)

    assert share(Rules()) < 0.05  # it paraphrases
    assert share(Rules(evidence_verbatim=False)) > 0.95
    assert share(Rules(evidence_verbatim=False, min_agreement=0.8)) == 0  # there are no votes
    supported, strict = (share(Rules(evidence_verbatim=False, min_support=least)) for least in (0.3, 0.6))
    assert 0 < strict < supported < 1
    # Another pair's texts support the same words less.
    others = [*pairs[7:], *pairs[:7]]
    own, foreign = (
        sum(support(said, side.candidate_text, side.job_text) for pair, side in sides for said in pair.evidence())
        for sides in (zip(pairs, pairs, strict=True), zip(pairs, others, strict=True))
    )
    assert own > 1.3 * foreign
