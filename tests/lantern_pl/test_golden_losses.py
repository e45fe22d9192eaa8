"""The losses of seeded runs are those that were recorded: a change that isn't meant to change training doesn't.

Where one is meant to: LANTERN_NEW_GOLDEN=1 pytest tests/lantern_pl/test_golden_losses.py, and look at what changes.
"""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from recording import Record
from support import Ran
from training_teachers import online, record_signals, teach

RECORDED = Path(__file__).with_name("golden_losses.json")
STEPS = 10
# What another processor's order of additions may change, and no change of a loss that matters is below.
TOLERANCE = 1e-4


@pytest.mark.parametrize("taught", ["online", "cached"])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_ten_steps_have_the_recorded_losses(
    lantern: Callable[..., Ran],
    tiny_encoder_config: Path,
    tiny_decoder_config: Path,
    tiny_lm: Path,
    pairs_file: Path,
    tmp_path: Path,
    kind: str,
    taught: str,
    record: Record,
) -> None:
    config = {"encoder": tiny_encoder_config, "decoder": tiny_decoder_config}[kind]
    cached = taught == "cached"
    teach(config, record_signals(lantern, tiny_lm, pairs_file, tmp_path / "signals") if cached else online(tiny_lm))
    quick = ("--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0", f"--trainer.max_steps={STEPS}")
    ran = lantern("fit", "--config", config, *quick, "--model.optimization={learning_rate: 0.05, warmup: 0.0}")
    assert ran.code == 0, ran.err
    rows = csv.DictReader(next((tmp_path / "run").glob("csv/*/metrics.csv")).open())
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert len(losses) == STEPS
    assert max(losses) / min(losses) - 1 > 100 * TOLERANCE, "a run that learns nothing can't tell"
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    if os.environ.get("LANTERN_NEW_GOLDEN"):
        recorded[f"{kind}, {taught}"] = losses
        RECORDED.write_text(json.dumps(recorded, indent=2, sort_keys=True) + "\n")
    assert losses == pytest.approx(recorded[f"{kind}, {taught}"], rel=TOLERANCE)
    furthest = max(abs(now / then - 1) for now, then in zip(losses, recorded[f"{kind}, {taught}"], strict=True))
    record(
        f"Losses of {STEPS} steps of a seeded {kind} with its teacher {taught}",
        found=f"at most {furthest:.1e} from the recorded ones",
        goal=f"{TOLERANCE:g}",
    )
