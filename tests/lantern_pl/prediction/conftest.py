"""Small students as their folders, and data for them."""

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def encoder_student(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an encoder student with random weights."""
    import torch

    from lantern_pl.pair_classifier import new_classifier, write_classifier
    from lantern_pl.text import load_tokenizer

    folder = tmp_path_factory.mktemp("students") / "encoder"
    folder.mkdir()
    torch.manual_seed(1)
    classifier = new_classifier(str(tiny_encoder), ["low", "medium", "high"], "mean", 1, 0.0, None)
    for parameter in classifier.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=1.0)  # levels that differ from pair to pair
    write_classifier(classifier.eval(), load_tokenizer(str(tiny_encoder)), folder)
    return folder


@pytest.fixture(scope="session")
def many_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 pairs of texts of different lengths, without annotations."""
    from lantern_pl.data.sample import make_pairs

    path = tmp_path_factory.mktemp("data") / "many.jsonl"
    rows = [{name: row[name] for name in ("pair_id", "job_text", "candidate_text")} for row in make_pairs(200, seed=3)]
    for number, row in enumerate(rows):
        row["candidate_text"] = row["candidate_text"][: 20 + 7 * (number * 37 % 50)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
