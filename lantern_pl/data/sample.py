"""Sample data: seeded (candidate, job) pairs of our own text, labelled by the rubric.

Pairs come in blocks of 2 jobs x 4 candidates, joined by nothing outside the block, so a leak-free split loses none. A
candidate is made for one job of the block and is judged against both. Texts name skills by synonyms, and name some that
the candidate lacks ("keen to pick up Kafka"), so that matching words isn't enough.

The same seed gives the same bytes, and fewer pairs are the first ones of more. Ids name the seed: the pairs of one may test
what those of another taught.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from lantern_pl import __version__
from lantern_pl.data.sample_texts import RANKS, CandidateFacts, JobFacts, write_candidate, write_job
from lantern_pl.errors import UserError
from lantern_pl.private_files import write_private, write_private_text
from lantern_pl.tasks.job_fit import OCCUPATIONS, Occupation
from lantern_pl.tasks.reading import read_candidate, read_job
from lantern_pl.tasks.rubric import Rubric
from lantern_pl.tasks.task import Task

JOBS_PER_BLOCK = 2
CANDIDATES_PER_BLOCK = 4
BLOCK = JOBS_PER_BLOCK * CANDIDATES_PER_BLOCK

_YEARS_OF_RANK = ((2, 3), (3, 5), (5, 8), (7, 12))


def make_pairs(count: int, seed: int) -> list[dict[str, Any]]:
    """`count` labelled pairs in the schema of `data.records`, as plain JSON values."""
    if count < 1:
        raise UserError(f"asked for {count} pairs: give a number of at least 1")
    rubric, levels = Rubric(), Task().levels
    pairs = [pair for block in range(-(-count // BLOCK)) for pair in _make_block(block, seed, rubric, levels)]
    return pairs[:count]


def write_sample(out_dir: str | Path, pairs: Sequence[dict[str, Any]], seed: int, overwrite: bool = False) -> bool:
    """Write `out_dir/pairs.jsonl` and a README.md that says how they were made.

    Returns whether something was written: False where the very same data are there already.
    Raises UserError where other pairs are there and `overwrite` is false.
    """
    out = Path(out_dir)
    lines = "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs).encode()
    target = out / "pairs.jsonl"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if target.exists():
            same = target.read_bytes() == lines
            if same and (out / "README.md").exists():
                return False
            if not same and not overwrite:
                raise UserError(f"{target} holds other data: choose another --out, or add --overwrite to replace it")
        # The README goes last: it vouches for pairs that are there.
        write_private(target, lambda file: file.write(lines))
        write_private_text(out / "README.md", _readme(pairs, seed, hashlib.sha256(lines).hexdigest()))
    except OSError as error:
        raise UserError(f"can't write sample data to {out}: {error.strerror or error}") from error
    return True


def _make_block(block: int, seed: int, rubric: Rubric, levels: Sequence[str]) -> Iterator[dict[str, Any]]:
    rng = Random(f"{seed}/{block}")
    occupation = rng.choice(OCCUPATIONS)
    jobs = [_draw_job(occupation, rng) for _ in range(JOBS_PER_BLOCK)]
    job_texts = [write_job(job, rng) for job in jobs]
    # Each job in turn gets a candidate, of every quality in turn: so are the levels balanced.
    qualities = rng.sample((0.95, 0.85, 0.5, 0.1), CANDIDATES_PER_BLOCK)
    candidates = [_draw_candidate(jobs[i % JOBS_PER_BLOCK], quality, rng) for i, quality in enumerate(qualities)]
    asked = [read_job(text, rubric.vocabulary) for text in job_texts]
    for c, candidate in enumerate(candidates):
        candidate_text = write_candidate(candidate, rng)
        claims = read_candidate(candidate_text, rubric.vocabulary)
        for j, job_text in enumerate(job_texts):
            judgement = rubric.judge_read(asked[j], claims, levels)
            job_id = f"job-{seed}-{block * JOBS_PER_BLOCK + j:05}"
            candidate_id = f"candidate-{seed}-{block * CANDIDATES_PER_BLOCK + c:05}"
            yield {
                "pair_id": f"{job_id}--{candidate_id}",
                "job_id": job_id,
                "candidate_id": candidate_id,
                "job_text": job_text,
                "candidate_text": candidate_text,
                "level": judgement.level,
                "explanation": judgement.explanation,
                "confidence": round(judgement.confidence, 4),
            }


def _draw_job(occupation: Occupation, rng: Random) -> JobFacts:
    rank = rng.randrange(len(RANKS))
    must, nice = rng.randint(2, 4), rng.randint(0, 2)
    skills = rng.sample(occupation.skills, must + nice + 1)
    return JobFacts(
        occupation=occupation,
        must=tuple(skills[:must]),
        nice=tuple(skills[must:-1]),
        years=rng.randint(*_YEARS_OF_RANK[rank]),
        rank=rank,
        elsewhere=skills[-1] if rng.random() < 0.5 else None,
    )


def _draw_candidate(job: JobFacts, quality: float, rng: Random) -> CandidateFacts:
    """A candidate who has each asked skill, and enough years and rank, with probability `quality`."""
    asked = [*job.must, *job.nice]
    has = [skill for skill in asked if rng.random() < quality]
    lacks = [skill for skill in asked if skill not in has]
    others = [skill for skill in job.occupation.skills if skill not in asked]
    skills = has + rng.sample(others, rng.randint(1, 3))
    rng.shuffle(skills)
    rng.shuffle(lacks)
    enough = rng.random() < quality
    return CandidateFacts(
        occupation=job.occupation,
        skills=tuple(skills),
        years=job.years + rng.randint(0, 4) if enough else rng.randint(1, job.years - 1),
        rank=rng.randint(job.rank, len(RANKS) - 1) if enough else rng.randint(0, job.rank),
        wished=lacks[0] if lacks and rng.random() < 0.7 else None,
        nearby=lacks[1] if len(lacks) > 1 and rng.random() < 0.7 else None,
    )


def _readme(pairs: Sequence[dict[str, Any]], seed: int, digest: str) -> str:
    counts = Counter(pair["level"] for pair in pairs)
    table = "\n".join(f"| {level} | {counts[level]} |" for level in Task().levels)
    return f"""\
# Sample pairs

{len(pairs)} (candidate, job) pairs, written by a program: no real persons, no real employers.

Made by lantern-pl {__version__}:

    lantern data sample --pairs {len(pairs)} --seed {seed} --out DIR

Labelled by the `rubric` teacher, which matches rules: `level`, `explanation` and `confidence` show how the tools work
and are no judgement of anyone. A student can be right or wrong about them, since they follow from the texts.

| level | pairs |
|---|---|
{table}

sha256 of pairs.jsonl: {digest}
"""
