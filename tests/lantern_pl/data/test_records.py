import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lantern_pl.data.pair import Pair
from lantern_pl.data.records import fingerprint, normalised, read_pairs
from lantern_pl.errors import UserError
from lantern_pl.tasks import Task

TASK = Task()
JOB_FIT_OPEN = Path(__file__).parents[4] / "shared" / "data" / "job_fit_open" / "pairs.jsonl"


def row(number: int = 0, **fields: Any) -> dict[str, Any]:
    return {"job_text": f"job {number}", "candidate_text": f"candidate {number}"} | fields


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(tmp_path: Path, *rows: Any) -> list[Pair]:
    return read_pairs(write(tmp_path / "pairs.jsonl", *rows), TASK)


def complaint(tmp_path: Path, *rows: Any) -> str:
    with pytest.raises(UserError) as error:
        read(tmp_path, *rows)
    return str(error.value)


def test_a_full_row(tmp_path: Path) -> None:
    full = row(pair_id="p", job_id="j", candidate_id=7, level="high", explanation="Fits.", confidence=0.8, other=[1])
    assert read(tmp_path, full) == [
        Pair("p", "j", "7", "job 0", "candidate 0", "high", "Fits.", pytest.approx((0.1, 0.1, 0.8)))
    ]


def test_a_row_needs_only_the_texts(tmp_path: Path) -> None:
    (pair,) = read(tmp_path, row(level=None, votes=None))
    assert (pair.level, pair.explanation, pair.level_probs) == (None, None, None)
    assert pair.pair_id
    assert pair.job_id
    assert pair.candidate_id


def test_made_ids_are_the_same_for_the_same_text(tmp_path: Path) -> None:
    one, other = read(
        tmp_path,
        {"job_text": "Some  Job", "candidate_text": "A"},
        {"job_text": "some job\n", "candidate_text": "B"},
    )
    assert one.job_id == other.job_id
    assert one.candidate_id != other.candidate_id
    assert one.pair_id != other.pair_id


@pytest.mark.parametrize("blank", ["", "  ", "\n\t"])
def test_a_blank_explanation_is_none(tmp_path: Path, blank: str) -> None:
    (pair,) = read(tmp_path, row(explanation=blank))
    assert pair.explanation is None


def test_other_names_of_the_fields(tmp_path: Path) -> None:
    (pair,) = read(tmp_path, {"job_text": "j", "resume_text": "r", "resume_id": "r1", "fit": "low"})
    assert (pair.candidate_text, pair.candidate_id, pair.level) == ("r", "r1", "low")


def test_a_name_and_its_other_name_may_agree(tmp_path: Path) -> None:
    assert read(tmp_path, row(level="low", fit="low"))[0].level == "low"


def test_blank_lines_and_a_byte_order_mark_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row(0)).encode() + b"\n\n" + json.dumps(row(1)).encode())
    assert len(read_pairs(path, TASK)) == 2


def test_a_line_separator_in_a_text_does_not_end_the_line(tmp_path: Path) -> None:
    assert read(tmp_path, row(job_text="one\u2028two"))[0].job_text == "one\u2028two"


