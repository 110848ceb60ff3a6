"""One run: from a composed configuration to a trained model and its recorded results."""

import contextlib
import functools
import logging
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.callbacks import Callback, WeightAveraging
from omegaconf import DictConfig, OmegaConf

from litchar import signals
from litchar.checkpoints.checkpoint import best_of
from litchar.errors import (
    BusyError,
    DivergedError,
    Interrupted,
    RankError,
    UserError,
    is_out_of_memory,
    is_users,
    reason,
)
from litchar.launched import Place
from litchar.run_dir import remove_traces, sole_owner
from litchar.settings import flatten, plain
from litchar.terminal import Terminal
from litchar.text.yardsticks import quick_yardsticks
from litchar.training import environment, process
from litchar.training.callbacks import Metrics, Samples, flops_per_token, tensorboards
from litchar.training.checkpointing import Checkpoints, link_or_copy
from litchar.training.compilation import compile_or_say_why_not, load_kernels
from litchar.training.devices import device_of, settle_devices
from litchar.training.loggers import MetricsCSV, TensorBoard, hyperparameters
from litchar.training.module import callbacks_of
from litchar.training.outcome import headline, print_outcome
from litchar.training.prepare import Setup, prepare
from litchar.training.ranks import Leader, follow_runs
from litchar.training.summary import final_metrics, write_summary
from litchar.training.sweep import Outcome, recorded, swept_settings
from litchar.training.trainer import make_trainer, quiet_libraries


def main(config: DictConfig) -> float | Outcome | None:
    """Train what `scripts/train.py` was asked for: a single run, or one job of a sweep."""
    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    if hydra_config.mode is RunMode.MULTIRUN:
        return run_job(config, run_dir)
    try:
        return run(config, run_dir)
    except Interrupted:
        if (run_dir / "checkpoints" / "last.ckpt").exists():
            Terminal().say("Repeat the command with resume=auto to continue from there")
        raise


def run(config: DictConfig, run_dir: Path, callbacks: Sequence[Callback] = ()) -> float | None:
    """Train as `config` says and record everything in `run_dir`, or resume the run that is there.

    Args:
        config: composed from `conf/train.yaml`.
        callbacks: in addition to those in the configuration, on rank 0 only: a callback that stops
            or changes a run on several ranks must be named in the configuration instead.

    Returns:
        the best validation loss, in nats per token.

    Raises:
        UserError: the configuration or the text is invalid.
        DivergedError: the loss is no longer finite.
        Interrupted: a signal ended the run.
    """
    terminal = Terminal()
    with sole_owner(run_dir), contextlib.ExitStack() as leaving:
        try:
            ready = leaving.enter_context(made_ready(config, run_dir, terminal, callbacks))
        except BaseException:
            remove_traces(run_dir)
            raise
        summary = train(ready)
        data, history = ready.setup.data, ready.metrics.history
        yardsticks = quick_yardsticks(data.text, data.splits.store)
        report = _write_report(ready)
        settings = flatten(plain(ready.setup.config))
        sample = ready.samples.text
        print_outcome(terminal, summary, history, sample, yardsticks, run_dir, settings, report)
    return cast(float | None, summary["best_val_loss"])


def run_job(config: DictConfig, run_dir: Path) -> Outcome:
    """Train or resume a job of a sweep, or return the outcome it already has.

    A failure is returned, not raised, so that it does not end the other jobs, and can be sent back
    from any process.

    Raises:
        Interrupted: a signal ended the job, after its state was saved; running the same command
            line again resumes the sweep.
    """
    try:
        with sole_owner(run_dir):
            outcome = recorded(run_dir, config.sweep.retry_failed)
            if outcome is None:
                if (before := recorded(run_dir)) and before.status == "diverged":
                    shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
                outcome = _run_job(config, run_dir)
    except BusyError as error:
        outcome = Outcome(run_dir.name, "busy", error=str(error))
    if signals.received():  # just as the job ended
        raise Interrupted(signals.received())
    return outcome


def _run_job(config: DictConfig, run_dir: Path) -> Outcome:
    terminal = Terminal()
    config = config.copy()
    config.resume = "auto"
    try:
        with made_ready(config, run_dir, terminal) as ready:
            summary = train(ready, sweep=run_dir.parent)
            _write_report(ready)
    except Interrupted:
        raise
    except (Exception, SystemExit) as error:
        failure = reason(error)
        if not is_users(error) and not isinstance(error, DivergedError | RankError):
            logging.getLogger(__name__).exception("the job failed")
            failure = f"{type(error).__name__}: {failure}"
        status = _status_after(error)
        terminal.say(f"{status}: {failure}")
        with contextlib.suppress(OSError):  # a full disk must not end the other jobs
            write_summary(run_dir, status=status, error=failure, seed=config.seed)
        return Outcome(run_dir.name, status, error=failure)
    terminal.say(f"completed in {summary['total_seconds']:.1f} s")
    return Outcome(run_dir.name, "completed", summary["best_val_loss"])


