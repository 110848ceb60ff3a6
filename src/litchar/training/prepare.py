"""Prepare a run: resolve the configuration, open the text, build the model."""

import contextlib
import functools
import math
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch.optim.lr_scheduler import LRScheduler

from litchar.atomic import remove_drafts
from litchar.checkpoints import Checkpoint, load
from litchar.checkpoints.checkpoint import make_card
from litchar.checkpoints.transfer import differing, transfer_weights
from litchar.data import TextDataModule, make_data_module
from litchar.device import set_matmul_precision
from litchar.errors import UserError, is_out_of_memory
from litchar.launched import Place
from litchar.models import block_size_of
from litchar.overrides import literal, not_taken, options_of, without_passwords
from litchar.settings import differences, plain, read_yaml
from litchar.terminal import Terminal
from litchar.text import Vocabulary
from litchar.training import environment
from litchar.training.checks import check_settings
from litchar.training.module import LanguageModel
from litchar.training.resolve import (
    is_length_open,
    resolve_as_before,
    resolve_by_device,
    resolve_dropout,
    resolve_parent,
    resolve_paths,
    resolve_steps,
)
from litchar.training.schedules import share_without_total


@dataclass(frozen=True)
class Setup:
    """Everything a run needs, fully resolved.

    Attributes:
        config: the configuration, with open values filled in from the device and the text.
        run_dir: where rank 0 writes the run's record.
        resumed: the checkpoint to resume from, if any.
    """

    config: DictConfig
    run_dir: Path
    device: torch.device
    data: TextDataModule
    module: LanguageModel
    resumed: Checkpoint | None

    def for_the_others(self) -> DictConfig:
        """Return the configuration from which the other ranks prepare the same run."""
        config = self.config.copy()
        config.name = literal(str(config.name))  # only this process can resolve ${hydra:...}
        config.resume = self.resumed and literal(str(self.resumed.path))
        return config


def prepare(config: DictConfig, run_dir: Path, place: Place, terminal: Terminal) -> Setup:
    """Fill in what `config` leaves open, open the text and build the model.

    What is open is filled in from, in this order,

    1. the run that is resumed,
    2. the checkpoint to begin from,
    3. the defaults of the device, once all that is set is valid,
    4. the text.

    Nothing is written to the run directory.

    Raises:
        UserError: the configuration or the text is invalid.
    """
    config.run_dir = str(run_dir)  # each job of a sweep has its own
    try:
        config.run_dir.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"run_dir={run_dir}: this name is not valid UTF-8, which TensorBoard needs; choose "
            "another"
        ) from None
    resumed = find_resumed(config.resume, run_dir, terminal)
    if resumed is not None:
        resolve_as_before(config, resumed.config, resumed.path)
    resolve_paths(config)
    parent = resolve_parent(config) if resumed is None else None
    check_settings(config)
    by_default = is_length_open(config)
    device = resolve_by_device(config)
    set_matmul_precision(config.float32_matmul_precision, device)
    L.seed_everything(config.seed, verbose=False)
    data = make_data_module(config.data)
    data.setup()
    data.check_shared_by(place.world_size)
    store = data.splits.store
    resolve_steps(config, len(data.splits["train"]), len(data.splits["val"]), by_default)
    resolve_dropout(config, len(data.splits["train"]), len(store.vocabulary))
    settings = plain(config, resolve=True)
    if resumed is not None:
        check_same_run(resumed, settings, store.fingerprint)

    vocabulary, block_size = store.vocabulary, config.data.block_size
    build = functools.partial(_build_model, config.model, block_size=block_size)
    model = build(len(vocabulary))
    card = make_card(
        vocabulary,
        settings["model"] | {"vocab_size": len(vocabulary), "block_size": block_size},
        settings,
        fingerprint=store.fingerprint,
        text=str(data.text.corpus),
        changes=store.changes,
        **environment.describe(device),
    )
    _check_checkpoints(model, card)
    if parent is not None:
        _begin_from(parent, model, vocabulary, build, settings["model"], terminal)
    optimizer, schedule = _optimizer_and_schedule(config, model)
    module = LanguageModel(
        model, vocabulary, optimizer, schedule, card, config.seed, data.text.weights
    )
    return Setup(config, run_dir, device, data, module, resumed)


