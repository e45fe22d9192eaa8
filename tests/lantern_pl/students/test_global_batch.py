"""A supervised token counts the same, whichever micro-batch or rank it is in."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("one_optimizer_step.py")


def gradients_of(config: Path, out: Path, *, batch_size: int, accumulate: int, ranks: int = 1, clip: float = 0.0):
    """The gradients and logged figures of one optimizer step over eight pairs, run in processes of their own."""
    arguments = [str(SCRIPT), str(config), str(out), str(batch_size), str(accumulate), str(ranks), str(clip)]
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone"] if ranks > 1 else []
    done = subprocess.run(
        [sys.executable, *launch, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True), json.loads(out.with_suffix(".json").read_text())


@pytest.fixture(scope="module")
def whole_batch(tmp_path_factory: pytest.TempPathFactory, small_lm: str, pairs_file: Path):
    folder = tmp_path_factory.mktemp("global-batch")
    # Eight pairs whose explanations differ in length, so that a mean of means would come out different.
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()[:8]]
    for i, row in enumerate(rows):
        row["explanation"] = " ".join(row["explanation"].split()[: 3 + 4 * i])
    data = folder / "eight.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = folder / "config.json"
    config.write_text(json.dumps({"model": small_lm, "data": str(data)}))
    return config, *gradients_of(config, folder / "whole.pt", batch_size=8, accumulate=1)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "ranks"),
    [
        (3, 3, 1),
        (2, 2, 2),
        pytest.param(2, 4, 1, marks=pytest.mark.slow),
        pytest.param(1, 4, 2, marks=pytest.mark.slow),
        pytest.param(1, 2, 4, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_gradients_equal_those_of_one_whole_batch(
    whole_batch, tmp_path: Path, batch_size: int, accumulate: int, ranks: int
) -> None:
    config, expected, figures = whole_batch
    found, found_figures = gradients_of(
        config, tmp_path / "parts.pt", batch_size=batch_size, accumulate=accumulate, ranks=ranks
    )
    assert_equal(found, expected)
    for name in ("loss", "kl", "cross_entropy"):
        assert found_figures[f"train/{name}"] == pytest.approx(figures[f"train/{name}"], rel=1e-5)


def test_gradients_are_clipped_after_they_are_normalised(whole_batch, tmp_path: Path) -> None:
    config, expected, _ = whole_batch
    norm = float(torch.stack([g.norm() for g in expected.values()]).norm())
    found, _ = gradients_of(config, tmp_path / "clipped.pt", batch_size=2, accumulate=4, clip=norm / 2)
    assert_equal(found, {name: gradient / 2 for name, gradient in expected.items()})


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        atol = 1e-6 * max(float(gradient.abs().max()), 1e-3)
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=atol), name
