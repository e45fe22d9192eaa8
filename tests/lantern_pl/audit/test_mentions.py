"""Protected attributes in explanations: found where the explanation speaks of them, not where it quotes the job."""

import pytest
from planted import config_of
from scipy import stats

from lantern_pl.audit.findings import Comparison, Table, correct
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


def report(with_one: int, without: int) -> tuple[Comparison, list[Table]]:
    """Of so many explanations with a mention, and so many without."""
    explained = [(PAIR, "He is too young, far too young.")] * with_one + [(PAIR, "Meets Python.")] * without
    (found,), tables = mention_report({"it": explained}, config_of())
    correct([found])
    return found, tables


def test_the_report_counts_explanations_and_flags_many() -> None:
    found, tables = report(30, 0)
    assert found.kind(0.95) == "flag"
    assert found.sentence == "30 of 30 explanations mention a protected attribute"
    rows = {row[1]: dict(zip(tables[0].columns, row, strict=True)) for row in tables[0].rows}
    assert (rows["age"]["with a mention"], rows["age"]["not in the candidate's text"]) == (30, 30)
    assert rows["religion"]["with a mention"] == 0
    assert len(tables[1].rows) == 10


def test_few_explanations_without_one_say_nothing_yet() -> None:
    assert report(0, 30)[0].kind(0.95) == "insufficient data"
    assert report(0, 500)[0].kind(0.95) == "clear"


@pytest.mark.parametrize("count", [16, 40, 300])
def test_a_rate_at_the_threshold_is_flagged_no_more_often_than_it_may_be(count: int) -> None:
    """One mention in 16 comes by chance in 15 % of audits of a model that mentions in one explanation of a hundred."""
    flagged = [with_one for with_one in range(8) if report(with_one, count - with_one)[0].kind(0.95) == "flag"]
    assert sum(stats.binom.pmf(with_one, count, 0.01) for with_one in flagged) < 0.05
    assert flagged
