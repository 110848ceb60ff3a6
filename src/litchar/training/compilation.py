"""Compile the training step, and replay it as a CUDA graph where possible."""

import contextlib
import copy
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelPruning
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn

from litchar.data import TextDataModule
from litchar.errors import first_line
from litchar.losses import mean_loss
from litchar.terminal import Terminal
from litchar.training.module import LanguageModel, callbacks_of
from litchar.training.replay import Loss, ReplayedLoss


def compile_or_say_why_not(
    module: LanguageModel, data: TextDataModule, trainer: L.Trainer, terminal: Terminal
) -> None:
    """Compile and try the training loss, and capture it as a CUDA graph; report what fails."""
    device = trainer.strategy.root_device
    module.to(device)
    shape = (data.batch_size // trainer.world_size, data.block_size)
    precision = trainer.precision_plugin.forward_context
    compiled = compiled_loss(device)
    buffers = {name: buffer.clone() for name, buffer in module.model.named_buffers()}

    what = "compiled"
    try:
        idx, targets = (torch.zeros(shape, dtype=torch.long, device=device) for _ in range(2))
        with precision():
            torch.autograd.backward(compiled(module.model, idx, targets))
        module.mean_loss = compiled
        if can_replay(module.model, trainer, device):
            what = "replayed as a CUDA graph"
            module.mean_loss = ReplayedLoss(compiled, module.model, shape, precision)
    except torch.OutOfMemoryError:
        raise  # uncompiled, it would need even more memory
    except Exception as error:  # whatever the compiler raises, training can go on without it
        cause = getattr(error, "inner_exception", error)  # the backend's own error
        reason = f"{type(cause).__name__}: {first_line(cause)}"
        terminal.say(f"Not {what} ({reason}); continuing without.")
    module.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in module.model.named_buffers():  # a forward pass may change them
            if name in buffers and not torch.equal(buffer, buffers[name]):
                buffer.copy_(buffers[name])


def can_replay(model: nn.Module, trainer: L.Trainer, device: torch.device) -> bool:
    """Return whether a batch's loss and gradients may come from a CUDA graph.

    A graph repeats the same operations in the same memory. That rules out gradient accumulation,
    several ranks, a loss scale that changes, pruning and anomaly detection; and dropout between the
    layers of a recurrent model, as it is the CPU that tells cuDNN what to drop.
    """
    one_gpu = isinstance(trainer.strategy, SingleDeviceStrategy) and device.type == "cuda"
    schedules = callbacks_of(trainer, GradientAccumulationScheduler)
    adds_up = trainer.accumulate_grad_batches > 1 or bool(schedules)
    scaled = getattr(trainer.precision_plugin, "scaler", None) is not None  # float16
    prunes = bool(callbacks_of(trainer, ModelPruning))
    drops = any(isinstance(m, nn.RNNBase) and m.dropout for m in model.modules())
    return one_gpu and not (adds_up or scaled or prunes or trainer._detect_anomaly or drops)


def load_kernels(module: LanguageModel, trainer: L.Trainer) -> None:
    """Take an optimiser step on a copy of the model, so that the GPU loads its kernels now: that
    takes seconds, and would otherwise count as part of the first training step."""
    one_gpu = isinstance(trainer.strategy, SingleDeviceStrategy)
    if not (one_gpu and trainer.strategy.root_device.type == "cuda"):
        return
    with contextlib.suppress(Exception):  # training itself will report any problem
        trial = copy.deepcopy(module.model).to(trainer.strategy.root_device)
        optimizer = module.optimizer(trial)
        for parameter in trial.parameters():
            parameter.grad = torch.zeros_like(parameter)
        torch.nn.utils.clip_grad_norm_(trial.parameters(), 1.0)
        optimizer.step()
        torch.cuda.synchronize(trainer.strategy.root_device)  # before its tensors are freed


def compiled_loss(device: torch.device) -> Loss:
    """Return `mean_loss`, compiled together with the model."""
    options: dict[str, Any] | None = None
    mixed = "triton.mix_order_reduction"  # not in torch 2.9
    if device.type == "cuda" and mixed in torch._inductor.list_options():
        # The gradient of a norm sums over rows and over columns, which is slower in one kernel than
        # in two: 9.6 ms against 8.8 for a step of 10.7M parameters (torch 2.11, H200).
        options = {mixed: False}
    compiled: Loss = torch.compile(mean_loss, options=options)
    return compiled
