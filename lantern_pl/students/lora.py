"""Low-rank adapters on a decoder student, through peft."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from lantern_pl.errors import UserError


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (arXiv 2106.09685): far fewer trained weights, merged into the model when it's saved."""

    rank: int = 16
    """Rank of the update of each adapted weight."""
    alpha: int = 32
    """The update is scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout on the adapters' input while training."""
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])
    """Names of the linear layers to adapt; all-linear is every one but the output head."""


def add_lora(lm: PreTrainedModel, lora: Lora) -> PeftModel:
    """The model with trainable adapters and all other weights frozen. Raises UserError if the settings don't fit it."""
    targets: Any = "all-linear" if lora.target_modules == ["all-linear"] else lora.target_modules
    config = LoraConfig(
        task_type="CAUSAL_LM", r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets
    )
    try:
        adapted = get_peft_model(lm, config)
    except ValueError as error:
        raise UserError(f"lora can't be put on {type(lm).__name__}: {error}") from error
    if type(adapted.get_output_embeddings()) is not nn.Linear:
        raise UserError(
            f"lora.target_modules {lora.target_modules} include the output head: leave it out, since the loss is computed "
            "from the head's own weights."
        )
    return adapted


def write_merged(adapted: PeftModel, base: PreTrainedModel, folder: Path) -> None:
    """Write the whole model with the adapters merged, which any server loads, and the adapters alone beside it.

    The adapters are merged into a fresh copy of the frozen weights: the model in training stays as it is.
    """
    adapter = folder / "adapter"
    # Of all adapters only the student's: a teacher may have one on the same base.
    adapted.save_pretrained(str(adapter), selected_adapters=["default"])
    PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)
