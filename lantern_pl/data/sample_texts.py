"""Writes the texts of the sample data: jobs and candidates from facts, in varied words.

What is drawn at random is the wording alone. The rules of `tasks.reading` must read the same facts back from every
text: a phrase that is added here is right when they do (a test compares them).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from lantern_pl.tasks.job_fit import NUMBER_WORDS, SENIORITY, SKILLS, Occupation

RANKS = tuple(SENIORITY)


@dataclass(frozen=True, slots=True)
class JobFacts:
    """What a job asks. `rank` is an index into RANKS; `elsewhere` is a skill of another team, which isn't asked."""

    occupation: Occupation
    must: tuple[str, ...]
    nice: tuple[str, ...]
    years: int
    rank: int
    elsewhere: str | None


@dataclass(frozen=True, slots=True)
class CandidateFacts:
    """What a candidate is. `wished` and `nearby` are skills that the text names though the candidate lacks them."""

    occupation: Occupation
    skills: tuple[str, ...]
    years: int
    rank: int
    wished: str | None
    nearby: str | None


# fmt: off
_COMPANY_FIRST = (
    "Alder", "Basalt", "Birch", "Bluefin", "Cobalt", "Copper", "Dune", "Ember", "Falcon", "Fjord", "Granite", "Harbour",
    "Heron", "Indigo", "Juniper", "Kestrel", "Larch", "Maple", "Meadow", "Nimbus", "Ochre", "Otter", "Pebble", "Quartz",
    "Raven", "Saffron", "Sierra", "Tundra", "Violet", "Willow",
)
_COMPANY_LAST = ("Group", "Labs", "Partners", "Works", "& Sons", "Collective", "Services", "Holding", "Union", "House")
_CITIES = (
    "Aarhus", "Bilbao", "Brno", "Cork", "Dresden", "Gdansk", "Ghent", "Graz", "Leeds", "Lille", "Lyon", "Malmo",
    "Porto", "Riga", "Tampere", "Tartu", "Trieste", "Turin", "Utrecht", "Varna",
)
_LANGUAGES = ("Danish", "Dutch", "English", "French", "German", "Italian", "Polish", "Portuguese", "Spanish", "Swedish")

_JOB_OPENINGS = (
    "{title}, {city}\n{company} looks after {domain} and is growing.",
    "{title} at {company}\nJoin us in {city} and shape {domain}.",
    "{company} is hiring: {title} ({city})\nYou would work on {domain}.",
    "{title}\nOur group in {city} is behind {domain} at {company}.",
)
_JOB_DUTIES = (
    "The work is varied and close to customers.", "You own projects from the first idea to the result.",
    "You work in a group of {n} people.", "We plan in short cycles and talk openly.", "Part of the week is remote.",
)
_JOB_MUSTS = (
    "Must have: {list}.", "Required: {list}.", "You bring {list}.", "You need {list}.", "We expect {list}.",
    "Requirements:\n{bullets}",
)
_JOB_YEARS = (
    "At least {years} years of experience.", "{years}+ years of experience required.",
    "You need {years} or more years on the job.",
)
_JOB_NICE = (
    "Nice to have: {list}.", "{list} would be a plus.", "Ideally you have seen {list}.", "Bonus: {list}.",
    "Experience in {list} is welcome.",
)
_JOB_ELSEWHERE = (
    "The office next door runs on {skill}.", "Another department looks after {skill}.",
    "{skill} is not part of this role.",
)

_CANDIDATE_OPENINGS = (
    "{title} with {years} of experience in {domain}.", "{title}, {years} in {domain}.",
    "I work as {title} and have spent {years} in {domain}.",
    "Profile: {title}. On the job for {years}, mostly {domain}.",
)
_CANDIDATE_DEEDS = ("At {company} I {deed}.", "For {company}, {deed}.", "{company}: {deed}.", "In {city}, I {deed}.")
_CANDIDATE_LISTS = (
    "Day to day: {list}.", "Skills: {list}.", "Solid in {list}.", "My tools of trade are {list}.",
    "Also strong in {list}.",
)
_CANDIDATE_WISHES = (
    "Looking to learn {skill} next.", "Keen to pick up {skill}.", "I hope to get into {skill} soon.",
    "I have not worked with {skill}.", "No experience in {skill} so far.",
)
_CANDIDATE_NEARBY = (
    "Managed a team that used {skill}.", "Sat beside a group who did {skill}.",
    "Worked with a supplier that knew {skill}.", "Attended a talk on {skill}.",
)
_CANDIDATE_REST = (
    "Lives in {city}.", "Speaks {language} and {other}.", "Free to start in {n} weeks.",
    "{company} is a firm with {n} years of history.", "Enjoys explaining things.", "Moved to {city} two years ago.",
)
# fmt: on