@pytest.mark.parametrize(
    ("fields", "probs", "level"),
    [
        ({"votes": {"low": 1, "high": 3}, "level": "high"}, (0.25, 0, 0.75), "high"),
        ({"votes": {"low": 1, "high": 3}, "level": "high", "confidence": 0.4}, (0.25, 0, 0.75), "high"),
        ({"votes": {"low": 2, "medium": 2}}, (0.5, 0.5, 0), "low"),
        ({"votes": {"low": None, "high": 2.0}}, (0, 0, 1), "high"),
        ({"level": "medium", "confidence": 0.6}, (0.2, 0.6, 0.2), "medium"),
        ({"level": "medium", "confidence": 1}, (0, 1, 0), "medium"),
        # no confidence at all is knowing nothing, not knowing that it is another level
        ({"level": "medium", "confidence": 0.0}, (1 / 3, 1 / 3, 1 / 3), "medium"),
        ({"level": "medium"}, None, "medium"),
        ({"level": "medium", "votes": {"low": None, "high": None}}, None, "medium"),
    ],
)
def test_votes_and_confidence(tmp_path: Path, fields: dict, probs: tuple | None, level: str) -> None:
    (pair,) = read(tmp_path, row(**fields))
    assert pair.level_probs == (None if probs is None else pytest.approx(probs))
    assert pair.level == level


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([1, 2], ["expected an object", "a list"]),
        ({"job_text": "j"}, ["candidate_text (or resume_text) is missing", "'job_text'"]),
        ({"candidate_text": "c"}, ["job_text is missing"]),
        (row(job_text=3), ["job_text is a number, expected text"]),
        (row(candidate_text=["c"]), ["candidate_text is a list, expected text"]),
        (row(job_text=" \n"), ["job_text is blank"]),
        (row(job_text="x\ud800"), ["job_text", "surrogate"]),
        (row(level="hihg"), ["'hihg'", "Did you mean 'high'?"]),
        (row(level=3), ["level is a number, expected text"]),
        (row(explanation={}), ["explanation is an object, expected text"]),
        (row(pair_id=True), ["pair_id is true or false, expected text"]),
        (row(job_id=" "), ["job_id is blank"]),
        (row(level="low", fit="high"), ["level and its other name fit have different values"]),
        (row(resume_text="other"), ["candidate_text and its other name resume_text"]),
        (row(votes=[1]), ["votes is a list", "{'low': 1}"]),
        (row(votes={"lo": 1}), ["unknown level 'lo'", "Did you mean 'low'?"]),
        (row(votes={"low": -1}), ["votes for low is -1"]),
        (row(votes={"low": "1"}), ["votes for low is '1'"]),
        (row(votes={"low": True}), ["votes for low is True"]),
        (row(votes={"low": float("nan")}), ["votes for low is nan"]),
        (row(votes={"low": 0}), ["all zero"]),
        (row(level="low", confidence=1.2), ["confidence is 1.2, expected a number from 0 to 1"]),
        (row(level="low", confidence=-0.1), ["confidence is -0.1"]),
        (row(level="low", confidence=float("nan")), ["confidence is nan"]),
        (row(level="low", confidence="0.5"), ["confidence is '0.5'"]),
        (row(confidence=0.5), ["confidence without a level"]),
    ],
)
def test_a_bad_row_is_named_with_its_line_and_what_was_expected(tmp_path: Path, bad: Any, words: list[str]) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row(1)) + "\n" + json.dumps(bad) + "\n")
    with pytest.raises(UserError) as error:
        read_pairs(path, TASK)
    message = str(error.value)
    assert f"{path}:2: " in message
    for part in words:
        assert part in message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"job_text": "j", ', "isn't valid JSON"),
        (b'{"job_text": "caf\xe9"}', "isn't UTF-8 (byte 17 of the line)"),
        (b"[" * 100_000, "isn't readable JSON"),
        (b'{"job_text": ' + b"9" * 5000 + b"}", "isn't readable JSON"),
    ],
)
def test_a_line_that_cannot_be_decoded(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(json.dumps(row()).encode() + b"\n" + line + b"\n")
    with pytest.raises(UserError) as error:
        read_pairs(path, TASK)
    assert f"{path}:2: " in str(error.value)
    assert words in str(error.value)


def test_a_pair_id_that_comes_twice_names_both_lines(tmp_path: Path) -> None:
    message = complaint(tmp_path, row(0, pair_id="p"), row(1, pair_id="q"), row(2, pair_id="p"))
    assert "pairs.jsonl:3: has the same pair_id as " in message
    assert "pairs.jsonl:1;" in message


@pytest.mark.parametrize("name", ["job", "candidate"])
def test_an_id_that_stands_for_two_texts_names_both_lines(tmp_path: Path, name: str) -> None:
    """What a teacher reads once for each id would be taken for the wrong text."""
    same = {"job_text": "A job.", "candidate_text": "A person.", "job_id": "j", "candidate_id": "c"}
    other = {**same, f"{name}_text": "Something else.", "pair_id": "other"}
    message = complaint(tmp_path, same, {**row(1), "job_id": "k", "candidate_id": "d"}, other)
    assert f"pairs.jsonl:3: has the same {name}_id as " in message
    assert "pairs.jsonl:1, but another text" in message
    assert "Something" not in message
    spaced = {**other, f"{name}_text": same[f"{name}_text"].replace(" ", "  ")}
    assert len(read(tmp_path, same, spaced)) == 2


def test_a_pair_that_comes_twice_without_ids(tmp_path: Path) -> None:
    assert "has the same job and candidate as " in complaint(tmp_path, row(0), row(0))


def test_the_first_five_problems_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    message = complaint(tmp_path, *[row(i, level="bad") for i in range(8)])
    assert message.startswith("8 of the rows")
    assert "pairs.jsonl:5: " in message
    assert "pairs.jsonl:6: " not in message
    assert "and 3 more" in message


def test_messages_never_quote_the_texts(tmp_path: Path) -> None:
    secret = "Jane Roe of 12 Elm Street"
    for bad in (row(candidate_text=secret, level="x"), row(candidate_text=secret, fit=3), {"resume_text": secret}):
        assert "Roe" not in complaint(tmp_path, bad)
    path = tmp_path / "pairs.jsonl"
    path.write_text(f'{{"job_text": "{secret}')
    with pytest.raises(UserError) as error:
        read_pairs(path, TASK)
    assert "Roe" not in str(error.value)


def test_a_missing_file_says_how_to_make_sample_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"lantern data sample --pairs 200 --seed 0 --out {tmp_path}$"):
        read_pairs(tmp_path / "pairs.jsonl", TASK)


