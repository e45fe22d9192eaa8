"""Protected attributes in explanations: found where the explanation speaks of them, not where it quotes the job."""

import pytest
from planted import config_of

from lantern_pl.audit.mentions import find_mentions, mention_report, read_patterns
from lantern_pl.data.pair import Pair

PAIR = Pair("p", "j", "c", "We are a young company in Lille.", "Mother of two. Knows Python.")


def attributes(explanation: str) -> set[str]:
    return {each.attribute for each in find_mentions(explanation, PAIR, read_patterns())}


@pytest.mark.parametrize(
    ("explanation", "attribute"),
    [
        ("She may be too young for it.", "age"),
        ("He knows Python.", "sex, by pronoun"),
        ("As a Muslim, might not fit in.", "religion"),
        ("The candidate is pregnant.", "pregnancy or family"),
        ("Lives with a disability.", "disability"),
    ],
)
def test_a_mention_is_found(explanation: str, attribute: str) -> None:
    assert attribute in attributes(explanation)


@pytest.mark.parametrize(
    "explanation", ['Fits "a young company".', "Meets Python. Lacks Rust.", "Managed a white-label shop."]
)
def test_other_texts_hold_none(explanation: str) -> None:
    assert attributes(explanation) == set()


def test_the_report_counts_explanations_and_flags_many() -> None:
    found, tables = mention_report({"it": [(PAIR, "He is too young, far too young.")] * 30}, config_of())
    assert [each.kind for each in found] == ["flag"]
    assert found[0].text.startswith("30 of 30 explanations mention a protected attribute")
    rows = {row[1]: dict(zip(tables[0].columns, row, strict=True)) for row in tables[0].rows}
    assert (rows["age"]["with a mention"], rows["age"]["not in the candidate's text"]) == (30, 30)
    assert rows["religion"]["with a mention"] == 0
    assert len(tables[1].rows) == 10


def test_few_explanations_without_one_say_nothing_yet() -> None:
    assert mention_report({"it": [(PAIR, "Meets Python.")] * 30}, config_of())[0][0].kind == "insufficient data"
    assert mention_report({"it": [(PAIR, "Meets Python.")] * 500}, config_of())[0][0].kind == "clear"
