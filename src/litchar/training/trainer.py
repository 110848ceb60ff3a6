"""A run's Lightning Trainer, with the callbacks and loggers that record the run."""

import contextlib
import logging
import math
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from hydra.utils import instantiate
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.callbacks import ProgressBar as AnyProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PassThroughProfiler
from omegaconf import DictConfig

from litchar import signals
from litchar.errors import UserError
from litchar.launched import Place
from litchar.overrides import built
from litchar.terminal import Terminal
from litchar.training.callbacks import Metrics, Samples
from litchar.training.checkpointing import AtomicCheckpointIO, Checkpoints
from litchar.training.checks import check_whole_steps, is_endless
from litchar.training.deadline import Deadline, seconds_of
from litchar.training.prepare import Setup
from litchar.training.profile import Profile
from litchar.training.progress import ProgressBar
from litchar.training.ranks import Environment
from litchar.training.schedules import share_without_total
from litchar.training.sharding import ShardedStrategy


def make_trainer(
    setup: Setup, place: Place, terminal: Terminal, callbacks: Sequence[Callback] = ()
) -> tuple[L.Trainer, Metrics, Samples]:
    """Return the Trainer that a run's configuration describes, and its metrics and samples.

    Args:
        place: of this process among the ranks of the run.
        terminal: where to show progress.
        callbacks: in addition to those in the configuration.
    """
    config, run_dir = setup.config, setup.run_dir
    characters_per_batch = config.data.batch_size * config.data.block_size
    metrics = Metrics(run_dir, characters_per_batch, config.target_val_loss)
    samples = Samples(run_dir / "samples.txt", setup.data.splits.store.vocabulary, config.seed)
    files = AtomicCheckpointIO()
    checkpoints = Checkpoints(
        run_dir / "checkpoints", files, metrics, config.checkpoint.every_seconds, terminal
    )
    configured = _configured_callbacks(config, run_dir)
    has_bar = any(isinstance(callback, AnyProgressBar) for callback in configured)
    shows_bar = config.trainer.enable_progress_bar and not has_bar
    deadline: list[Callback] = []
    if config.trainer.max_time is not None and config.trainer.max_steps < 0:
        if any(isinstance(callback, Timer) for callback in configured):
            raise UserError("callbacks: trainer.max_time has a Timer already; leave out your own")
        share = share_without_total(setup.module.schedule)
        deadline = [Deadline(seconds_of(config.trainer.max_time), share, terminal)]
    trainer = instantiate(
        config.trainer,
        _convert_="all",  # max_time may be a dictionary
        default_root_dir=str(run_dir),
        plugins=[files, Environment(place)],
        profiler=config.trainer.profiler or NoProfiler(),
        logger=entries(config, "logger", Logger),
        callbacks=[
            *deadline,  # first: others ask whether this step is the last
            metrics,
            samples,
            *([ProgressBar(terminal, samples)] if shows_bar else []),
            *([Profile(run_dir / "profile", terminal)] if config.profile else []),
            *configured,
            *callbacks,
            *([checkpoints] if config.trainer.enable_checkpointing else []),
        ],
    )
    if isinstance(name := config.trainer.profiler, str):  # else to a log that nobody sees
        trainer.profiler.dirpath, trainer.profiler.filename = str(run_dir / "profile"), name
    interval = config.trainer.val_check_interval
    if trainer._val_check_time_interval is not None:
        trainer.val_check_interval = None  # Lightning leaves it out, but EarlyStopping asks for it
        if trainer._val_check_time_interval <= 0:
            raise UserError(f"trainer.val_check_interval={interval}: must be above zero")
        if place.world_size > 1:  # settle_devices refuses a new run
            raise UserError(
                f"trainer.val_check_interval={interval}: this run validates by time, and ranks "
                "have their own clocks; resume it on one device"
            )
    for callback in trainer.callbacks:
        _check_callback(callback, trainer, config.trainer)
    # Lightning's own handlers exit with code 0, and with several ranks would communicate from
    # within whatever the signal interrupted.
    setattr(trainer._signal_connector, "register_signal_handlers", signals.install)  # noqa: B010
    return trainer, metrics, samples