def follow() -> int:
    """Take part, as another rank, in the runs that rank 0 leads; return the exit code."""
    quiet_libraries()
    signals.install()
    return follow_runs(_prepare_along)


def _prepare_along(
    place: Place, config: DictConfig, run_dir: Path
) -> tuple[torch.device, Callable[[], None]]:
    """Prepare this rank's part of a run that rank 0 records; it prints and records nothing."""
    signals.reset()
    terminal = Terminal(quiet=True)
    setup = prepare(config, run_dir, place, terminal)
    trainer, *_ = make_trainer(setup, place, terminal)
    return setup.device, functools.partial(fit_and_test, setup, trainer, terminal)


@dataclass(frozen=True)
class Ready:
    """A run that is ready to train."""

    setup: Setup
    trainer: L.Trainer
    metrics: Metrics
    samples: Samples
    leader: Leader
    terminal: Terminal


@contextlib.contextmanager
def made_ready(
    config: DictConfig, run_dir: Path, terminal: Terminal, callbacks: Sequence[Callback] = ()
) -> Iterator[Ready]:
    """Prepare a run, checking whatever can be checked before training, and gather its ranks.

    Nothing is written to the run directory.

    Raises:
        UserError: the configuration or the text is invalid.
        RankError: a rank failed to start.
    """
    quiet_libraries()
    process.begin()
    signals.reset()
    config = config.copy()
    place = settle_devices(config.trainer, device_of(config.trainer.accelerator))
    with Leader(place, run_dir) as leader:
        setup = prepare(config, run_dir, place, terminal)
        trainer, metrics, samples = make_trainer(setup, place, terminal, callbacks)
        leader.begin(setup.for_the_others(), setup.device)
        yield Ready(setup, trainer, metrics, samples, leader, terminal)


def train(ready: Ready, sweep: Path | None = None) -> dict[str, Any]:
    """Train a prepared run, and return its summary.

    Args:
        sweep: the directory of the sweep that the run is a job of, if any; TensorBoard's HParams
            page then shows the swept keys.
    """
    setup, trainer, metrics, terminal = ready.setup, ready.trainer, ready.metrics, ready.terminal
    run_dir, module = setup.run_dir, setup.module
    settings = module.card["config"]
    shown = (
        hyperparameters(settings)
        if sweep is None
        else swept_settings(sweep, settings, HydraConfig.get().runtime.choices)
    )
    try:
        _record_start(ready)
        if setup.resumed is not None and setup.config.trainer.enable_checkpointing:
            # The records are cut back to this checkpoint, so it is the last one from here on.
            with contextlib.suppress(OSError):  # a full disk: the next save tries again
                link_or_copy(setup.resumed.path, run_dir / "checkpoints" / "last.ckpt")
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV | TensorBoard):
                logger.cut(setup.resumed.step if setup.resumed else 0)
            logger.log_hyperparams(shown if isinstance(logger, TensorBoard) else settings)
        with ready.leader.explained():
            fit_and_test(setup, trainer, terminal)
    except BaseException as error:
        _record_failure(ready, error)
        raise
    finally:
        signals.defer(False)

    for callback in trainer.early_stopping_callbacks:
        if callback.stopping_reason_message:
            terminal.say(f"Stopped early: {callback.stopping_reason_message.strip()}")
    best = best_of(run_dir)
    summary = _record(
        ready,
        **metrics.figures(trainer),
        status="completed",
        **{f"test_{name}": module.losses.get(f"test/{name}") for name in ("loss", "bpc", "bpb")},
        checkpoint=best and str(best),
    )
    for logger in tensorboards(trainer) if metrics.history else ():  # a row of the HParams page
        logger.log_hyperparams(shown, final_metrics(summary))
        logger.save()
    return summary


def _record(ready: Ready, **figures: Any) -> dict[str, Any]:
    """Write figures and the peak memory so far into the summary; return it."""
    peak = process.peak_memory_bytes(ready.setup.device)
    return write_summary(ready.setup.run_dir, **figures, peak_memory_bytes=peak)


