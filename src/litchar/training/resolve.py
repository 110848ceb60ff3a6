"""Fill in what a configuration leaves open: from checkpoints, the device and the text."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from litchar.checkpoints import Checkpoint, find
from litchar.errors import UserError
from litchar.overrides import literal
from litchar.settings import MAY_CHANGE, absolute_paths, flatten, plain, within
from litchar.training.checks import check_epochs, check_whole_steps
from litchar.training.deadline import seconds_of
from litchar.training.devices import device_of


def resolve_by_device(config: DictConfig) -> torch.device:
    """Return the device to run on, and fill in the settings whose defaults depend on it.

    A key that is null takes its value from `by_device.cpu`, `.cuda` or `.mps`, if that has it; keys
    that the chosen model or optimiser does not have are skipped.

    Raises:
        UserError: there is no such device.
    """
    trainer = config.trainer
    if trainer.max_steps is None and not is_length_open(config):
        trainer.max_steps = -1  # only passes or time end the run
    device = device_of(config.trainer.accelerator)
    _fill(config, config.by_device[device.type])
    wants_bf16 = device.type == "cuda" and config.trainer.precision == "bf16-mixed"
    if wants_bf16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        config.trainer.precision = "32-true"  # older GPUs would emulate it, slowly
    return device


# Keys that a resumed run may change, but keeps when they are left open.
KEPT = ("data.val_batch_size", "trainer.min_steps", "trainer.deterministic")


def resolve_as_before(config: DictConfig, then: dict[str, Any], path: Path) -> None:
    """Fill in what `config` leaves open from the run that it resumes.

    Otherwise more steps, or another device, would change default intervals and sizes too. The
    length of training is open if none of steps, passes and time is given.

    Args:
        then: that run's configuration, from the checkpoint at `path`.

    Raises:
        UserError: a value is not plain data.
    """
    trainer = config.trainer
    texts = [OmegaConf.select(config, f"data.{key}") for key in ("path", "mixture", "source")]
    if texts == [None] * 3:
        for key in {"path", "pattern"} & then.get("data", {}).keys():
            value = _taken(f"data.{key}", then["data"][key], path)
            OmegaConf.update(config, f"data.{key}", value)
    if is_length_open(config):
        before = then.get("trainer", {})
        for key in ("max_steps", "max_time"):
            trainer[key] = _taken(f"trainer.{key}", before.get(key), path)
    for key, value in flatten(then).items():
        kept = key in KEPT or not within(key, MAY_CHANGE)
        if value is not None and kept and OmegaConf.select(config, key, default=0) is None:
            OmegaConf.update(config, key, _taken(key, value, path))


def _taken(key: str, value: Any, path: Path) -> Any:
    """Return `value`, which the checkpoint at `path` has for `key`, escaped for a configuration.

    Raises:
        UserError: the value holds a `_target_`, which would be instantiated and so run code.
    """
    if _builds(value):
        raise UserError(
            f"{path}: its {key} has a _target_, but a checkpoint may hold only plain data; "
            "nothing was built"
        )
    return _escaped(value)


def _builds(value: Any) -> bool:
    """Return whether `value` holds a `_target_` for `instantiate` at any depth."""
    if isinstance(value, dict):
        return "_target_" in value or any(map(_builds, value.values()))
    return isinstance(value, list | tuple) and any(map(_builds, value))


def resolve_paths(config: DictConfig) -> None:
    """Make the text's paths absolute, so that it is found from any directory."""
    data = plain(config.data, resolve=True)
    for key, value in absolute_paths(data).items():
        config.data[key] = _escaped(value)


def _escaped(value: Any) -> Any:
    """Return plain data with its strings escaped, so that OmegaConf does not interpolate them."""
    if isinstance(value, list | tuple):
        return [_escaped(one) for one in value]
    if isinstance(value, dict):
        return {key: _escaped(one) for key, one in value.items()}
    return literal(value) if isinstance(value, str) else value


def resolve_parent(config: DictConfig) -> Checkpoint | None:
    """Return the checkpoint to initialise from, if any; its settings fill in what is left open.

    Raises:
        UserError: there is no such checkpoint, or the configuration asks for another model class or
            token unit.
    """
    if config.init_from is None:
        return None
    parent = Checkpoint.load(
        find(config.init_from, Path(config.outputs_dir), "init_from").absolute()
    )
    config.init_from = literal(str(parent.path))  # `latest` will soon mean another checkpoint
    settings = parent.model_settings
    if config.model["_target_"] != settings["_target_"]:
        raise UserError(
            f"init_from={config.init_from} holds a {settings['_target_'].rpartition('.')[2]}, but "
            f"model is a {config.model['_target_'].rpartition('.')[2]}; choose the model it was "
            "trained with, or another checkpoint"
        )
    own = {key: _taken(f"model.{key}", value, parent.path) for key, value in settings.items()}
    _fill(config.model, {key: value for key, value in own.items() if key not in BY_TEXT})
    if config.data.unit != parent.vocabulary.unit:
        raise UserError(
            f"init_from={config.init_from} is a model of {parent.vocabulary.unit}s, but "
            f"data.unit={config.data.unit}; set data.unit={parent.vocabulary.unit}"
        )
    _fill(config.data, asdict(parent.cleaning) | {"block_size": own["block_size"]})
    return parent


BY_TEXT = ("dropout", "noise")  # model settings whose defaults depend on the text

MOST_PASSES = 40  # over the training split; with more, models only memorise it


def is_length_open(config: DictConfig) -> bool:
    """Return whether nothing sets how long to train; call it before `resolve_by_device`."""
    trainer = config.trainer
    return trainer.max_steps is None and trainer.max_epochs is None and trainer.max_time is None


