"""A pair counts the same for an encoder, whichever micro-batch or rank it is in."""

import json
from pathlib import Path

import pytest
from test_global_batch import assert_equal, gradients_of


@pytest.fixture(scope="module")
def whole_batch(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, pairs_file: Path):
    folder = tmp_path_factory.mktemp("encoder-batch")
    data = folder / "seven.jsonl"  # which the micro-batches' size doesn't divide
    data.write_text("".join(line + "\n" for line in pairs_file.read_text().splitlines()[:7]))
    config = folder / "config.json"
    config.write_text(json.dumps({"kind": "encoder", "model": str(tiny_encoder), "data": str(data)}))
    return config, *gradients_of(config, folder / "whole.pt", batch_size=7, accumulate=1)


@pytest.mark.parametrize(("batch_size", "accumulate", "ranks"), [(3, 3, 1), (2, 2, 2)], ids=str)
def test_gradients_equal_those_of_one_whole_batch(
    whole_batch, tmp_path: Path, batch_size: int, accumulate: int, ranks: int
) -> None:
    config, expected, figures = whole_batch
    found, found_figures = gradients_of(
        config, tmp_path / "parts.pt", batch_size=batch_size, accumulate=accumulate, ranks=ranks
    )
    assert_equal(found, expected)
    for name in ("loss", "js", "cross_entropy"):
        assert found_figures[f"train/{name}"] == pytest.approx(figures[f"train/{name}"], rel=1e-5)
