"""Callbacks for metrics and samples, at no cost to steps that report nothing."""

import contextlib
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities.throughput import _CUDA_FLOPS, get_available_flops
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from litchar.errors import DivergedError
from litchar.generation import generate
from litchar.models import Transformer, evaluating
from litchar.text import Vocabulary
from litchar.training import process
from litchar.training.loggers import TensorBoard
from litchar.training.module import LanguageModel, callbacks_of
from litchar.training.sharding import full, is_sharded, unsharded
from litchar.training.summary import write_summary

# An H200 has the compute of an H100. Lightning's own entries for it need the form factor, which
# the driver does not report, and give the peak with sparsity, twice as high.
_CUDA_FLOPS.setdefault("nvidia h200", _CUDA_FLOPS["h100 sxm"])


class Metrics(Callback):
    """Measures the run and writes the metrics to its loggers and to `summary.json`.

    Steps are counted from 1: the metrics of step n describe the state after n optimiser steps.

    Args:
        run_dir: where `summary.json` is kept up to date.
        characters_per_batch: over all devices.
        target_val_loss: training stops once the validation loss is at or below it.
    """

    def __init__(
        self, run_dir: Path, characters_per_batch: int, target_val_loss: float | None
    ) -> None:
        self.run_dir = run_dir
        self.characters_per_batch = characters_per_batch
        self.target_val_loss = target_val_loss
        self.clock = Clock()
        # What a resumed run restores:
        self.history: list[dict[str, float]] = []  # step, seconds and losses of each validation
        self.best_step = 0
        self._seconds_before = 0.0  # total time of this run's earlier processes
        self._losses: list[Tensor] = []  # of each batch since the last report
        # What the next report needs:
        self._since = (0, 0.0)  # batches and seconds at the last report
        self._grad_norm: Tensor | None = None

    @property
    def best(self) -> dict[str, float]:
        """The entry of `history` for the best step; empty while there is none."""
        return next((point for point in self.history if point["step"] == self.best_step), {})

    @property
    def seconds_to_target(self) -> float | None:
        """Training time up to the first validation that met the target; None if none has."""
        if self.target_val_loss is None:
            return None
        met = (point for point in self.history if point["val/loss"] <= self.target_val_loss)
        return next((point["seconds"] for point in met), None)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop a resumed run that had already met a stopping criterion; Lightning forgets that."""
        lost = any(c.wait_count >= max(1, c.patience) for c in trainer.early_stopping_callbacks)
        trainer.should_stop |= lost or self.seconds_to_target is not None

    # Each step

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start measuring."""
        self._losses = [loss.to(pl_module.device) for loss in self._losses]
        self._since = (batches_seen(trainer), self.clock.seconds)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Start the clock, unless it is running."""
        self.clock.start()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Compute the gradient norm before clipping, on steps that are reported."""
        if self._reports(trainer, trainer.global_step + 1):
            self._grad_norm = gradient_norm(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Record the loss; report every `trainer.log_every_n_steps` steps."""
        # Undo Lightning's division by the number of batches accumulated per step.
        self._losses.append(outputs["loss"].detach() * trainer.accumulate_grad_batches)
        if self._grad_norm is not None and self._reports(trainer, trainer.global_step):
            self._report(trainer, float(self._grad_norm))
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True  # so that the last step is validated, whatever the interval

    def _reports(self, trainer: L.Trainer, step: int) -> bool:
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by a connector
        return every > 0 and (step % every == 0 or step == 1)

    def _report(self, trainer: L.Trainer, grad_norm: float) -> None:
        losses = self.check_finite(trainer)  # waits for the device, so read the clock after
        batches, seconds = batches_seen(trainer), self.clock.seconds
        characters = (batches - self._since[0]) * self.characters_per_batch
        metrics = {
            "train/loss": sum(losses) / len(losses),
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "grad_norm": grad_norm,
            "speed/chars_per_second": characters / max(seconds - self._since[1], 1e-9),
        }
        mfu = model_flops_utilization(trainer, metrics["speed/chars_per_second"])
        if mfu is not None:
            metrics["speed/mfu"] = mfu
        self.write(trainer, metrics)
        self._losses, self._grad_norm = [], None
        self._since = (batches, seconds)

    def check_finite(self, trainer: L.Trainer) -> list[float]:
        """Return the losses of the batches since the last report, averaged over the ranks.

        They are read all at once, since each read synchronises with the device.

        Raises:
            DivergedError: a loss is not finite.
        """
        if not self._losses:
            return []
        means = trainer.strategy.reduce(torch.stack(self._losses), reduce_op="mean")
        self._losses = list(means.unbind())
        losses: list[float] = means.tolist()
        for i, loss in enumerate(losses):
            if not math.isfinite(loss):
                later = (len(losses) - 1 - i) // trainer.accumulate_grad_batches
                step = trainer.global_step - later  # only complete steps get here
                key, value = "trainer.gradient_clip_val", trainer.gradient_clip_val
                clip = f"{key}=1.0" if not value else f"a lower {key}"
                raise DivergedError(
                    f"the loss is {loss} at step {step:,} (the norm of the gradient is "
                    f"{gradient_norm(trainer):.3g} at step {trainer.global_step:,}); try a lower "
                    f"optimizer.lr, a longer scheduler.warmup_steps or {clip}"
                )
        if not trainer.log_every_n_steps:  # type: ignore[attr-defined]  # nothing is ever reported
            self._losses = []
        return losses

    def check_state(self, trainer: L.Trainer) -> None:
        """Raise DivergedError unless losses and weights are finite, before they are saved."""
        self.check_finite(trainer)
        if not math.isfinite(total_norm(trainer.lightning_module.parameters())):
            raise DivergedError(
                f"a weight is not a finite number at step {trainer.global_step:,} (the norm of "
                f"the gradient is {gradient_norm(trainer):.3g}); try a lower optimizer.lr"
            )

    # Each validation

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock, which times only steps; raise if the run has diverged."""
        self.clock.stop(pl_module.device)
        if is_validation(trainer):
            self.check_state(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the losses, update the best step, and stop if the target is met."""
        if not is_validation(trainer):
            return
        losses = language_model(trainer).losses
        step, val_loss = trainer.global_step, losses["val/loss"]
        if not math.isfinite(val_loss):
            raise DivergedError(
                f"the validation loss is {val_loss} at step {step:,} (the norm of the gradient is "
                f"{gradient_norm(trainer):.3g}); try a lower optimizer.lr"
            )
        self.history.append({"step": step, "seconds": self.clock.seconds, **losses})
        if val_loss < self.best.get("val/loss", math.inf):
            self.best_step = step
        trainer.should_stop |= self.seconds_to_target is not None
        self.write(trainer, {**losses, "speed/train_seconds": self.clock.seconds})
        if trainer.is_global_zero:
            with contextlib.suppress(OSError):  # e.g. disk full: the next validation tries again
                write_summary(self.run_dir, **self.figures(trainer))

    def write(self, trainer: L.Trainer, metrics: dict[str, float]) -> None:
        """Send this step's metrics to every logger and to the progress bar."""
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        if show := getattr(trainer.progress_bar_callback, "show", None):
            show(metrics)

    def figures(self, trainer: L.Trainer) -> dict[str, Any]:
        """Return the entries of `summary.json` about the training so far."""
        last = self.history[-1] if self.history else {}
        characters = batches_seen(trainer) * self.characters_per_batch
        return {
            "steps": trainer.global_step,
            "best_step": self.best_step,
            "train_loss": last.get("train/eval_loss"),
            "val_loss": last.get("val/loss"),
            "best_val_loss": self.best.get("val/loss"),
            "best_val_bpc": self.best.get("val/bpc"),
            "best_val_bpb": self.best.get("val/bpb"),
            "seconds_to_target": self.seconds_to_target,
            "characters_seen": characters,
            "train_seconds": self.clock.seconds,
            "total_seconds": self._total_seconds(),
            "characters_per_second": characters / self.clock.seconds if self.clock.seconds else 0.0,
        }

    def _total_seconds(self) -> float:
        return self._seconds_before + process.seconds_since_start()

    # Resuming

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run restores."""
        return {
            "history": self.history,
            "best_step": self.best_step,
            "seconds": self.clock.seconds,
            "total_seconds": self._total_seconds(),
            "batch_losses": torch.stack(self._losses).tolist() if self._losses else [],
        }

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to save a state that is not finite, whichever callback saves it (Lightning skips
        this hook for weights alone); save the losses as averaged over the ranks."""
        self.check_state(trainer)
        checkpoint["callbacks"][self.state_key] = self.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.history = list(state_dict["history"])
        self.best_step = state_dict["best_step"]
        self.clock = Clock(state_dict["seconds"])
        self._seconds_before = state_dict.get("total_seconds", 0.0)
        self._losses = list(torch.tensor(state_dict.get("batch_losses", [])))


class Clock:
    """Stopwatch that adds up the seconds between starts and stops."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """The seconds counted so far."""
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._seconds + running

    def start(self) -> None:
        """Start counting; do nothing if already running."""
        if self._started is None:
            self._started = time.perf_counter()

    def stop(self, device: torch.device) -> None:
        """Stop counting, once `device` has finished its queued work."""
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        self._seconds, self._started = self.seconds, None


class Samples(Callback):
    """Writes a short sample at each validation, to `samples.txt` and TensorBoard.

    The progress bar shows the beginning of `text`, the latest sample.

    Args:
        path: of `samples.txt`.
        seed: the same for every sample, so that samples differ only by what was learned.
    """

    def __init__(self, path: Path, vocabulary: Vocabulary, seed: int) -> None:
        self.path = path
        self.vocabulary = vocabulary
        self.seed = seed
        self.text = ""
        self._length = 0  # of the file, in bytes

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Sample from the model being evaluated: the averaged weights, if a callback keeps them."""
        if not is_validation(trainer):
            return
        model = language_model(trainer).model
        if not trainer.is_global_zero and not is_sharded(model):
            return  # only a sharded model needs every rank
        with unsharded(model):
            self.text = sample(model, self.vocabulary, self.seed)
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError), open(self.path, "ab") as file:
            # Drop what a killed run wrote after its last checkpoint: it is generated again.
            file.truncate(min(self._length, file.tell()))
            file.write(f"--- step {step}\n{self.text}\n".encode())
            self._length = file.tell()
        for logger in tensorboards(trainer):
            logger.log_text("samples", self.text, step)

    def state_dict(self) -> dict[str, Any]:
        """Return the length of the file."""
        return {"length": self._length}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the length of the file."""
        self._length = state_dict["length"]


def sample(model: torch.nn.Module, vocabulary: Vocabulary, seed: int) -> str:
    """Return 200 generated tokens as text, starting from id 0 as the teaching script does."""
    start = np.zeros((1, 1), dtype=np.int64)
    with evaluating(model):
        ids = [step.ids[0] for step in generate(model, start, 200, seeds=[seed])]
    return vocabulary.decode(ids)


def is_validation(trainer: L.Trainer) -> bool:
    """Return whether this evaluation is a validation during training, neither a test nor the
    sanity check (`trainer.num_sanity_val_steps`)."""
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def tensorboards(trainer: L.Trainer) -> list[TensorBoard]:
    """Return the run's TensorBoard loggers, which write on rank 0 only."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoard)]


def metrics_of(trainer: L.Trainer) -> Metrics:
    """Return the run's `Metrics` callback."""
    return callbacks_of(trainer, Metrics)[0]


def language_model(trainer: L.Trainer) -> LanguageModel:
    """Return the module being trained."""
    module = trainer.lightning_module
    assert isinstance(module, LanguageModel)
    return module


def gradient_norm(trainer: L.Trainer) -> Tensor:
    """Return the norm of the model's current gradient."""
    parameters = trainer.lightning_module.parameters()
    return total_norm(p.grad for p in parameters if p.grad is not None)


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Return the norm over all elements of `tensors`, shards on other ranks included: ()."""
    return full(torch.nn.utils.get_total_norm(list(tensors)))


def model_flops_utilization(trainer: L.Trainer, characters_per_second: float) -> float | None:
    """Return the fraction of peak FLOPS spent on the model's own arithmetic; None if unknown."""
    device = trainer.strategy.root_device
    if device.type != "cuda":
        return None
    dtypes = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}
    dtype = dtypes.get(str(trainer.precision).partition("-")[0], torch.float32)
    peak = get_available_flops(device, dtype)
    if peak is None:
        return None
    flops = flops_per_token(language_model(trainer).model)
    return characters_per_second * flops / (peak * trainer.world_size)


def flops_per_token(model: torch.nn.Module) -> int:
    """Return the floating-point operations per token of training, forward and backward.

    That is 6 per weight of a matrix multiplication and, for attention, 12 L C T (layers, width,
    block size; PaLM, Chowdhery et al., 2022, appendix B). Embedding lookups cost nothing.
    """
    layers = list(model.modules())
    tables = {id(layer.weight) for layer in layers if isinstance(layer, torch.nn.Embedding)}
    tables -= {id(layer.weight) for layer in layers if isinstance(layer, torch.nn.Linear)}  # tied
    weights = sum(p.numel() for p in model.parameters() if p.ndim > 1 and id(p) not in tables)
    flops = 6 * weights
    if isinstance(model, Transformer):
        flops += 12 * model.n_layer * model.token_embedding.embedding_dim * model.block_size
    return flops


def batches_seen(trainer: L.Trainer) -> int:
    """Return the number of batches the run has drawn."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready
