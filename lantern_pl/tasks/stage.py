"""A stage: one question of a task that an LLM is asked; and the questions of job fit."""

from dataclasses import dataclass
from typing import Any

TEXTS = ("job_text", "candidate_text")
"""The two texts of a pair, which stages read."""


@dataclass(frozen=True)
class Stage:
    """One question: what is shown, what is asked, and what the answer's fields are."""

    name: str
    """What later stages call its answer: small letters, digits and _."""
    reads: list[str]
    """What it is shown, in order: of job_text, candidate_text and the names of earlier stages."""
    sections: list[str]
    """Names of the guide's sections that its prompt holds, in order."""
    ask: str
    """The question itself, which comes last."""
    output: dict[str, Any]
    """The answer's fields, in order, each with its kind; `lantern_pl.tasks.schema` lists the kinds."""
    max_tokens: int = 1024
    """How long the answer may be."""


JOB_FIT_SECTIONS = {
    "task": """\
You help a recruiter to find out how well a candidate fits a job. One step is asked at a time. Rely on the given texts \
alone. Name, gender, age, origin, family, health and religion never count, nor does writing style.""",
    "job_information": """\
- A requirement is one thing that the job asks of a person: a skill, tool, qualification, licence, language, years of \
experience, seniority. Take lists apart: one requirement each.
- Keep the job's own words, in short: "Python", "5 years in sales".
- kind is nice where the job softens it ("a plus", "preferred", "ideally"), otherwise must.
- Leave out duties that name no skill, benefits, what the company says of itself, and what the job says isn't needed.""",
    "evaluation": """\
- met: the candidate's text shows the requirement, also in other words ("Postgres" for PostgreSQL) or by work that needs it.
- partly: something close to it, or less than asked, such as fewer years.
- unmet: not shown, only wished for ("keen to learn"), or done by others ("a team that used it").
- The level is one of {levels}, from the worst fit to the best. Best: all or nearly all musts are met. Worst: most musts \
are unmet. Between: in proportion. What is nice to have only decides between two neighbouring levels.
- confidence is the probability that a careful recruiter would choose the same level.""",
    "reasoning": """\
- Take the requirements one by one; the level follows from the verdicts, never the other way round.
- What is met or partly met rests on evidence: a few words copied from the candidate's text. Without evidence it is unmet.
- Don't guess at what the text leaves out. In doubt between two verdicts, take the lower one.""",
    "output": """\
- Answer with one JSON object of the form that is asked: nothing before or after it, no code fence, no other fields.
- A quote is one unbroken passage of 2 to 15 words, copied exactly: same spelling, case and punctuation, nothing left \
out.""",
}
"""The five sections of the paper's prompts (arXiv 2510.05490): task instruction, job information extraction guidelines,
evaluation guidelines, reasoning guidelines and output guidelines."""

_JUDGED = {"verdict": "met | partly | unmet", "evidence": "quote of candidate_text unless verdict = unmet"}
_EXPLAIN = (
    "in 2 to 5 sentences, for a recruiter, why the fit is what it is: what is met, with short quotes of the candidate "
    "in single quotation marks, and what is missing. Name the requirements; no advice"
)

DECOMPOSED = (
    Stage(
        name="requirements",
        reads=["job_text"],
        sections=["task", "job_information", "output"],
        ask="List the job's requirements, each once, in the order of the job.",
        output={"requirements": {"list": {"requirement": "text", "kind": "must | nice"}}},
    ),
    Stage(
        name="facts",
        reads=["candidate_text"],
        sections=["task", "output"],
        ask=(
            "List the facts about the candidate that matter for jobs: skills, tools, experience with its years, roles with "
            "their seniority, education, licences, languages. One fact each, in a few words, with the quote that states "
            "it. Leave out wishes, and what others did."
        ),
        output={"facts": {"list": {"fact": "text", "evidence": "quote of candidate_text"}}},
    ),
    Stage(
        name="judge",
        reads=["requirements", "facts", "candidate_text"],
        sections=["task", "evaluation", "reasoning", "output"],
        ask=(
            "Give a verdict with evidence for every requirement, in the given order and wording, then the level and your "
            "confidence."
        ),
        output={
            "requirements": {"list": {"requirement": "text", **_JUDGED}, "for_each": "requirements"},
            "level": "level",
            "confidence": "share",
        },
        max_tokens=1536,
    ),
    Stage(
        name="explain",
        reads=["requirements", "judge", "candidate_text"],
        sections=["task", "reasoning", "output"],
        ask=f"Keep to the verdicts and the level of the judge. Explain {_EXPLAIN}.",
        output={"explanation": "text"},
        max_tokens=512,
    ),
)
"""Job fit in four questions. The first is asked once per job and the second once per candidate."""

SINGLE = (
    Stage(
        name="judge",
        reads=["job_text", "candidate_text"],
        sections=["task", "job_information", "evaluation", "reasoning", "output"],
        ask=(
            "List the job's requirements in the order of the job, each with a verdict and evidence. Then give the level "
            f"and your confidence. Then explain {_EXPLAIN}."
        ),
        output={
            "requirements": {"list": {"requirement": "text", "kind": "must | nice", **_JUDGED}},
            "level": "level",
            "confidence": "share",
            "explanation": "text",
        },
        max_tokens=2048,
    ),
)
"""Job fit in one question per pair."""
