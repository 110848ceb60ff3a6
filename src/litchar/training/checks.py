"""What a configuration may not ask for: settings that would be misread, or would fail later."""

import math
from collections.abc import Callable

from omegaconf import DictConfig, OmegaConf

from litchar.checkpoints.checkpoint import MODELS, trusted
from litchar.errors import UserError, check_flag, check_integer, is_number
from litchar.settings import flatten, plain, within


def check_settings(config: DictConfig) -> None:
    """Raise UserError for settings that would be misread, or fail only once the run is under way.

    A float with an integer value, such as 1e4, is accepted as an integer and converted.
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
    if config.profile and str(config.trainer.profiler).lower() == "pytorch":
        raise UserError(
            "profile=true and trainer.profiler=pytorch: both use torch's profiler, which cannot "
            "run twice at once; leave one out"
        )
    trusted(config.model.get("_target_"), MODELS, "model._target_")
    for key, value in flatten(plain(config)).items():
        if key.startswith("model.") and key.endswith("._target_") and key != "model._target_":
            raise UserError(
                f"{key}={value}: a checkpoint stores a model's settings as plain data; pass a "
                "name, and let the model build the object"
            )
        if isinstance(value, str) and value.lower() in YES_AND_NO and within(key, BUILT):
            raise UserError(f"{key}={value}: a string, always true in Python; use true or false")
    for key in (*FLAGS, *OPEN_FLAGS):
        value = OmegaConf.select(config, key)
        if value is not None or key in FLAGS:
            check_flag(key, value)
    _check_trainer(config.trainer)


def _check_trainer(trainer: DictConfig) -> None:
    if isinstance(trainer.fast_dev_run, float) and trainer.fast_dev_run.is_integer():
        trainer.fast_dev_run = int(trainer.fast_dev_run)
    if not isinstance(trainer.fast_dev_run, bool | None):
        check_integer("trainer.fast_dev_run", trainer.fast_dev_run, 0)
    interval = trainer.val_check_interval
    if is_number(interval) and interval <= 0:
        raise UserError(
            f"trainer.val_check_interval={interval}: counts batches, and must be at least 1"
        )
    if trainer.deterministic not in (True, False, None, "warn"):
        raise UserError(
            f"trainer.deterministic={trainer.deterministic}: must be true, false or warn"
        )
    if trainer.barebones:
        raise UserError(
            "trainer.barebones=true: nothing would be recorded; to time bare steps, use "
            "scripts/benchmark.py overhead"
        )
    share = trainer.limit_train_batches
    if isinstance(share, float) and share < 1:
        raise UserError(
            f"trainer.limit_train_batches={share}: is a share of batches that never run out; give "
            "their number"
        )
    if trainer.use_distributed_sampler is not False:
        raise UserError(
            "trainer.use_distributed_sampler: the data module distributes batches itself; leave "
            "this out"
        )
    for key in BATCHES:
        batches = trainer[key]
        if isinstance(batches, bool):
            raise UserError(f"trainer.{key}={batches}: must be a number of batches, or a share")
        if isinstance(batches, float) and batches > 1 and batches.is_integer():
            trainer[key] = int(batches)  # but not 1.0, which means all of them to Lightning


# Keys that are integers unless they are null, with the minimum of each.
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

# Keys that are numbers unless they are null, with the check of each and its description.
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
OPEN_FLAGS = ("compile", "trainer.benchmark")  # flags that may be null
BATCHES = ("val_check_interval", "limit_train_batches", "limit_val_batches", "limit_test_batches")

# Keys of the above that may not be null.
NEEDED = ("seed", "checkpoint.every_seconds", "trainer.accumulate_grad_batches")
YES_AND_NO = ("yes", "no", "on", "off")  # booleans in YAML 1.1, strings to Hydra
BUILT = ("model", "optimizer", "scheduler", "trainer", "callbacks", "logger")  # refused here


def check_epochs(trainer: DictConfig) -> None:
    """Refuse to validate by epoch if epochs are endless, or shorter than the interval."""
    every, interval = trainer.check_val_every_n_epoch, trainer.val_check_interval
    batches = trainer.limit_train_batches
    if every is not None and (every > 1 or isinstance(interval, float)) and is_endless(trainer):
        raise UserError(
            f"trainer.check_val_every_n_epoch={every}: batches never run out, so nothing would be "
            "validated; set the length of an epoch (trainer.limit_train_batches) or "
            "trainer.val_check_interval"
        )
    counted = isinstance(interval, int) and isinstance(batches, int)
    if every is not None and counted and interval > batches:
        raise UserError(
            f"trainer.check_val_every_n_epoch={every}: cannot be set if "
            f"trainer.val_check_interval={interval} is longer than an epoch "
            f"(trainer.limit_train_batches={batches}); leave it out"
        )


def is_endless(trainer: DictConfig) -> bool:
    """Return whether an epoch has no end: nothing sets its length."""
    return not isinstance(trainer.limit_train_batches, int) and not trainer.overfit_batches


def check_whole_steps(trainer: DictConfig, batches: int, why: str) -> None:
    """Refuse to validate (and save) or end an epoch in the middle of gradient accumulation.

    Args:
        batches: batches per optimiser step.
        why: the key that sets it.

    Raises:
        UserError: an interval or epoch is not a whole number of steps, or the interval is a time.
    """
    if batches == 1:
        return
    multiple = f"must be a multiple of {batches}, the batches per step ({why})"
    epoch = None
    for key in ("limit_train_batches", "overfit_batches"):
        if isinstance(trainer[key], int) and trainer[key]:
            epoch = trainer[key]
            if epoch % batches:
                raise UserError(
                    f"trainer.{key}={epoch}: {multiple}, so that an epoch ends with a whole step"
                )
    interval = trainer.val_check_interval
    if not isinstance(interval, int | float):
        raise UserError(
            f"trainer.val_check_interval={interval}: counts time, but validation needs a whole "
            f"step, here {batches} batches ({why}); count batches instead"
        )
    if isinstance(interval, int):
        apart, said = interval, "counts batches and"
    elif epoch is not None:
        apart = max(1, int(epoch * interval))  # as Lightning computes it
        said = f"is {apart} of an epoch's {epoch} batches, and"
    else:
        return  # a fraction of an endless epoch, which Lightning refuses
    if apart % batches:
        raise UserError(
            f"trainer.val_check_interval={interval}: {said} {multiple}: validation needs a whole "
            f"step; try {math.ceil(apart / batches) * batches}"
        )
