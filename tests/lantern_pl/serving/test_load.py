"""What the service leaves of the model's speed under many requests."""

from pathlib import Path

import pytest

from lantern_pl.cli import main
from lantern_pl.serving.load import measure, sample_texts

TEXTS = sample_texts(200)


def test_a_few_requests_are_measured(students: dict[str, str]) -> None:
    """The figures are there, and hang together; how large they are is for the slow ones."""
    found = measure(students["encoder"], "torch", TEXTS, clients=8, requests=60, bare_seconds=0.5, more=["--threads=1"])
    service, memory = found["service"], found["memory"]
    assert service["statuses"] == {"200": 60}
    assert 0 < service["p50_ms"] <= service["p90_ms"] <= service["p99_ms"]
    assert found["share_of_bare"] == pytest.approx(
        service["pairs_a_second"] / (sum(found["bare_pairs_a_second"]) / 2), abs=2e-3
    )
    assert 20 < memory["first_quarter_mb"] <= memory["most_mb"]


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(1800)
def test_the_service_leaves_most_of_the_models_speed(tmp_path: Path, pairs_file: Path) -> None:
    """Of a model of the size that is served, by the best of three rounds: other processes come and go."""
    config = tmp_path / "encoder.yaml"
    config.write_text(f"""\
run_dir: {tmp_path}/run
model:
  class_path: lantern_pl.students.EncoderStudent
  init_args: {{model: embedded:minilm-l6}}
data:
  class_path: lantern_pl.data.PairDataModule
  init_args: {{path: {pairs_file}, max_length: 256, batch_size: 4, val_fraction: 0.15, test_fraction: 0.15}}
trainer:
  {{max_steps: 1, max_epochs: -1, limit_val_batches: 1, num_sanity_val_steps: 0, accelerator: cpu,
    enable_progress_bar: false}}
""")
    assert main(["fit", "--config", str(config)]) == 0
    shares = []
    for _ in range(3):
        found = measure(str(tmp_path / "run" / "student"), "torch", TEXTS, clients=64, requests=1000)
        assert found["service"]["statuses"] == {"200": 1000}
        shares.append(found["share_of_bare"])
        if shares[-1] >= 0.85:
            return
    pytest.fail(f"the service reached {shares} of the bare model's throughput")
