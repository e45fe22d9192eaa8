"""What all tests share: no hub, quiet threads, small real models, sample pairs, and the command in this process."""

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from recording import pytest_collection_modifyitems, record  # noqa: F401  # found here by pytest
from support import Ran


@pytest.fixture
def lantern(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run a `lantern` command in this process."""
    from lantern_pl.cli import main

    def log_to_stderr() -> None:
        # Lightning's log handlers hold the stderr of the test that imported it first.
        for name in ("lightning", "lightning.fabric", "lightning.pytorch"):
            for handler in logging.getLogger(name).handlers:
                if type(handler) is logging.StreamHandler:  # pytest's own derive from it
                    handler.stream = sys.stderr

    def run(*arguments: object) -> Ran:
        capfd.readouterr()
        log_to_stderr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit_:  # argparse's way to end after --help and --print_config
            code = exit_.code if isinstance(exit_.code, int) else 1
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return run


@pytest.fixture(scope="session")
def small_lm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with SmolLM2's first four layers: real weights and tokenizer, quick to run."""
    import torch

    from lantern_pl.causal_lm import load_causal_lm
    from lantern_pl.depth_pruning import DepthPruning
    from lantern_pl.text import load_tokenizer

    folder = tmp_path_factory.mktemp("models") / "smollm2-4-layers"
    load_causal_lm("embedded:smollm2-135m", torch.float32, DepthPruning(keep=4)).save_pretrained(folder)
    load_tokenizer("embedded:smollm2-135m").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 pairs of the sample generator."""
    from lantern_pl.data.sample import make_pairs

    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in make_pairs(48, seed=0)))
    return path


@pytest.fixture
def decoder_config(tmp_path: Path, small_lm: str, pairs_file: Path) -> Path:
    """A config of a two-layer decoder student that runs two steps in some seconds."""
    path = tmp_path / "decoder.yaml"
    path.write_text(f"""\
run_dir: {tmp_path}/run
model:
  class_path: lantern_pl.students.DecoderStudent
  init_args:
    model: {small_lm}
    layers: {{keep: 2}}
    teacher: {{class_path: lantern_pl.teachers.hf, init_args: {{model: {small_lm}, max_new_tokens: 4}}}}
    mixture:
      - {{divergence: {{class_path: lantern_pl.divergences.js}}, weight: 1.0}}
    max_new_tokens: 4
    generate_pairs: 1
data:
  class_path: lantern_pl.data.PairDataModule
  init_args:
    {{path: {pairs_file}, max_length: 320, batch_size: 2, eval_batch_size: 2, val_fraction: 0.15, test_fraction: 0.15}}
trainer:
  max_steps: 2
  max_epochs: -1
  limit_val_batches: 1
  num_sanity_val_steps: 1
  accelerator: cpu
  enable_progress_bar: false
""")
    return path


@pytest.fixture
def encoder_config(tmp_path: Path, pairs_file: Path) -> Path:
    """A config of an encoder student that runs two steps in some seconds."""
    path = tmp_path / "encoder.yaml"
    path.write_text(f"""\
run_dir: {tmp_path}/run
model:
  class_path: lantern_pl.students.EncoderStudent
  init_args:
    model: embedded:minilm-l6
    layers: {{keep: 2}}
    mixture:
      - {{divergence: {{class_path: lantern_pl.divergences.kl}}, weight: 0.5}}
data:
  class_path: lantern_pl.data.PairDataModule
  init_args: {{path: {pairs_file}, max_length: 256, batch_size: 4, val_fraction: 0.15, test_fraction: 0.15}}
trainer:
  max_steps: 2
  max_epochs: -1
  limit_val_batches: 1
  num_sanity_val_steps: 1
  accelerator: cpu
  enable_progress_bar: false
""")
    return path