def find_resumed(resume: str | None, run_dir: Path, terminal: Terminal) -> Checkpoint | None:
    """Return the checkpoint that `resume` names: null (none), `auto` (the newest intact one in
    `run_dir`), a file, or a run directory."""
    if resume is None:
        return None
    path = run_dir if resume == "auto" else Path(os.path.expanduser(resume))
    if path.is_dir() or resume == "auto":
        for directory in (path, path / "checkpoints", path / "tensorboard"):
            remove_drafts(directory)
        newest = _newest(path / "checkpoints", terminal)
        if newest is None and resume != "auto":
            raise UserError(f"resume={resume}: there is no checkpoint in this directory")
        return newest
    return Checkpoint.load(path)


def _newest(directory: Path, terminal: Terminal) -> Checkpoint | None:
    """Return the newest intact checkpoint in `directory`, or None; report damaged ones.

    Raises:
        UserError: there are checkpoints, but all are damaged.
    """
    paths = [directory / f"{name}.ckpt" for name in ("last", "previous", "best")]
    there = [path for path in paths if path.exists()]
    for path in there:
        try:
            data = load(path)
        except UserError as error:
            terminal.say(str(error))
        else:
            return Checkpoint.of(data, path)
    if there:
        raise UserError(f"{directory}: every checkpoint is damaged; start over in another run_dir")
    return None


def check_same_run(resumed: Checkpoint, settings: dict[str, Any], fingerprint: str) -> None:
    """Refuse to resume a run with different settings, on a different text, or to an end that it has
    passed.

    Raises:
        UserError: the settings or the text differ (the message says how), the checkpoint holds
            only weights, its weights do not fit its model, or it has taken more steps.
    """
    if not resumed.resumable:
        raise UserError(
            f"resume: {resumed.path} holds only weights; start a run from them with init_from"
        )
    changed = differences(resumed.config, settings)
    if changed:
        raise UserError(
            f"resume: {resumed.path} was trained with other settings ({'; '.join(changed)}); use "
            f"the same{_as_typed(resumed.path)}, or start a new run from its weights with init_from"
        )
    if resumed.provenance["fingerprint"] != fingerprint:
        raise UserError(
            f"resume: the text has changed since {resumed.path} was saved; restore it, or start a "
            "new run from its weights with init_from"
        )
    if 0 <= settings["trainer"]["max_steps"] < resumed.step:
        raise UserError(
            f"resume: {resumed.path} has taken {resumed.step:,} steps, more than the "
            f"{settings['trainer']['max_steps']:,} asked for; raise trainer.max_steps (or "
            "max_epochs), or begin another run"
        )
    resumed.check_model()


def _as_typed(checkpoint: Path) -> str:
    """Return, for a message, the overrides that a checkpoint's run began with, if known; but not
    its directory, which may have been moved."""
    record, typed, options = checkpoint.parent.parent / ".hydra", None, []
    with contextlib.suppress(OSError, ValueError):
        typed = read_yaml(record / "overrides.yaml")
        options = options_of(read_yaml(record / "hydra.yaml"))
    if not typed or not isinstance(typed, list):
        return ""
    words = options + [str(word) for word in typed if not str(word).startswith("run_dir=")]
    return f" ({without_passwords(shlex.join(words))})" if words else ""


def _build_model(settings: DictConfig, vocab_size: int, block_size: int) -> torch.nn.Module:
    """Return the model that `settings` describe.

    Raises:
        UserError: there is not enough memory for the model, or it does not take a setting.
        InstantiationException: the model rejects its settings.
    """
    try:
        model: torch.nn.Module = instantiate(settings, vocab_size=vocab_size, block_size=block_size)
    except InstantiationException as error:
        if is_out_of_memory(error.__cause__):
            raise UserError(
                "model: does not fit in memory; make it smaller, e.g. lower model.n_embd"
            ) from None
        if line := not_taken("model", settings, error.__cause__ or error):
            raise UserError(line) from None
        raise
    return model


