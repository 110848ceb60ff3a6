"""Parameters sharded across ranks (FSDP2's `fully_shard`), but saved as one full checkpoint."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy, data-parallel only, with single-device checkpoints.

    Lightning's own orders an optimiser's parameters as in the model, not as in the optimiser, and
    so would misread the optimiser state of a single-device checkpoint.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **settings)

    def setup_environment(self) -> None:
        """Make all ranks, on every machine, one data-parallel group."""
        self._data_parallel_size = self.world_size
        super().setup_environment()

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the full, unsharded optimiser state, on the CPU."""
        state: dict[str, Any] = apply_to_collection(
            optimizer.state_dict(), DTensor, lambda tensor: tensor.full_tensor().cpu()
        )
        return state

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load this rank's shards of model and optimiser, and return the full checkpoint."""
        checkpoint = self.checkpoint_io.load_checkpoint(checkpoint_path)
        assert self.model is not None
        set_model_state_dict(
            self.model, checkpoint["state_dict"], options=StateDictOptions(full_state_dict=True)
        )
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=False):
            optimizer.load_state_dict(_shared_out(state, optimizer))
        return checkpoint


def _shared_out(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimiser's full state with each tensor sharded like its parameter."""
    ids = [number for group in state["param_groups"] for number in group["params"]]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def cut(tensor: Any, parameter: Tensor) -> Any:
        if not isinstance(parameter, DTensor) or not isinstance(tensor, Tensor) or not tensor.ndim:
            return tensor
        mesh, placements = parameter.device_mesh, parameter.placements
        return distribute_tensor(tensor.to(mesh.device_type), mesh, placements, src_data_rank=None)

    return state | {
        "state": {
            number: {name: cut(value, parameter) for name, value in state["state"][number].items()}
            for number, parameter in zip(ids, parameters, strict=True)
            if number in state["state"]
        }
    }


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard the parameters of `model` in place, block by block; a second call does nothing."""
    if is_sharded(model):
        return
    for block in getattr(model, "blocks", ()):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if isinstance(model, FSDPModule) and hasattr(model, "set_reduce_scatter_unused_params"):
        # Not in torch 2.9. Without it, ranks that use different parameters, such as different
        # experts, add up gradients of different ones, or wait for each other for ever.
        model.set_reduce_scatter_unused_params(True)


def full(tensor: Tensor) -> Tensor:
    """Return `tensor`, gathered if it is sharded; a collective, to be called on all ranks."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_sharded(model: nn.Module) -> bool:
    """Return whether the parameters of `model` are sharded."""
    return isinstance(model, FSDPModule)


@contextlib.contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Unshard all parameters of `model` on every rank within the context; a collective."""
    shared_out = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in shared_out:
        module.unshard()
    try:
        yield
    finally:
        for module in shared_out:
            module.reshard()
