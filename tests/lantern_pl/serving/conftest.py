"""A pair of tiny students as `lantern fit` leaves them, and `lantern serve` in a process of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_support import StubDecoder

from lantern_pl.cli import main


@pytest.fixture(scope="session")
def students(
    tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, tiny_lm: Path, pairs_file: Path
) -> dict[str, str]:
    """Folders of an encoder and a decoder student that were trained for two steps."""
    folder = tmp_path_factory.mktemp("students")
    common = f"""\
data:
  class_path: lantern_pl.data.PairDataModule
  init_args: {{path: {pairs_file}, max_length: 320, batch_size: 6, val_fraction: 0.15, test_fraction: 0.15}}
trainer:
  {{max_steps: 2, max_epochs: -1, limit_val_batches: 1, num_sanity_val_steps: 0, accelerator: cpu,
    enable_progress_bar: false}}
"""
    models = {
        "encoder": f"""\
model:
  class_path: lantern_pl.students.EncoderStudent
  init_args: {{model: {tiny_encoder}, dropout: 0.0}}
""",
        "decoder": f"""\
model:
  class_path: lantern_pl.students.DecoderStudent
  init_args: {{model: {tiny_lm}, cross_entropy: 1.0, max_new_tokens: 4, generate_pairs: 1}}
""",
    }
    for kind, model in models.items():
        config = folder / f"{kind}.yaml"
        config.write_text(f"run_dir: {folder}/{kind}\n{model}{common}")
        assert main(["fit", "--config", str(config)]) == 0
    return {kind: str(folder / kind / "student") for kind in models}


@pytest.fixture(scope="session")
def stub_decoder() -> Iterator[StubDecoder]:
    """A server that completes as the candidate's text asks it to."""
    with StubDecoder() as stub:
        yield stub


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
