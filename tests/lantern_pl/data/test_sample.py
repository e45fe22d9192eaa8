import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lantern_pl.data import sample
from lantern_pl.data.command import data_command
from lantern_pl.data.records import read_pairs
from lantern_pl.data.sample import make_pairs, write_sample
from lantern_pl.data.sample_texts import RANKS, write_candidate, write_job
from lantern_pl.data.splits import split_pairs
from lantern_pl.errors import UserError
from lantern_pl.tasks import Task
from lantern_pl.tasks.job_fit import OCCUPATIONS, SKILLS
from lantern_pl.tasks.reading import read_candidate, read_job
from lantern_pl.tasks.rubric import Rubric

VOCABULARY = Rubric().vocabulary


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 2**32), st.sampled_from(OCCUPATIONS), st.sampled_from([0.1, 0.5, 0.9]))
def test_the_rubric_reads_from_every_text_the_facts_that_it_was_written_from(seed, occupation, quality) -> None:
    rng = Random(seed)
    job = sample._draw_job(occupation, rng)
    text = write_job(job, rng)
    asked = read_job(text, VOCABULARY)
    assert {r.name for r in asked if r.kind == "must"} == set(job.must)
    assert {r.name for r in asked if r.kind == "nice"} == set(job.nice)
    assert [r.amount for r in asked if r.kind == "years"] == [job.years]
    ranks = [r.name for r in asked if r.kind == "seniority"]
    assert ranks == [RANKS[job.rank]] or (not ranks and RANKS[job.rank] == "mid-level")
    assert len(text.split()) <= 90

    candidate = sample._draw_candidate(job, quality, rng)
    text = write_candidate(candidate, rng)
    claims = read_candidate(text, VOCABULARY)
    assert set(claims.skills) == set(candidate.skills)
    assert claims.years is not None
    assert claims.years.amount == candidate.years
    assert claims.seniority is None or RANKS[int(claims.seniority.amount)] == RANKS[candidate.rank]
    assert claims.seniority is not None or RANKS[candidate.rank] == "mid-level"
    for evidence in (*claims.skills.values(), claims.years.evidence):
        assert evidence in text
    assert len(text.split()) <= 110


def test_the_lexicon_is_varied_and_without_ambiguity() -> None:
    assert len(OCCUPATIONS) >= 8
    assert len(SKILLS) >= 60
    spellings = Counter(form.lower() for name, forms in SKILLS.items() for form in (name, *forms))
    assert [form for form, count in spellings.items() if count > 1] == []
    assert {skill for occupation in OCCUPATIONS for skill in occupation.skills} <= set(SKILLS)


@pytest.mark.parametrize(("count", "seed"), [(200, 0), (200, 1), (1000, 2)])
def test_levels_are_roughly_balanced(count: int, seed: int) -> None:
    levels = Counter(pair["level"] for pair in make_pairs(count, seed))
    assert set(levels) == set(Task().levels)
    assert all(0.2 <= number / count <= 0.5 for number in levels.values())


def test_fewer_pairs_are_the_first_of_more() -> None:
    assert make_pairs(100, 0)[:21] == make_pairs(21, 0)


def test_another_seed_makes_other_texts_under_other_ids() -> None:
    for field in ("job_text", "candidate_text", "job_id", "candidate_id", "pair_id"):
        of_seed = [{pair[field] for pair in make_pairs(100, seed)} for seed in (0, 1)]
        assert not of_seed[0] & of_seed[1]


def test_a_count_that_makes_no_sense() -> None:
    with pytest.raises(UserError, match="asked for 0 pairs"):
        make_pairs(0, 0)


def test_pairs_can_be_read_and_split_without_loss(tmp_path: Path) -> None:
    write_sample(tmp_path, make_pairs(200, 0), 0)
    pairs = read_pairs(tmp_path / "pairs.jsonl", Task())
    assert len(pairs) == 200
    assert all(pair.level and pair.explanation and pair.level_probs for pair in pairs)
    splits = split_pairs(pairs, 0.1, 0.1, 0)
    assert not splits.dropped
    assert {len(splits.val), len(splits.test)} <= {16, 24}


def test_words_alone_do_not_tell_the_level() -> None:
    """Some candidates name a required skill only to say that they wish for it, or that others have it."""
    named_but_lacking: Counter[str] = Counter()
    for pair in make_pairs(400, 0):
        text = pair["candidate_text"]
        asked = {r.name for r in read_job(pair["job_text"], VOCABULARY)}
        lacking = asked - set(read_candidate(text, VOCABULARY).skills)
        for sentence in text.split(". "):
            if lacking & {name for name, _ in VOCABULARY.find(sentence, (0, len(sentence)))}:
                others = any(word in sentence for word in ("team", "group", "supplier", "talk"))
                named_but_lacking["others" if others else "wishes"] += 1
    assert named_but_lacking["wishes"] > 80
    assert named_but_lacking["others"] > 40


def test_the_same_seed_gives_the_same_bytes_in_another_process_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from lantern_pl.data.command import data_command;"
        "data_command(['sample', '--pairs', '100', '--seed', '5', '--out', sys.argv[1]]);"
        "assert 'torch' not in sys.modules"
    )
    files = []
    for seed in ("1", "2"):
        out = tmp_path / seed
        env = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, str(out)], env=env, check=True)
        files.append([(out / name).read_bytes() for name in ("pairs.jsonl", "README.md")])
    assert files[0] == files[1]
    lines = files[0][0].decode().splitlines()
    assert [json.loads(line) for line in lines] == make_pairs(100, 5)


def run(*arguments: str) -> None:
    assert data_command(["sample", *arguments]) == 0


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "folder"
    run("--pairs", "40", "--seed", "3", "--out", str(out))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0] == f"Wrote {out / 'pairs.jsonl'}: 40 pairs of 10 jobs and 20 candidates, seed 3"
    digest = hashlib.sha256((out / "pairs.jsonl").read_bytes()).hexdigest()
    assert lines[2] == f"sha256 {digest}"
    readme = (out / "README.md").read_text()
    assert digest in readme
    assert "--pairs 40 --seed 3" in readme
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "pairs.jsonl"]


def test_the_same_data_again_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--pairs", "8", "--out", str(tmp_path))
    before = (tmp_path / "pairs.jsonl").stat()
    capsys.readouterr()
    run("--pairs", "8", "--out", str(tmp_path))
    assert capsys.readouterr().out.startswith("Already there: ")
    assert (tmp_path / "pairs.jsonl").stat().st_mtime_ns == before.st_mtime_ns


def test_other_data_are_replaced_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("mine\n")
    with pytest.raises(UserError, match="holds other data: choose another --out, or add --overwrite"):
        run("--pairs", "8", "--out", str(tmp_path))
    assert (tmp_path / "pairs.jsonl").read_text() == "mine\n"
    run("--pairs", "8", "--out", str(tmp_path), "--overwrite")
    assert len(read_pairs(tmp_path / "pairs.jsonl", Task())) == 8


def test_a_readme_that_got_lost_is_written_again(tmp_path: Path) -> None:
    run("--pairs", "8", "--out", str(tmp_path))
    (tmp_path / "README.md").unlink()
    run("--pairs", "8", "--out", str(tmp_path))
    assert (tmp_path / "README.md").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't write sample data to"):
        run("--pairs", "8", "--out", str(tmp_path / "file"))


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        data_command(["sample", "--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    for part in ("--pairs N", "--seed S", "--out DIR", "--overwrite", "lantern data sample --pairs 200"):
        assert part in text
