"""What is said of files whose pairs are also trained on."""

import json
from pathlib import Path

import pytest

from lantern_pl.data.pair_data import PairDataModule


def rows(start: int, texts: int) -> list[dict[str, str]]:
    """Four pairs with ids of their own from `start` on, and with texts that are numbered from `texts` on."""
    return [
        {
            "pair_id": f"{at}",
            "job_id": f"j{at}",
            "candidate_id": f"c{at}",
            "job_text": f"Job {n}",
            "candidate_text": f"One {n}",
        }
        for at, n in zip(range(start, start + 4), range(texts, texts + 4), strict=True)
    ]


def write(path: Path, pairs: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return str(path)


@pytest.mark.parametrize(
    ("ids", "texts", "told"),
    [
        (0, 10, ["4 of 4 val pairs have a job_id or candidate_id that is also trained on, with other texts"]),
        (2, 10, ["2 of 4 val pairs have a job_id"]),
        (10, 0, ["4 of 4 val pairs have a job's or a candidate's text that is also trained on"]),
        (0, 3, ["1 of 4 val pairs have a job's", "3 of 4 val pairs have a job_id"]),
        (10, 10, []),
    ],
    ids=str,
)
def test_a_validation_file_that_shares_ids_or_texts_is_told_of(
    tmp_path: Path, ids: int, texts: int, told: list[str], recwarn: pytest.WarningsRecorder
) -> None:
    train = write(tmp_path / "train.jsonl", rows(0, 0))
    # Other case and spaces don't make another text.
    pairs = [pair | {"job_text": pair["job_text"].upper() + "  "} for pair in rows(ids, texts)]
    val = write(tmp_path / "val.jsonl", pairs)
    PairDataModule(train, val_path=val, test_fraction=0.0).read_splits()
    said = [str(warning.message) for warning in recwarn if "also trained on" in str(warning.message)]
    assert len(said) == len(told)
    assert all(text.startswith(begin) for text, begin in zip(said, told, strict=True))