def _configured_callbacks(config: DictConfig, run_dir: Path) -> list[Callback]:
    """Return the callbacks of the configuration in the order in which they are to run."""
    configured = entries(config, "callbacks", Callback)
    for callback in configured:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            # In the run's directory rather than the first logger's, where last.ckpt is the run's.
            callback.dirpath = str(run_dir / "checkpoints")
            callback.CHECKPOINT_NAME_LAST = "model_checkpoint_last"
            if callback.filename in ("best", "last", "previous"):
                raise UserError(
                    f"callbacks: {callback.filename}.ckpt is the run's own checkpoint; give "
                    "ModelCheckpoint another filename, or a dirpath"
                )
    # EarlyStopping goes first: others ask whether this validation is the last.
    return sorted(configured, key=lambda callback: not isinstance(callback, EarlyStopping))


def _check_callback(callback: Callback, trainer: L.Trainer, settings: DictConfig) -> None:
    """Refuse a callback that cannot work in this run, or would wait in vain: for the end of an
    endless epoch, or for a figure that only loggers get."""
    name = type(callback).__name__
    seconds = callback._duration if isinstance(callback, Timer) else None
    if seconds is not None and seconds <= 0:
        raise UserError(f"trainer.max_time={settings.max_time}: must be above zero")
    if isinstance(callback, WeightAveraging) and isinstance(trainer.strategy, ShardedStrategy):
        raise UserError(
            f"callbacks: {name} copies the whole model, which trainer=fsdp shards; use trainer=ddp"
        )
    schedule = callback.scheduling if isinstance(callback, GradientAccumulationScheduler) else {}
    if schedule:
        whole = math.lcm(*schedule.values())  # whole steps under every factor
        check_whole_steps(settings, whole, "callbacks.*.scheduling")
    if (len(schedule) > 1 or isinstance(callback, ModelPruning)) and is_endless(settings):
        raise UserError(
            f"callbacks: {name} acts between epochs, which have no end here; set their length with "
            "trainer.limit_train_batches"
        )
    monitor = str(getattr(callback, "monitor", None))
    if monitor in ("train/loss", "lr", "grad_norm") or monitor.startswith("speed/"):
        raise UserError(
            f"callbacks: {name} cannot monitor {monitor}, which is for loggers alone; monitor "
            "val/loss or train/eval_loss"
        )


def entries(config: DictConfig, group: str, kind: type) -> list[Any]:
    """Return the callbacks or loggers of a config group; null removes one of them, or all.

    Raises:
        UserError: one is not an instance of `kind`, is given an argument that it does not take, or
            is a `REFUSED` callback.
    """
    made = []
    for name, entry in (config.get(group) or {}).items():
        if entry is None:
            continue
        described = isinstance(entry, DictConfig)
        made.append(built(f"{group}.{name}", entry) if described else entry)
        if not isinstance(made[-1], kind):
            raise UserError(
                f"{group}.{name}: its _target_ must name a Lightning {kind.__name__}, or one of "
                "your own"
            )
        for refused, why in REFUSED.items():
            if isinstance(made[-1], refused):
                raise UserError(f"{group}.{name}: {refused.__name__} is unsupported: {why}")
    return made


# Lightning callbacks whose effect a run would not keep or not know of, and what to do instead.
REFUSED = {
    BatchSizeFinder: "the metrics need a fixed batch size; set data.batch_size",
    LearningRateFinder: "compare some with -m optimizer.lr=1e-3,3e-3 or scripts/tune.py",
    StochasticWeightAveraging: "its average is never scored or saved; use EMAWeightAveraging",
}


class NoProfiler(PassThroughProfiler):
    """Profiles nothing, like Lightning's own, but without the cost of a generator per hook."""

    def profile(self, action_name: str) -> Any:
        """Return a context that does nothing."""
        return _NOTHING


_NOTHING = contextlib.nullcontext()


def quiet_libraries() -> None:
    """Silence library messages and warnings that the user cannot act on."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    warnings.filterwarnings("ignore", message="You requested to overfit")
    warnings.filterwarnings("ignore", message="FLOPs not found")  # on a GPU unknown to Lightning
    warnings.filterwarnings("ignore", message="Please use the new API settings")  # torch 2.9
    warnings.filterwarnings("ignore", message="Synchronization debug mode")  # of replay.py
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    # Of logits from a layer with a bias; nothing here changes them in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback with")
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    if threading.excepthook is threading.__excepthook__:  # unless somebody has set another
        threading.excepthook = _report_thread


def _report_thread(args: threading.ExceptHookArgs) -> None:
    """Print the error that ended a thread, unless TensorBoard failed to write (`TensorBoard`)."""
    tensorboards = type(args.thread).__module__.startswith("tensorboard.")
    if not (tensorboards and isinstance(args.exc_value, OSError)):
        threading.__excepthook__(args)