def _check_checkpoints(model: torch.nn.Module, card: dict[str, Any]) -> None:
    """Raise UserError if checkpoints of a model, such as a user's own class, could not be loaded
    again, or it has no `block_size`, and so could not be sampled from at the first validation."""
    weights = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    saved = {"litchar": card, "global_step": 0, "state_dict": weights}
    try:
        block_size_of(model)
        Checkpoint.of(saved, Path("a checkpoint of this model")).check_model()
    except (TypeError, UserError) as error:
        raise UserError(f"{error}; docs/models.md lists what a model needs") from None


def _begin_from(
    parent: Checkpoint,
    model: torch.nn.Module,
    vocabulary: Vocabulary,
    build: Callable[[int], torch.nn.Module],
    settings: dict[str, Any],
    terminal: Terminal,
) -> None:
    """Copy the weights of `parent` into `model` (see `transfer_weights`) and report the matches."""
    matched, new, dropped = transfer_weights(parent, model, vocabulary, build, settings)
    terminal.say(
        f"From {parent.path}: {matched} {vocabulary.unit}s matched, {new} new, {dropped} dropped"
    )
    if other := differing(parent, settings):
        terminal.say(f"The weights continue in a different model: {other}")


def _optimizer_and_schedule(
    config: DictConfig, model: torch.nn.Module
) -> tuple[Callable[[torch.nn.Module], torch.optim.Optimizer], Callable[[int, float], float]]:
    """Return the optimizer's factory and the schedule, after trying out both.

    Raises:
        UserError: either rejects its settings, or the schedule needs to know the total number of
            steps and the run has none.
    """
    for key in ("optimizer", "scheduler"):
        if not config[key].get("_partial_"):
            raise UserError(
                f"{key}: needs _partial_: true beside its _target_, as in conf/{key}: what it is "
                "called with comes later"
            )
    optimizer, schedule = instantiate(config.optimizer), instantiate(config.scheduler)
    # Hydra's partial would validate its target on every call, that is at every step.
    schedule = functools.partial(schedule.func, *schedule.args, **schedule.keywords)
    if _is_a(schedule, LRScheduler):
        raise UserError(
            f"scheduler: torch's {schedule.func.__name__} steps an optimiser, but a schedule here "
            "maps the step to a factor (litchar.training.schedules); use constant, cosine or wsd"
        )
    if _is_a(optimizer, torch.optim.Optimizer):
        optimizer = functools.partial(_of_parameters, optimizer)
    steps = max(1, config.trainer.max_steps)
    try:  # fail now rather than when training begins, or after the warm-up
        made = optimizer(model)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        line = not_taken("optimizer", config.optimizer, error)
        raise UserError(line or f"optimizer: {error}") from None
    if not isinstance(made, torch.optim.Optimizer):
        raise UserError(
            f"optimizer: must return a torch.optim.Optimizer, not {type(made).__name__}"
        )
    try:
        if not all(math.isfinite(schedule(step, steps)) for step in (0, steps)):
            raise ValueError("its factor on the learning rate is not a finite number")
    except (TypeError, ValueError, ZeroDivisionError) as error:
        given = "".join(f", {key}={value}" for key, value in schedule.keywords.items())
        line = not_taken("scheduler", config.scheduler, error)
        raise UserError(line or f"scheduler{given}: {error}") from None
    if config.trainer.max_steps < 0 and not share_without_total(schedule):
        raise UserError(
            "scheduler: it needs to know the number of steps from the first on; use scheduler=wsd, "
            "which learns it before scheduler.decay_fraction of the time (less than all) is left, "
            "or set trainer.max_steps along with trainer.max_time (whichever comes first)"
        )
    return optimizer, schedule


def _is_a(partial: Any, kind: type) -> bool:
    """Return whether a partial calls `kind` itself or a subclass."""
    called = getattr(partial, "func", None)
    return isinstance(called, type) and issubclass(called, kind)


def _of_parameters(
    optimizer: Callable[..., torch.optim.Optimizer], model: torch.nn.Module
) -> torch.optim.Optimizer:
    """Build an optimiser of torch's, which takes parameters instead of a model."""
    return optimizer(model.parameters())