def write_job(facts: JobFacts, rng: Random) -> str:
    """A job advert of at most 90 words."""
    opening = [rng.choice(_JOB_OPENINGS).format(title=_title(facts.occupation, facts.rank, rng), **_places(facts, rng))]
    if rng.random() < 0.6:
        opening.append(rng.choice(_JOB_DUTIES).format(n=rng.randint(3, 15)))
    musts = [_spelling(skill, rng) for skill in facts.must]
    bullets = "\n".join(f"- {skill}" for skill in musts)
    asks = [rng.choice(_JOB_MUSTS).format(list=_list(musts), bullets=bullets)]
    asks.append(_capital(rng.choice(_JOB_YEARS).format(years=_count(facts.years, rng))))
    if facts.nice:
        asks.append(_capital(rng.choice(_JOB_NICE).format(list=_list([_spelling(skill, rng) for skill in facts.nice]))))
    if facts.elsewhere:
        asks.append(_capital(rng.choice(_JOB_ELSEWHERE).format(skill=_spelling(facts.elsewhere, rng))))
    rng.shuffle(asks)
    return "\n".join([" ".join(opening), *asks])


def write_candidate(facts: CandidateFacts, rng: Random) -> str:
    """A candidate's profile of at most 110 words."""
    opening = rng.choice(_CANDIDATE_OPENINGS).format(
        title=_title(facts.occupation, facts.rank, rng),
        years=f"{_count(facts.years, rng)} year{'s' if facts.years > 1 else ''}",
        domain=rng.choice(facts.occupation.domains),
    )
    spellings = [_spelling(skill, rng) for skill in facts.skills]
    told = rng.randint(min(1, len(spellings)), min(4, len(spellings)))
    deeds = rng.sample(facts.occupation.deeds, told)
    middle = [
        _capital(rng.choice(_CANDIDATE_DEEDS).format(deed=deed.format(skill=skill), **_places(facts, rng)))
        for deed, skill in zip(deeds, spellings, strict=False)
    ]
    if spellings[told:]:
        middle.append(rng.choice(_CANDIDATE_LISTS).format(list=_list(spellings[told:])))
    if facts.wished:
        middle.append(rng.choice(_CANDIDATE_WISHES).format(skill=_spelling(facts.wished, rng)))
    if facts.nearby:
        middle.append(rng.choice(_CANDIDATE_NEARBY).format(skill=_spelling(facts.nearby, rng)))
    language, other = rng.sample(_LANGUAGES, 2)
    middle.append(
        rng.choice(_CANDIDATE_REST).format(language=language, other=other, n=rng.randint(2, 12), **_places(facts, rng))
    )
    rng.shuffle(middle)
    return " ".join([opening, *middle])


def _places(facts: JobFacts | CandidateFacts, rng: Random) -> dict[str, str]:
    return {
        "company": f"{rng.choice(_COMPANY_FIRST)} {rng.choice(_COMPANY_LAST)}",
        "city": rng.choice(_CITIES),
        "domain": rng.choice(facts.occupation.domains),
    }


def _title(occupation: Occupation, rank: int, rng: Random) -> str:
    title = rng.choice(occupation.titles)
    if RANKS[rank] == "mid-level" and rng.random() < 0.5:
        return title  # which is read as mid-level
    return f"{_capital(rng.choice(SENIORITY[RANKS[rank]]))} {title}"


def _spelling(skill: str, rng: Random) -> str:
    """One of the skill's spellings, its name more often than any other."""
    return skill if rng.random() < 0.5 else rng.choice(SKILLS[skill])


def _count(number: int, rng: Random) -> str:
    return str(number) if number >= len(NUMBER_WORDS) or rng.random() < 0.5 else NUMBER_WORDS[number]


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
