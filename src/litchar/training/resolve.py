"""What a configuration leaves open, decided when it runs: by the device and by the text."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from litchar.checkpoints import Checkpoint, find
from litchar.errors import UserError
from litchar.text.remote import is_remote
from litchar.training.resume import flat, may_change

# How often a run sees the text, at least, and what to drop then; -1 steps are none.
DROPOUT = ((20, 0.2), (5, 0.1), (-math.inf, 0.0))


def resolve_device(config: DictConfig) -> torch.device:
    """Return the device that the run lands on, and fill in what `config` leaves open by device.

    A key that is null takes its value from `by_device.cpu`, `.cuda` or `.mps`, if that names it; a
    key that the chosen model or optimiser does not have is left out.

    Raises:
        UserError: a setting has no meaning.
    """
    if not isinstance(config.seed, int) or not 0 <= config.seed < 2**32:
        raise UserError(f"seed={config.seed}: must be a whole number from 0 to {2**32 - 1}")
    device = device_of(config.trainer.accelerator)
    _fill(config, config.by_device[device.type])
    wants_bf16 = device.type == "cuda" and config.trainer.precision == "bf16-mixed"
    if wants_bf16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        config.trainer.precision = "32-true"  # older cards would emulate it, slowly
    return device


def device_of(accelerator: str) -> torch.device:
    """Return the device that `trainer.accelerator` means on this machine.

    Raises:
        UserError: there is no such device.
    """
    device = torch.device(_device_type(accelerator))
    if device.type == "cpu" and accelerator in ("gpu", "cuda", "mps"):
        raise UserError(
            f"trainer.accelerator={accelerator}: torch finds no such device on this machine; "
            "try trainer.accelerator=auto"
        )
    return device


def resolve_as_before(config: DictConfig, then: dict[str, Any]) -> None:
    """Give what `config` leaves open the values of the run that it goes on with.

    Or else more steps, or another device, would bring other intervals and sizes along.
    """
    for key, value in flat(then):
        if value is not None and not may_change(key) and _is_open(config, key):
            OmegaConf.update(config, key, value)


def resolve_paths(config: DictConfig) -> None:
    """Make `data.path` absolute, so that the text is found again from any directory; and so a
    directory that is `data.name`."""
    if (name := config.data.get("name")) and Path(name).is_dir():
        config.data.name = str(Path(name).absolute()).replace("${", r"\${")
    for entry in [config.data, *(config.data.get("mixture") or [])]:
        if OmegaConf.is_dict(entry) and entry.get("path") is not None:
            entry.path = _absolute(entry.path)


def _absolute(path: Any) -> Any:
    if not isinstance(path, str):
        return [_absolute(one) for one in path]
    if is_remote(path):
        return path.replace("${", r"\${")
    # OmegaConf reads ${...} in what it is given, unless the dollar is escaped.
    return str(Path(path).expanduser().absolute()).replace("${", r"\${")


def resolve_parent(config: DictConfig) -> Checkpoint | None:
    """Return the checkpoint to begin from, if any; its model's settings fill in what is open.

    Raises:
        UserError: there is no such checkpoint, or another kind of model was asked for.
    """
    if config.init_from is None:
        return None
    parent = Checkpoint.load(find(config.init_from, Path(config.outputs_dir)))
    settings = parent.model_settings
    if config.model["_target_"] != settings["_target_"]:
        raise UserError(
            f"init_from={config.init_from} holds a {settings['_target_'].rpartition('.')[2]}, "
            f"and model is a {config.model['_target_'].rpartition('.')[2]}"
        )
    _fill(config.model, settings)
    if config.data.unit != parent.vocabulary.unit:
        raise UserError(
            f"init_from={config.init_from} is a model of {parent.vocabulary.unit}s, and "
            f"data.unit={config.data.unit}; set data.unit={parent.vocabulary.unit}"
        )
    _fill(config.data, asdict(parent.cleaning) | {"block_size": settings["block_size"]})
    return parent


def resolve_steps(config: DictConfig, train_characters: int, val_characters: int) -> None:
    """Fill in how long to train, how often to validate and how much to drop, if it is left open.

    One of `trainer.max_epochs` passes is as many batches as hold the training split's characters
    once; batches are drawn at random all the same. A run validates ten times, or where that would
    take longer than its steps, less often, but twice at least. A step is forward and backward, and
    costs three times as much a character. The more often a run sees the text, the more it drops.
    """
    trainer = config.trainer
    windows = config.data.batch_size * trainer.accumulate_grad_batches
    characters = windows * config.data.block_size  # of a step
    if trainer.max_epochs is not None:
        trainer.max_steps = math.ceil(trainer.max_epochs * train_characters / characters)
        trainer.max_epochs = None
    if trainer.val_check_interval is None:
        steps = 500
        if trainer.max_steps > 0:
            affordable = 3 * trainer.max_steps * characters // val_characters
            steps = max(1, trainer.max_steps // min(10, max(2, affordable)))
        trainer.val_check_interval = steps * trainer.accumulate_grad_batches
    passes = trainer.max_steps * characters / train_characters
    _fill(config.model, {"dropout": next(share for least, share in DROPOUT if passes >= least)})
    interval = trainer.val_check_interval
    if isinstance(interval, int) and interval % trainer.accumulate_grad_batches:
        raise UserError(
            f"trainer.val_check_interval={interval}: counts batches, and must be a multiple of "
            f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches}: whole steps are "
            "validated"
        )


def _device_type(accelerator: str) -> str:
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "cuda"
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def _is_open(config: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return OmegaConf.is_dict(node) and name in node and node[name] is None


def _fill(config: DictConfig, values: Any) -> None:
    """Give `config` the values of keys that it has and leaves null."""
    for key, value in values.items():
        if key not in config:
            continue
        if OmegaConf.is_dict(value):
            _fill(config[key], value)
        elif config[key] is None:
            config[key] = value
