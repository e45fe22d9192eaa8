import pytest
from hypothesis import given
from hypothesis import strategies as st

from lantern_pl.tasks.reading import Vocabulary, read_candidate, read_job
from lantern_pl.tasks.rubric import Rubric

VOCABULARY = Rubric().vocabulary


def asked(text: str) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for requirement in read_job(text, VOCABULARY):
        kinds.setdefault(requirement.kind, []).append(requirement.name)
    return kinds


def skills(text: str) -> set[str]:
    return set(read_candidate(text, VOCABULARY).skills)


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("Must have: Python and k8s.", {"must": ["Python", "Kubernetes"]}),
        ("You need Python. Kafka would be a plus.", {"must": ["Python"], "nice": ["Kafka"]}),
        ("Python required; ideally Kafka.", {"must": ["Python"], "nice": ["Kafka"]}),
        ("Requirements:\n- Python\n- Docker\n\nAbout us: Kafka people.", {"must": ["Python", "Docker"]}),
        ("Nice to have:\n* Go\nRequired: SQL.", {"must": ["SQL"], "nice": ["Go"]}),
        # without a mark, all that is named is asked
        ("We build things in Python on AWS.", {"must": ["Python", "AWS"]}),
        ("We build things in Python. Bonus: AWS.", {"must": ["Python"], "nice": ["AWS"]}),
        # with one, the rest is only told
        ("We build things in Python. AWS is required.", {"must": ["AWS"]}),
        ("Python must be known. Kafka is not required.", {"must": ["Python"]}),
        ("Python is required. Python is a plus.", {"must": ["Python"]}),
        ("Python is a plus. We love Python.", {"nice": ["Python"]}),
        ("Skills: Python, Quantum Knitting", {"must": ["Python", "Quantum Knitting"]}),
        ("Engineer (Senior)\nAt least five years.", {"years": ["5 years"], "seniority": ["senior"]}),
        ("Lead Data Engineer, 7+ years, SQL", {"must": ["SQL"], "years": ["7 years"], "seniority": ["lead"]}),
        ("A firm with 30 years of history needs SQL.", {"must": ["SQL"]}),
        ("", {}),
    ],
)  # fmt: skip
def test_what_a_job_asks(text: str, kinds: dict[str, list[str]]) -> None:
    assert asked(text) == kinds


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Ran k8s and GOLANG services.", {"Kubernetes", "Go"}),
        ("JavaScript, React Native, NoSQL", {"JavaScript", "React Native", "NoSQL"}),
        ("Java, React, SQL", {"Java", "React", "SQL"}),
        ("C++ and R", {"C++", "R"}),
        ("R# and Go++", set()),
        ("Helped us go to market, excel and react to a spark of rust.", set()),
        ("Looking to learn Python.", set()),
        ("Managed a team that used Kafka.", set()),
        ("I haven't used Docker, but I know Terraform well.", {"Terraform"}),
        ("Assisted colleagues with SAP. Did payroll myself.", {"Payroll"}),
        ("No experience with AWS; five years of Azure", {"Azure"}),
        ("Attended a talk on RAG.", set()),
        ("PoſtgreSQL for ſix years as Aſſiſtant or ſenior engineer", set()),
    ],
)
def test_which_skills_a_candidate_claims(text: str, found: set[str]) -> None:
    assert skills(text) == found


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("Six years of Python, then two years of Go.", (6, "Six years of Python")),
        ("Over 12+ years in banks", (12, "12+ years")),
        ("Joined a firm with 40 years of history three years ago.", None),
        ("Worked 2015-2018 and 2017 to 2021.", (6, "2015-2018")),
        ("Education: PhD, 2010-2015\nEngineer (2016-2018)", (2, "2016-2018")),
        ("Engineer.", None),
    ],
)
def test_how_many_years_a_candidate_claims(text: str, years: tuple[float, str] | None) -> None:
    claim = read_candidate(text, VOCABULARY).years
    assert (None if claim is None else (claim.amount, claim.evidence)) == years


@pytest.mark.parametrize(
    ("text", "rank"),
    [
        ("Junior Developer, then Senior Backend Engineer", "Senior Backend Engineer"),
        ("Mentored 5 junior engineers", None),
        ("Reported to the lead engineer", None),
        ("Experienced ward nurse", "Experienced ward nurse"),
        ("I lead by example", None),
    ],
)
def test_which_seniority_a_candidate_claims(text: str, rank: str | None) -> None:
    claim = read_candidate(text, VOCABULARY).seniority
    assert (None if claim is None else claim.evidence) == rank


def test_evidence_is_the_words_that_lead_to_the_skill() -> None:
    claims = read_candidate("At Acme, we ran all services on k8s and Docker. I like tea.", VOCABULARY)
    assert claims.skills["Kubernetes"] == "all services on k8s"
    assert claims.evidence("tea") == "I like tea"
    assert claims.evidence("coffee") is None


@given(st.text(alphabet=st.sampled_from('aK8s Pythn,.;:()"\n-İßé😀5years')), st.text(alphabet='Python k8s."\n,;:()'))
def test_evidence_is_always_verbatim_and_never_breaks_the_quotes(noise: str, more: str) -> None:
    text = f"{noise} Python {more} k8s {noise} 5 years"
    claims = read_candidate(text, VOCABULARY)
    found = [*claims.skills.values(), *([claims.years.evidence] if claims.years else [])]
    for evidence in found:
        assert evidence in text
        assert '"' not in evidence


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    read_job(text, VOCABULARY)
    read_candidate(text, VOCABULARY)


def test_the_longest_spelling_wins() -> None:
    vocabulary = Vocabulary({"React": (), "React Native": ("RN",)})
    text = "React, React Native, rn"
    assert [name for name, _ in vocabulary.find(text, (0, len(text)))] == ["React", "React Native", "React Native"]