def _record_start(ready: Ready) -> None:
    """Record and print what is known before training: model, text, device, environment."""
    setup, trainer = ready.setup, ready.trainer
    model, vocabulary = setup.module.model, setup.data.splits.store.vocabulary
    summary = _record(
        ready,
        status="running",
        error=None,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flops_per_token=flops_per_token(model),
        vocab_size=len(vocabulary),
        unit=vocabulary.unit,
        device=str(trainer.strategy.root_device),
        precision=str(trainer.precision),
        seed=setup.config.seed,
    )
    environment.record(setup.run_dir, setup.module.card["provenance"])
    OmegaConf.save(setup.config, setup.run_dir / "config.yaml", resolve=True)
    ready.terminal.say(headline(setup, ready.leader.place, summary))
    ready.terminal.say(str(setup.run_dir))


def _record_failure(ready: Ready, error: BaseException) -> None:
    """Write why the run ended into the summary; after a signal, print what was saved."""
    why = f"signal {error.signum}" if isinstance(error, Interrupted) else str(error)
    with contextlib.suppress(OSError):  # a full disk must not hide what happened
        figures = ready.metrics.figures(ready.trainer)
        _record(ready, **figures, status=_status_after(error), error=why)
    if isinstance(error, Interrupted):
        step, run_dir = ready.trainer.global_step, ready.setup.run_dir
        where = "nothing was saved"
        if (run_dir / "checkpoints" / "last.ckpt").exists():
            saved = [callback.saved_step for callback in callbacks_of(ready.trainer, Checkpoints)]
            where = (
                f"saved in {run_dir}"
                if saved == [step]
                else f"an earlier step is saved in {run_dir}"
            )
        ready.terminal.say(f"Interrupted at step {step:,}; {where}")


# Parts of the errors that Lightning raises, only when training begins, if a callback cannot work:
# EarlyStopping, GradientAccumulationScheduler, DeviceStatsMonitor.
IMPOSSIBLE = ("conditioned on metric", "You have set `accumulate_grad_batches`", "`psutil`")


def fit_and_test(setup: Setup, trainer: L.Trainer, terminal: Terminal) -> None:
    """Train, then score the best checkpoint on the test split, if there is one; on every rank."""
    data, module, resumed = setup.data, setup.module, setup.resumed
    try:
        # The Trainer does this too, but only after it has loaded a resumed run's checkpoint.
        trainer.precision_plugin.convert_module(module)
        load_kernels(module, trainer)
        if setup.config.compile:
            compile_or_say_why_not(module, data, trainer, terminal)
        begin = None if resumed is None else resumed.path
        trainer.fit(module, data, ckpt_path=begin, weights_only=True)
        if "test" in data.splits:
            best = setup.run_dir / "checkpoints" / "best.ckpt"
            # On loading, these would restore the unaveraged weights instead of their average, and
            # the figures of the best step instead of the last.
            callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
            callbacks[:] = [c for c in callbacks if not isinstance(c, WeightAveraging | Metrics)]
            tested = trainer.strategy.broadcast(best if best.exists() else None)
            trainer.test(module, data, ckpt_path=tested, weights_only=True, verbose=False)
    except (MemoryError, RuntimeError, ValueError, ModuleNotFoundError) as error:
        if any(words in str(error) for words in IMPOSSIBLE):
            raise UserError(f"callbacks: {error}") from None
        if "could not create a primitive" in str(error) and trainer.precision != "32-true":
            raise UserError(  # oneDNN, such as of an LSTM in bfloat16 on a CPU without it
                f"trainer.precision={trainer.precision}: this CPU cannot run the model so; "
                "use trainer.precision=32-true"
            ) from None
        if not is_out_of_memory(error):
            raise
        raise UserError(_smaller_batch(setup, trainer.global_step)) from None


def _write_report(ready: Ready) -> Path | None:
    """Write the run's report if the configuration asks for one; its errors do not fail the run."""
    setup = ready.setup
    if not setup.config.report:
        return None
    try:
        from litchar.analysis.report import write_report  # imported only when needed

        return write_report(setup.run_dir, setup.data.splits, str(setup.device))
    except Exception as error:  # whatever it is, the run itself is safe
        again = f"python scripts/report.py {shlex.quote(str(setup.run_dir))}"
        ready.terminal.say(f"No report ({error}); to write it later: {again}")
        return None


def _status_after(error: BaseException) -> str:
    if isinstance(error, Interrupted):
        return "interrupted"
    return "diverged" if isinstance(error, DivergedError) else "failed"


def _smaller_batch(setup: Setup, step: int) -> str:
    """Return the out-of-memory message, which suggests a smaller batch size."""
    batch_size = setup.config.data.batch_size
    batches = setup.config.trainer.accumulate_grad_batches
    return (
        f"{setup.device} is out of memory at step {step:,}; try "
        f"data.batch_size={max(1, batch_size // 2)} "
        f"(trainer.accumulate_grad_batches={2 * batches} keeps the steps as large)"
    )
