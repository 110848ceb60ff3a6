"""What a configuration leaves open, decided when it runs: by the device and by the text."""

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from litchar.checkpoints import Checkpoint, find
from litchar.checkpoints.checkpoint import MODELS, trusted
from litchar.device import device_of
from litchar.errors import UserError, check_flag, check_integer, is_number
from litchar.overrides import literal
from litchar.training.settings import MAY_CHANGE, absolute_paths, flatten, plain, within


def resolve_device(config: DictConfig) -> torch.device:
    """Return the device that the run lands on, and fill in what `config` leaves open by device.

    A key that is null takes its value from `by_device.cpu`, `.cuda` or `.mps`, if that names it; a
    key that the chosen model or optimiser does not have is left out.

    Raises:
        UserError: a setting has no meaning.
    """
    check_settings(config)
    trainer = config.trainer
    if trainer.max_steps is None and not is_length_open(config):
        trainer.max_steps = -1  # passes or time alone end the run
    device = device_of(config.trainer.accelerator)
    _fill(config, config.by_device[device.type])
    wants_bf16 = device.type == "cuda" and config.trainer.precision == "bf16-mixed"
    if wants_bf16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        config.trainer.precision = "32-true"  # older cards would emulate it, slowly
    return device


def check_settings(config: DictConfig) -> None:
    """Refuse what would be taken for something else, or only trip a run that is under way.

    A whole number may be written as 1e4.

    Raises:
        UserError: a value is of the wrong kind or out of its range.
    """
    for key, least in WHOLE_NUMBERS.items():
        value = OmegaConf.select(config, key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
            OmegaConf.update(config, key, value)
        if value is not None or key in NEEDED:
            check_integer(key, value, least)
    check_integer("seed", config.seed, 0, 2**32 - 1)
    for key, (fits, what) in NUMBERS.items():
        value = OmegaConf.select(config, key)
        if (value is not None or key in NEEDED) and not (is_number(value) and fits(value)):
            raise UserError(f"{key}={value}: must be {what}")
    if config.profile and config.trainer.profiler == "pytorch":
        raise UserError(
            "profile=true and trainer.profiler=pytorch: both are torch's profiler, which records "
            "one thing at a time; leave one out"
        )
    trusted(config.model.get("_target_"), MODELS, "model._target_")
    for key, value in flatten(plain(config)):
        if key.startswith("model.") and key.endswith("._target_") and key != "model._target_":
            raise UserError(
                f"{key}={value}: a checkpoint keeps a model's settings as plain data; name what "
                "is to be built, and let the model build it"
            )
        if isinstance(value, str) and value.lower() in YES_AND_NO and within(key, BUILT):
            raise UserError(f"{key}={value}: a text, which Python takes as true; true or false?")
    for key in (*FLAGS, *OPEN_FLAGS):
        value = OmegaConf.select(config, key)
        if value is not None or key in FLAGS:
            check_flag(key, value)
    _check_trainer(config.trainer)


def _check_trainer(trainer: DictConfig) -> None:
    interval = trainer.val_check_interval
    if is_number(interval) and interval <= 0:
        raise UserError(
            f"trainer.val_check_interval={interval}: counts batches, and must be at least 1"
        )
    if trainer.deterministic not in (True, False, None, "warn"):
        raise UserError(
            f"trainer.deterministic={trainer.deterministic}: must be true, false or warn"
        )
    if trainer.use_distributed_sampler is not False:
        raise UserError(
            "trainer.use_distributed_sampler: the data module deals batches to ranks itself; leave "
            "it out"
        )
    for key in ("val_check_interval", *LIMITS):
        batches = trainer[key]
        if isinstance(batches, bool) and key in LIMITS:
            raise UserError(f"trainer.{key}={batches}: must be a number of batches, or a share")
        if isinstance(batches, float) and batches > 1 and batches.is_integer():
            trainer[key] = int(batches)  # 1.0 is all of them to Lightning


# Keys that are whole numbers where they are not null, and the least of each.
WHOLE_NUMBERS = {
    "seed": 0,
    "trainer.max_steps": -1,
    "trainer.min_steps": 0,
    "trainer.overfit_batches": 0,
    "trainer.accumulate_grad_batches": 1,
    "trainer.log_every_n_steps": 0,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.num_sanity_val_steps": -1,
    "trainer.reload_dataloaders_every_n_epochs": 0,
}

# Keys that are numbers where they are not null, and of each which ones, also in words.
NUMBERS: dict[str, tuple[Callable[[float], bool], str]] = {
    "checkpoint.every_seconds": (lambda x: x > 0, "a number above 0"),
    "target_val_loss": (lambda x: True, "a number, or null"),
    "trainer.max_epochs": (lambda x: 0 < x < math.inf, "a number above 0, or null"),
    "trainer.min_epochs": (lambda x: 0 <= x < math.inf, "a number of at least 0, or null"),
    "trainer.gradient_clip_val": (lambda x: x >= 0, "a number of at least 0, or null"),
}

FLAGS = (
    "profile",
    "report",
    "trainer.barebones",
    "trainer.detect_anomaly",
    "trainer.enable_checkpointing",
    "trainer.inference_mode",
    "trainer.sync_batchnorm",
)
OPEN_FLAGS = ("compile", "trainer.benchmark")  # which may be null
LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches")

# Which are never null:
NEEDED = ("seed", "checkpoint.every_seconds", "trainer.accumulate_grad_batches")
YES_AND_NO = ("yes", "no", "on", "off")  # true and false to YAML 1.1, and texts to Hydra
BUILT = ("model", "optimizer", "scheduler", "trainer", "callbacks", "logger")  # what they may be in


KEPT = ("data.val_batch_size", "trainer.min_steps", "trainer.deterministic")


def resolve_as_before(config: DictConfig, then: dict[str, Any], path: Path) -> None:
    """Give what `config` leaves open the values of the run that it goes on with.

    Or else more steps, or another device, would bring other intervals and sizes along. How long it
    trains is open if neither steps, passes nor time are given.

    Args:
        then: the configuration of that run, of the checkpoint at `path`.

    Raises:
        UserError: a value is no plain data.
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
    for key, value in flatten(then):
        kept = key in KEPT or not within(key, MAY_CHANGE)
        if value is not None and kept and OmegaConf.select(config, key, default=0) is None:
            OmegaConf.update(config, key, _taken(key, value, path))


def _taken(key: str, value: Any, path: Path) -> Any:
    """Return what the checkpoint at `path` says of a key, for a configuration that is to be built.

    Raises:
        UserError: something in it would be built, and so run, with the rest.
    """
    if _builds(value):
        raise UserError(
            f"{path}: its {key} names what is to be built, where a checkpoint has plain "
            "data; it was not built"
        )
    return _escaped(value)


def _builds(value: Any) -> bool:
    """Return whether `instantiate` would build something of plain data, however deep."""
    if isinstance(value, dict):
        return "_target_" in value or any(map(_builds, value.values()))
    return isinstance(value, list | tuple) and any(map(_builds, value))


def resolve_paths(config: DictConfig) -> None:
    """Make the paths of the text absolute, so that it is found again from any directory."""
    data = plain(config.data, resolve=True)
    for key, value in absolute_paths(data).items():
        config.data[key] = _escaped(value)


def _escaped(value: Any) -> Any:
    """Return plain data whose texts OmegaConf takes as they are."""
    if isinstance(value, list | tuple):
        return [_escaped(one) for one in value]
    if isinstance(value, dict):
        return {key: _escaped(one) for key, one in value.items()}
    return literal(value) if isinstance(value, str) else value


def resolve_parent(config: DictConfig) -> Checkpoint | None:
    """Return the checkpoint to begin from, if any; its model's settings fill in what is open.

    Raises:
        UserError: there is no such checkpoint, or another kind of model was asked for.
    """
    if config.init_from is None:
        return None
    parent = Checkpoint.load(
        find(config.init_from, Path(config.outputs_dir), "init_from").absolute()
    )
    config.init_from = literal(str(parent.path))  # `latest` will be another one soon
    settings = parent.model_settings
    if config.model["_target_"] != settings["_target_"]:
        raise UserError(
            f"init_from={config.init_from} holds a {settings['_target_'].rpartition('.')[2]}, "
            f"and model is a {config.model['_target_'].rpartition('.')[2]}; set model as "
            "it was trained with, or name another checkpoint"
        )
    own = {key: _taken(f"model.{key}", value, parent.path) for key, value in settings.items()}
    _fill(config.model, {key: value for key, value in own.items() if key not in BY_TEXT})
    if config.data.unit != parent.vocabulary.unit:
        raise UserError(
            f"init_from={config.init_from} is a model of {parent.vocabulary.unit}s, and "
            f"data.unit={config.data.unit}; set data.unit={parent.vocabulary.unit}"
        )
    _fill(config.data, asdict(parent.cleaning) | {"block_size": own["block_size"]})
    return parent


BY_TEXT = ("dropout", "noise")  # of a model's settings: another text, another answer

MOST_PASSES = 40  # through the training split; on more, models only learn it by heart


def is_length_open(config: DictConfig) -> bool:
    """Return whether nothing says how long to train; to be asked before `resolve_device`."""
    trainer = config.trainer
    return trainer.max_steps is None and trainer.max_epochs is None and trainer.max_time is None


def resolve_steps(
    config: DictConfig, train_characters: int, val_characters: int, by_default: bool = False
) -> None:
    """Fill in how long to train, and how often to validate, if nothing else is said.

    A pass, as `trainer.max_epochs` and `min_epochs` count, is as many batches as hold the training
    split's characters once; batches are drawn at random all the same. A run validates ten times, or
    where that would take longer than its steps, less often, but twice at least; one of few steps as
    often as whole steps between them allow. A step is forward and backward, and costs three times
    as much a character.

    Args:
        by_default: whether `trainer.max_steps` is what the device takes by default; on a short text
            it then takes fewer.
    """
    trainer = config.trainer
    characters = characters_of_a_step(config)
    for key in ("max_epochs", "min_epochs"):
        if trainer[key] and any(
            str(entry.get("_target_")).endswith("GradientAccumulationScheduler")
            for entry in (config.callbacks or {}).values()
            if entry
        ):
            raise UserError(
                f"trainer.{key}={trainer[key]}: counts characters by the step, of which "
                "GradientAccumulationScheduler changes how many it has; count steps instead"
            )
    if trainer.min_epochs:
        least = math.ceil(trainer.min_epochs * train_characters / characters)
        trainer.min_steps = max(trainer.min_steps or 0, least)
    trainer.min_epochs = 0  # Lightning's has no end here, and null means 1 with min_steps
    if trainer.max_epochs is not None:
        most = math.ceil(trainer.max_epochs * train_characters / characters)
        trainer.max_steps = most if trainer.max_steps < 0 else min(most, trainer.max_steps)
        trainer.max_epochs = None
    elif by_default:
        most = math.ceil(MOST_PASSES * train_characters / characters)
        trainer.max_steps = min(trainer.max_steps, most)
    if trainer.min_steps and trainer.max_steps > 0:  # or Lightning would not validate the last
        trainer.min_steps = min(trainer.min_steps, trainer.max_steps)
    if trainer.val_check_interval is None:
        steps = 500
        if trainer.max_steps > 0:
            affordable = 3 * trainer.max_steps * characters // val_characters
            steps = math.ceil(trainer.max_steps / min(10, max(2, affordable)))
        trainer.val_check_interval = steps * trainer.accumulate_grad_batches
    check_whole_steps(trainer, trainer.accumulate_grad_batches, "trainer.accumulate_grad_batches")
    _check_epochs(trainer)


def _check_epochs(trainer: DictConfig) -> None:
    """Refuse to validate within or after epochs that have no end, or end before that."""
    every, interval = trainer.check_val_every_n_epoch, trainer.val_check_interval
    batches = trainer.limit_train_batches
    if (every or 1) > 1 and not isinstance(batches, int) and not trainer.overfit_batches:
        raise UserError(
            f"trainer.check_val_every_n_epoch={every}: batches are drawn without an end, so "
            "nothing would be validated; say how many are an epoch "
            "(trainer.limit_train_batches), or set trainer.val_check_interval"
        )
    counted = isinstance(interval, int) and isinstance(batches, int)
    if every is not None and counted and interval > batches:
        raise UserError(
            f"trainer.check_val_every_n_epoch={every}: counts within an epoch of "
            f"trainer.limit_train_batches={batches} batches, of which "
            f"trainer.val_check_interval={interval} is more; leave it out"
        )


def check_whole_steps(trainer: DictConfig, batches: int, why: str) -> None:
    """Refuse what would validate, and save, or end an epoch within a step of several batches.

    Args:
        batches: of a step.
        why: the key that says so.

    Raises:
        UserError: there is such a setting.
    """
    if batches == 1:
        return
    multiple = f"must be a multiple of {batches}, the batches of a step ({why})"
    epoch = None
    for key in ("limit_train_batches", "overfit_batches"):
        if isinstance(trainer[key], int) and trainer[key]:
            epoch = trainer[key]
            if epoch % batches:
                raise UserError(
                    f"trainer.{key}={epoch}: are the batches of an epoch, and {multiple}: it ends "
                    "with a whole step"
                )
    interval = trainer.val_check_interval
    if isinstance(interval, float) and epoch is not None:
        apart = max(1, int(epoch * interval))  # as Lightning has it
        said = f"{apart} batches of an epoch's {epoch}, and they"
    elif isinstance(interval, int):
        apart, said = interval, "counts batches, and"
    elif isinstance(interval, float):
        return  # of an endless epoch, which Lightning refuses
    else:
        raise UserError(
            f"trainer.val_check_interval={interval}: counts time, and whole steps are validated, "
            f"which here have {batches} batches ({why}); count batches instead"
        )
    if apart % batches:
        raise UserError(
            f"trainer.val_check_interval={interval}: {said} {multiple}: whole steps are validated; "
            f"try {math.ceil(apart / batches) * batches}"
        )


def resolve_dropout(config: DictConfig, train_characters: int, vocab_size: int) -> None:
    """Fill in how much the model drops, and how noisy what it reads is, where that is left open.

    A model that has more weights than the text has characters learns the text by heart, in time:
    it drops 0.1 if it sees the text 5 times or more, and 0.2 from 20 times on. If it also has 20
    times as many weights, 0.05 of what it reads is noise.
    """
    left_open = [key for key in BY_TEXT if config.model.get(key, 0.0) is None]
    if not left_open:
        return
    config.model.update(dict.fromkeys(left_open, 0.0))
    sizes = {"vocab_size": vocab_size, "block_size": config.data.block_size}
    try:
        with torch.device("meta"):  # no memory, no random number
            model: torch.nn.Module = instantiate(config.model, **sizes)
    except InstantiationException:
        return  # building it says why
    weights = sum(parameter.numel() for parameter in model.parameters())
    steps = config.trainer.max_steps if config.trainer.max_steps > 0 else math.inf  # time ends it
    passes = steps * characters_of_a_step(config) / train_characters
    chosen = {"dropout": 0.0, "noise": 0.0}
    if weights > train_characters:
        chosen["dropout"] = 0.2 if passes >= 20 else 0.1 if passes >= 5 else 0.0
    if weights >= 20 * train_characters and passes >= 20:
        chosen["noise"] = 0.05
    config.model.update({key: chosen[key] for key in left_open})


def characters_of_a_step(config: DictConfig) -> int:
    """Return how many characters an optimiser step trains on."""
    windows: int = config.data.batch_size * config.trainer.accumulate_grad_batches
    return windows * int(config.data.block_size)


def _fill(config: DictConfig, values: Any) -> None:
    """Give `config` the values of keys that it has and leaves null."""
    for key, value in values.items():
        if key not in config:
            continue
        if OmegaConf.is_dict(value):
            _fill(config[key], value)
        elif config[key] is None:
            config[key] = value
