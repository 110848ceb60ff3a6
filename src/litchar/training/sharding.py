"""Parameters shared out among ranks (FSDP2's `fully_shard`), and whole again in one checkpoint."""

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
    """Lightning's ModelParallelStrategy over data alone, whose checkpoint is that of one device.

    Lightning's own names an optimiser's parameters in the model's order and not in the optimiser's,
    so that a checkpoint of one device would be read amiss.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **settings)

    def setup_environment(self) -> None:
        """Let all ranks share the data, whatever machine they are on."""
        self._data_parallel_size = self.world_size
        super().setup_environment()

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the optimiser's state, whole."""
        state: dict[str, Any] = apply_to_collection(
            optimizer.state_dict(), DTensor, lambda tensor: tensor.full_tensor().cpu()
        )
        return state

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load the model's and the optimiser's shares, and return the whole checkpoint."""
        checkpoint = self.checkpoint_io.load_checkpoint(checkpoint_path)
        assert self.model is not None
        set_model_state_dict(
            self.model, checkpoint["state_dict"], options=StateDictOptions(full_state_dict=True)
        )
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=False):
            optimizer.load_state_dict(_shared_out(state, optimizer))
        return checkpoint


def _shared_out(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimiser's whole state with each parameter's tensors cut as the parameter is."""
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
    """Share out the parameters of `model`, block by block; a second call does nothing."""
    if is_sharded(model):
        return
    for block in getattr(model, "blocks", ()):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def full(tensor: Tensor) -> Tensor:
    """Return `tensor`, whole if ranks have shares of it; all ranks call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_sharded(model: nn.Module) -> bool:
    """Return whether ranks have shares of the parameters of `model`."""
    return isinstance(model, FSDPModule)


@contextlib.contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Give each rank all parameters of `model`, in place of its share; all ranks call this."""
    shared_out = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in shared_out:
        module.unshard()
    try:
        yield
    finally:
        for module in shared_out:
            module.reshard()
