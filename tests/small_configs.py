"""Configs of two steps and the models that they name, as fixtures write them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRAINER = """\
trainer:
  max_steps: 2
  max_epochs: -1
  limit_val_batches: 1
  num_sanity_val_steps: 1
  accelerator: cpu
  enable_progress_bar: false
"""


def write_pairs(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_decoder_config(folder: Path, model: object, pairs: Path) -> Path:
    """A student of two layers whose teacher is the whole model."""
    path = folder / "decoder.yaml"
    path.write_text(f"""\
run_dir: {folder}/run
model:
  class_path: lantern_pl.students.DecoderStudent
  init_args:
    model: {model}
    layers: {{keep: 2}}
    teacher: {{class_path: lantern_pl.teachers.hf, init_args: {{model: {model}, max_new_tokens: 4}}}}
    mixture:
      - {{divergence: {{class_path: lantern_pl.divergences.js}}, weight: 1.0}}
    max_new_tokens: 4
    generate_pairs: 1
data:
  class_path: lantern_pl.data.PairDataModule
  init_args:
    {{path: {pairs}, max_length: 320, batch_size: 2, eval_batch_size: 2, val_fraction: 0.15, test_fraction: 0.15}}
{TRAINER}""")
    return path


def write_encoder_config(folder: Path, model: object, pairs: Path, max_length: int, batch_size: int, dropout: float) -> Path:
    """A student of two layers."""
    path = folder / "encoder.yaml"
    path.write_text(f"""\
run_dir: {folder}/run
model:
  class_path: lantern_pl.students.EncoderStudent
  init_args:
    model: {model}
    layers: {{keep: 2}}
    dropout: {dropout}
    mixture:
      - {{divergence: {{class_path: lantern_pl.divergences.kl}}, weight: 0.5}}
data:
  class_path: lantern_pl.data.PairDataModule
  init_args: {{path: {pairs}, max_length: {max_length}, batch_size: {batch_size}, val_fraction: 0.15, test_fraction: 0.15}}
{TRAINER}""")
    return path


def save_with_tokenizer(model: "PreTrainedModel", tokenizer: str, folder: Path) -> Path:
    """A model folder: `model`, with the tokenizer of another one."""
    from lantern_pl.text import load_tokenizer

    model.save_pretrained(folder)
    load_tokenizer(tokenizer).save_pretrained(folder)
    return folder