def resolve_steps(
    config: DictConfig, train_characters: int, val_characters: int, by_default: bool = False
) -> None:
    """Fill in how long to train and how often to validate, where that is left open.

    A pass, the unit of `trainer.max_epochs` and `min_epochs`, is as many steps as cover the number
    of characters in the training split; batches are still drawn at random. By default a run
    validates ten times, or less often where that would take longer than training, but at least
    twice; a very short run, as often as whole steps allow. A training step (forward and backward)
    is taken to cost three times as much per character as validation. If only time ends the run, it
    validates whenever a tenth of the time has passed; where that may be within a step or differ
    between ranks, every 500 steps.

    Args:
        by_default: whether `trainer.max_steps` is the device's default, which is lowered for a
            short text.
    """
    trainer = config.trainer
    characters = characters_of_a_step(config)
    accumulates_more = any(
        str(entry.get("_target_")).endswith("GradientAccumulationScheduler")
        for entry in (config.callbacks or {}).values()
        if isinstance(entry, DictConfig)
    )
    for key in ("max_epochs", "min_epochs"):
        if trainer[key] and accumulates_more:
            raise UserError(
                f"trainer.{key}={trainer[key]}: needs a fixed number of characters per step, "
                "which GradientAccumulationScheduler changes; count steps instead"
            )
    if trainer.min_epochs:
        least = math.ceil(trainer.min_epochs * train_characters / characters)
        trainer.min_steps = max(trainer.min_steps or 0, least)
    trainer.min_epochs = 0  # epochs are endless here, and with min_steps null would mean 1
    if trainer.max_epochs is not None:
        most = math.ceil(trainer.max_epochs * train_characters / characters)
        trainer.max_steps = most if trainer.max_steps < 0 else min(most, trainer.max_steps)
        trainer.max_epochs = None
    elif by_default:
        most = math.ceil(MOST_PASSES * train_characters / characters)
        trainer.max_steps = min(trainer.max_steps, most)
    if trainer.min_steps and trainer.max_steps > 0:  # or Lightning would not validate the last step
        trainer.min_steps = min(trainer.min_steps, trainer.max_steps)
    if trainer.val_check_interval is None and trainer.check_val_every_n_epoch is not None:
        trainer.val_check_interval = 1.0
    elif trainer.val_check_interval is None:
        steps = 500
        if trainer.max_steps > 0:
            affordable = 3 * trainer.max_steps * characters // val_characters
            steps = math.ceil(trainer.max_steps / min(10, max(2, affordable)))
        trainer.val_check_interval = steps * trainer.accumulate_grad_batches
        alone = trainer.devices == trainer.num_nodes == trainer.accumulate_grad_batches == 1
        at_any_moment = alone and not accumulates_more
        if trainer.max_steps < 0 and trainer.max_time is not None and at_any_moment:
            s = max(1, round(seconds_of(trainer.max_time) / 10))
            clock = f"{s // 3600 % 24:02}:{s // 60 % 60:02}:{s % 60:02}"
            trainer.val_check_interval = f"{s // 86400:02}:{clock}"
    check_whole_steps(trainer, trainer.accumulate_grad_batches, "trainer.accumulate_grad_batches")
    check_epochs(trainer)


DEFAULT_SECONDS = 45  # of a run of the default number of steps, on two CPU cores


def resolve_dropout(config: DictConfig, train_characters: int, vocab_size: int) -> None:
    """Fill in the model's dropout and input noise where they are left open.

    A model with more weights than the training split has characters memorises the text in time: its
    dropout is 0.1 from 5 passes on, and 0.2 from 20 passes on. If it has at least 20 times as many
    weights and sees 20 passes, its input noise is 0.05 as well. If only time ends the run, the
    device's default number of steps is taken to need `DEFAULT_SECONDS`.
    """
    left_open = [key for key in BY_TEXT if config.model.get(key, 0.0) is None]
    if not left_open:
        return
    config.model.update(dict.fromkeys(left_open, 0.0))
    sizes = {"vocab_size": vocab_size, "block_size": config.data.block_size}
    try:
        with torch.device("meta"):  # allocates no weights and draws no random numbers
            model: torch.nn.Module = instantiate(config.model, **sizes)
    except InstantiationException:
        return  # building the model will say why
    weights = sum(parameter.numel() for parameter in model.parameters())
    steps = config.trainer.max_steps if config.trainer.max_steps > 0 else math.inf
    if steps == math.inf and config.trainer.max_time is not None:
        by_device = config.by_device[device_of(config.trainer.accelerator).type]
        steps = by_device.trainer.max_steps * seconds_of(config.trainer.max_time) / DEFAULT_SECONDS
    passes = steps * characters_of_a_step(config) / train_characters
    chosen = {"dropout": 0.0, "noise": 0.0}
    if weights > train_characters:
        chosen["dropout"] = 0.2 if passes >= 20 else 0.1 if passes >= 5 else 0.0
    if weights >= 20 * train_characters and passes >= 20:
        chosen["noise"] = 0.05
    config.model.update({key: chosen[key] for key in left_open})


def characters_of_a_step(config: DictConfig) -> int:
    """Return the number of characters in an optimiser step, over all accumulated batches."""
    windows: int = config.data.batch_size * config.trainer.accumulate_grad_batches
    return windows * int(config.data.block_size)


def _fill(config: DictConfig, values: Any) -> None:
    """Fill in the keys of `config` that are null from `values`; keys that it lacks are skipped."""
    for key, value in values.items():
        if key not in config:
            continue
        if OmegaConf.is_dict(value):
            _fill(config[key], value)
        elif config[key] is None:
            config[key] = value
