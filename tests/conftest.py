"""What all tests share: no hub, quiet threads, small real models, sample pairs, and the command in this process."""

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
from small_configs import save_with_tokenizer, write_decoder_config, write_encoder_config, write_pairs
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

    model = load_causal_lm("embedded:smollm2-135m", torch.float32, DepthPruning(keep=4))
    folder = tmp_path_factory.mktemp("models") / "smollm2-4-layers"
    return str(save_with_tokenizer(model, "embedded:smollm2-135m", folder))


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 pairs of the sample generator."""
    from lantern_pl.data.sample import make_pairs

    return write_pairs(tmp_path_factory.mktemp("data") / "pairs.jsonl", make_pairs(48, seed=0))


@pytest.fixture
def decoder_config(tmp_path: Path, small_lm: str, pairs_file: Path) -> Path:
    """A config of a two-layer decoder student that runs two steps in some seconds."""
    return write_decoder_config(tmp_path, small_lm, pairs_file)


@pytest.fixture
def encoder_config(tmp_path: Path, pairs_file: Path) -> Path:
    """A config of an encoder student that runs two steps in some seconds."""
    return write_encoder_config(tmp_path, "embedded:minilm-l6", pairs_file, max_length=256, batch_size=4, dropout=0.1)
