"""Depth pruning: a student that starts from some of the layers of a larger model."""

from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from lantern_pl.errors import UserError


@dataclass(frozen=True)
class DepthPruning:
    """Start the student from some of the model's own layers."""

    keep: int
    """How many layers to keep."""
    choose: Literal["first", "even"] = "first"
    """Which: the first ones, or evenly spaced ones that include the first and the last."""

    def indices(self, layers: int) -> list[int]:
        """Indices of the kept layers among `layers`."""
        if not 1 <= self.keep <= layers:
            raise UserError(f"layers.keep is {self.keep}, but the model has {layers} layers: give 1 to {layers}.")
        if self.choose == "first" or self.keep == 1:
            return list(range(self.keep))
        return [round(i * (layers - 1) / (self.keep - 1)) for i in range(self.keep)]


def keep_layers(model: PreTrainedModel, pruning: DepthPruning) -> None:
    """Remove the other layers in place, and say so in the config, so that the saved model is an ordinary one."""
    config = model.config.get_text_config()
    total = config.num_hidden_layers
    kept = pruning.indices(total)
    stacks = layer_stacks(model)
    if len(stacks) != 1:
        raise UserError(
            f"layers can't be used with {type(model).__name__}: {len(stacks)} stacks of {total} layers, one is needed."
        )
    owner, name = stacks[0]
    layers = nn.ModuleList(getattr(owner, name)[i] for i in kept)
    setattr(owner, name, layers)
    for new_index, layer in enumerate(layers):
        # The key-value cache is indexed by each attention's own layer_idx.
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", new_index)  # noqa: B010 - nn.Module types its attributes as tensors
    for key, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == total:  # layer_types and the like, one entry for each layer
            setattr(config, key, [value[i] for i in kept])
    config.num_hidden_layers = len(kept)


def layer_stacks(model: PreTrainedModel) -> list[tuple[nn.Module, str]]:
    """Where a model's layers are: each module that holds a list of them, and the list's name in it. Mostly one."""
    total = model.config.get_text_config().num_hidden_layers
    return [
        (module, name)
        for module in model.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == total
    ]
