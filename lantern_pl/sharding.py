"""Weights that are spread over the processes of a run by FSDP2, and how to have them whole again.

A unit is a module whose weights are gathered together: each transformer layer, the embeddings where the output head has
weights of its own, and a root with all the rest. Gathering takes all processes: what runs a sharded module must run it
alike on each of them, unless it is within `whole`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from lantern_pl.depth_pruning import layer_stacks


def shard_student(student: nn.Module, model: Any, mesh: DeviceMesh, forwards: tuple[str, ...]) -> None:
    """Shard all of a student's weights.

    The root is the student itself and not its model: the loss needs the output head's weights outside of the model's
    forward, and the gradient of what the loss adds, such as projections, has to be reduced as well. So the weights of the
    root are gathered for as long as one of the `forwards` runs, and until the backward is done; these are methods of the
    student that FSDP treats as it treats a module's forward.

    Args:
        student: holds the model, and whatever else is trained.
        model: the transformers model in it, with adapters or without.
        mesh: of one dimension, the processes to shard over.
        forwards: names of the student's methods in which its weights are used.
    """
    _shard_layers(model, mesh)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    # Tied to the head's, they belong to the unit that has the head: FSDP would untie them.
    if head is None or head.weight is not embeddings.weight:
        fully_shard(embeddings, mesh=mesh)
    fully_shard(student, mesh=mesh)
    for name in forwards:
        register_fsdp_forward_method(student, name)


def shard_frozen(lm: Any, mesh: DeviceMesh) -> None:
    """Shard the layers, the embeddings and the head of a causal LM that is only asked for hidden states. Each of them is a
    root of its own, but the head, a sharded tensor that `whole_tensor` gathers.

    Not the backbone as a whole: transformers looks its class up to find what it can record, and FSDP gives it another.
    """
    embeddings, head = lm.get_input_embeddings(), lm.get_output_embeddings()
    tied = head.weight is embeddings.weight
    _shard_layers(lm, mesh)
    fully_shard(embeddings, mesh=mesh, reshard_after_forward=True)
    for name, parameter in list(head.named_parameters()):
        whole = parameter.detach()
        sharded = nn.Parameter(distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None), requires_grad=False)
        setattr(head, name, embeddings.weight if tied and name == "weight" else sharded)


def _shard_layers(model: Any, mesh: DeviceMesh) -> None:
    for owner, name in layer_stacks(model):
        for layer in getattr(owner, name):
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Each process holds all weights of the model's units in here, and may run it as often as it likes, or not at all.

    All processes must enter it, within a forward of the root. Without gradients.
    """
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(True, recurse=False)
            unit.reshard()


def whole_tensor(tensor: Any) -> Any:
    """A tensor with the parts of all processes; what isn't sharded is given back. All processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(state: Mapping[Any, Any], keep: bool) -> dict[Any, Any]:
    """A state dict with whole tensors on the CPU, one after the other. All processes must ask; those that don't `keep` it
    get an empty one."""
    found: dict[Any, Any] = {}
    of_tensor: dict[int, Tensor] = {}  # tied weights once
    for name, value in state.items():
        if not isinstance(value, Tensor):
            found[name] = value
            continue
        if id(value) not in of_tensor:
            full = whole_tensor(value.detach())
            of_tensor[id(value)] = full.cpu() if keep else torch.empty(0)
        found[name] = of_tensor[id(value)]
    return found if keep else {}


def scatter(value: Any, like: Any) -> Any:
    """This process' part of a whole tensor that belongs to the parameter `like`, sharded as that is.

    What is of another shape, such as an optimizer's count of steps, is given back.
    """
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