def test_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no pairs"):
        read(tmp_path)


def test_an_unknown_suffix(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("job_text,candidate_text\n")
    with pytest.raises(UserError, match=r"'\.csv'; expected a \.jsonl or \.parquet file"):
        read_pairs(tmp_path / "pairs.csv", TASK)


def test_a_folder_that_holds_neither_kind(tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", row())
    with pytest.raises(UserError, match=r"neither .* did you mean .*pairs\.jsonl\?"):
        read_pairs(tmp_path, TASK)


ROWS = [
    row(0, level="low", votes={"low": 3, "medium": 1}, explanation=None, pair_id="a"),
    row(1, level="high", votes={"high": 2}, explanation="Größe ✓", pair_id="b"),
    row(2, pair_id="c"),
]


def test_every_kind_of_file_gives_the_same_pairs(tmp_path: Path) -> None:
    pairs = read(tmp_path, *ROWS)
    data = datasets.Dataset.from_list(ROWS)
    (tmp_path / "parts").mkdir()
    data.to_parquet(str(tmp_path / "all.parquet"))
    data.select([0]).to_parquet(str(tmp_path / "parts" / "0.parquet"))
    data.select([1, 2]).to_parquet(str(tmp_path / "parts" / "1.parquet"))
    data.save_to_disk(str(tmp_path / "saved"))
    for name in ("all.parquet", "parts", "saved"):
        assert read_pairs(tmp_path / name, TASK) == pairs


def test_a_bad_row_of_a_table_is_named_with_its_number(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([row(0, level="low"), row(1, level="best")])
    pq.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"p\.parquet: row 1: level 'best'"):
        read_pairs(tmp_path / "p.parquet", TASK)


def test_a_broken_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="isn't a readable parquet file"):
        read_pairs(tmp_path / "p.parquet", TASK)


def test_a_folder_of_several_data_sets_names_one_of_them(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(UserError, match=r"several data sets: give one of them, such as .*d/train$"):
        read_pairs(tmp_path / "d", TASK)


def test_levels_are_those_of_the_task(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", row(level="3", confidence=0.6))
    (pair,) = read_pairs(path, Task(levels=["1", "2", "3", "4", "5"]))
    assert pair.level_probs == pytest.approx((0.1, 0.1, 0.6, 0.1, 0.1))


@pytest.mark.skipif(not JOB_FIT_OPEN.exists(), reason="the job_fit_open pairs aren't here")
def test_files_of_others_load_as_they_are() -> None:
    pairs = read_pairs(JOB_FIT_OPEN, TASK)
    assert len(pairs) == 480
    for pair in pairs:
        assert pair.level_probs is not None
        assert sum(pair.level_probs) == pytest.approx(1)
        assert pair.level_probs[TASK.levels.index(pair.level)] == max(pair.level_probs)


@given(st.permutations(range(5)))
def test_the_fingerprint_is_blind_to_order(order: list[int]) -> None:
    pairs = [Pair(str(i), "j", "c", f"job {i}", "candidate") for i in range(5)]
    assert fingerprint(pairs[i] for i in order) == fingerprint(pairs)


@pytest.mark.parametrize("field", ["pair_id", "job_text", "candidate_text", "level", "explanation", "level_probs"])
def test_the_fingerprint_sees_every_field(field: str) -> None:
    fields: dict[str, Any] = row(pair_id="p", job_id="j", candidate_id="c")
    changed = fields | {field: (0.5, 0.5) if field == "level_probs" else "z"}
    assert fingerprint([Pair(**fields)]) != fingerprint([Pair(**changed)])


def test_fingerprint_and_made_ids_are_the_same_in_another_process(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", *[row(i, votes={"low": 1, "high": i}) for i in range(4)])
    code = (
        "import sys; from lantern_pl.data.records import *; p = read_pairs(sys.argv[1], Task());"
        "print(fingerprint(p), p[0].pair_id)"
    )
    pairs = read_pairs(path, TASK)
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", code, str(path)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.split() == [fingerprint(pairs), pairs[0].pair_id]


@given(st.text())
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)
