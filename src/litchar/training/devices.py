"""The devices of a run: which kind and how many its configuration means."""

from typing import Any

import torch
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator, MPSAccelerator
from omegaconf import DictConfig, OmegaConf

from litchar.errors import UserError, check_integer
from litchar.launched import Place, launched


def device_of(accelerator: str) -> torch.device:
    """Return the device that `trainer.accelerator` selects on this machine.

    Raises:
        UserError: the machine has no such device.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator in ("auto", "gpu", "mps") and MPSAccelerator.is_available():
        return torch.device("mps")
    if accelerator in ("gpu", "cuda", "mps"):
        raise UserError(
            f"trainer.accelerator={accelerator}: torch finds no such device on this machine; "
            "try trainer.accelerator=auto"
        )
    return torch.device("cpu")


def settle_devices(trainer: DictConfig, device: torch.device) -> Place:
    """Return the place of this process, the leading one, in the run that `trainer` describes.

    `trainer.devices=auto` is replaced by a number: of the processes on each machine if a launcher
    started them, else of CUDA GPUs (1 without any).

    Raises:
        UserError: the settings are invalid, or this machine cannot satisfy them.
    """
    check_integer("trainer.num_nodes", trainer.num_nodes, 1)
    strategy = str(OmegaConf.select(trainer, "strategy._target_") or trainer.strategy)
    if strategy.rpartition(".")[2].lower().startswith("fsdp"):
        raise UserError(
            f"trainer.strategy={strategy}: to shard a model, use trainer=fsdp (fully_shard), on "
            "GPUs and CPUs alike"
        )
    if any(word in strategy for word in ("spawn", "fork", "notebook")):
        raise UserError(f"trainer.strategy={strategy}: is not supported; use trainer=ddp")
    place = launched()
    if trainer.devices == "auto":
        started = place.world_size // trainer.num_nodes if place else None
        trainer.devices = started or 1
        if device.type == "cuda":
            there = torch.cuda.device_count()
            trainer.devices = min(started or there, there)
    count = _count(trainer.devices, device)
    if place is None and trainer.num_nodes > 1:
        raise UserError(
            f"trainer.num_nodes={trainer.num_nodes}: start one process for each device of each "
            "machine, with torchrun or srun"
        )
    if device.type == "mps" and (count > 1 or strategy != "auto"):
        raise UserError(
            f"trainer.devices={trainer.devices}, trainer.strategy={strategy}: an Apple GPU trains "
            "alone; leave both out"
        )
    world_size = count * trainer.num_nodes
    interval = trainer.val_check_interval
    if world_size > 1 and interval is not None and not isinstance(interval, int | float):
        raise UserError(
            f"trainer.val_check_interval={interval}: ranks have their own clocks and would "
            "validate at different steps; count batches"
        )
    if place is not None and place.world_size != world_size:
        raise UserError(
            f"trainer.devices={trainer.devices} and trainer.num_nodes={trainer.num_nodes} ask for "
            f"{world_size} processes, but {place.world_size} were started; make these equal"
        )
    return place or Place(world_size=world_size)


def _count(devices: Any, device: torch.device) -> int:
    """Return the number of devices that `trainer.devices` asks for on one machine."""
    try:
        if device.type == "cuda":
            if isinstance(devices, int) and devices > torch.cuda.device_count():
                raise UserError(
                    f"trainer.devices={devices}: this machine has {torch.cuda.device_count()} "
                    "GPUs; ask for fewer, or add trainer.accelerator=cpu"
                )
            plain = list(devices) if OmegaConf.is_list(devices) else devices
            chosen = CUDAAccelerator.parse_devices(plain)
            if not chosen:
                raise UserError(
                    f"trainer.devices={devices}: selects no GPU; set trainer.accelerator=cpu"
                )
            return len(chosen)
        if device.type == "mps":
            return 1 if devices in (1, "1", -1, [0]) else 2
        return CPUAccelerator.parse_devices(devices)
    except (TypeError, ValueError) as error:
        raise UserError(f"trainer.devices={devices}: {error}") from None
