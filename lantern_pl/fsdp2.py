"""`trainer.strategy: fsdp2`: Lightning's ModelParallelStrategy over all processes of a run, with our checkpoints."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    Strategy,
    StrategyRegistry,
)
from torch.optim import Optimizer

from lantern_pl.errors import UserError
from lantern_pl.sharding import gather, scatter

NAME = "fsdp2"


class FSDP2(ModelParallelStrategy):
    """Weights, gradients and optimizer state of the student are spread over all processes of the run.

    Checkpoints are those of a run in one process: one file with whole tensors, by our CheckpointIO. A run can go on from
    one with another strategy or another number of processes.

    Args:
        process_group_backend: gloo or nccl; null takes the one for the device.
        timeout_minutes: how long a process waits for the others before the run fails.
    """

    def __init__(self, process_group_backend: str | None = None, timeout_minutes: float = 30.0) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timedelta(minutes=timeout_minutes),
        )

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    # Optimizer states are known by their place in the optimizer, as in any PyTorch checkpoint. Lightning's own strategy
    # counts in the order of the model's parameters instead, which differs as soon as there are two parameter groups.

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return whole_weights(self.lightning_module, keep=self.is_global_zero)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        plain: Any = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        found = plain.state_dict()
        found["state"] = {place: gather(state, self.is_global_zero) for place, state in found["state"].items()}
        return found if self.is_global_zero else {}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, self.broadcast(checkpoint_path), weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module = self.lightning_module
        assert module is not None
        own = module.state_dict()
        weights = {name: scatter(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        module.load_state_dict(weights, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        sharded = []
        for optimizer, found in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            states = {
                place: {name: scatter(value, parameters[place]) for name, value in state.items()}
                for place, state in found["state"].items()
            }
            sharded.append({**found, "state": states})
        Strategy.load_optimizer_state_dict(self, {"optimizer_states": sharded})


StrategyRegistry.register(NAME, FSDP2, description="FSDP2: the student is sharded over all processes")


def whole_weights(module: Any, keep: bool) -> dict[str, Any]:
    """What a checkpoint holds of a student's weights, whole and on the CPU, where `keep`. All processes must ask.

    Frozen weights of a student with adapters aren't gathered: they come from its model again.
    """
    state = module.state_dict(keep_vars=True)
    if not module.strict_loading:
        state = {name: value for name, value in state.items() if value.requires_grad}
    return gather(state, keep)


def check_strategy(strategy: Strategy) -> None:
    """Raise UserError for a strategy that would train a student wrongly, or not at all."""
    other = isinstance(strategy, ModelParallelStrategy) and not isinstance(strategy, FSDP2)
    if other or isinstance(strategy, FSDPStrategy | DeepSpeedStrategy):
        raise UserError(
            f"trainer.strategy is {type(strategy).__name__}, which doesn't shard a student: give ddp (each process has the "
            f"whole student) or {NAME} (PyTorch's FSDP2)."
        )
