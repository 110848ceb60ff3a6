"""The LightningModule: a model, its loss, its optimiser, and what its checkpoints carry."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler, WeightAveraging
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from litchar.data.windows import IGNORED, Batch
from litchar.errors import UserError
from litchar.losses import figures_of, mean_loss, mixed_figures, size_table, summed_loss
from litchar.models.causality import check_causal
from litchar.text import Vocabulary
from litchar.training.replay import Loss, ReplayedLoss
from litchar.training.sharding import ShardedStrategy, shard

C = TypeVar("C", bound=Callback)


class LanguageModel(L.LightningModule):
    """Trains a model to predict the next token.

    Args:
        model: maps ids (B, T) to logits (B, T, V).
        vocabulary: says how much text an id stands for.
        optimizer: builds the optimiser of a model.
        schedule: maps the step and the total number of steps (infinite while it is unknown) to a
            factor on the learning rate.
        card: plain data that makes a checkpoint self-contained; saved under `litchar`.
        seed: with the batch and the rank, determines the dropout masks.
        mixture: each corpus's share of the training windows; empty for a single text.
    """

    def __init__(
        self,
        model: nn.Module,
        vocabulary: Vocabulary,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        schedule: Callable[[int, float], float],
        card: dict[str, Any],
        seed: int,
        mixture: Mapping[str, float],
    ) -> None:
        super().__init__()
        self.mixture = mixture
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.card = card
        self.seed = seed
        self.mean_loss: Loss = mean_loss
        self.losses: dict[str, float] = {}
        self.sizes = size_table(vocabulary)  # no buffer: callbacks would average it
        self._generator: torch.Generator | None = None
        self._sums: list[list[Tensor]] = []

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; for the one in which Lightning keeps the running hook's name, bypass
        nn.Module, whose bookkeeping would cost more than any other part of the Trainer."""
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    # Training

    def configure_model(self) -> None:
        """Shard the parameters, if the strategy asks for it."""
        if isinstance(self.trainer.strategy, ShardedStrategy):
            shard(self.model, self.trainer.strategy.device_mesh["data_parallel"])

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the optimiser and its schedule, stepped once per optimiser step."""
        optimizer = self.optimizer(self.model)
        scheduler = torch.optim.lr_scheduler.LambdaLR(  # the total may become known under way
            optimizer, lambda step: self.schedule(step, self.trainer.estimated_stepping_batches)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_train_start(self) -> None:
        """Look up the generator that dropout draws from on this device; and make the first step of
        a resumed run what it would be without the pause: set the learning rate for the run's
        present length, and the number of batches accumulated by now."""
        for callback in callbacks_of(self.trainer, GradientAccumulationScheduler):
            callback.on_train_epoch_start(self.trainer)  # it acts as epochs begin
        steps, total_steps = self.trainer.global_step, self.trainer.estimated_stepping_batches
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = group["initial_lr"] * self.schedule(steps, total_steps)
        index = self.device.index or 0
        if self.device.type == "cuda":
            self._generator = torch.cuda.default_generators[index]
        elif self.device.type == "mps":
            self._generator = torch.mps._get_default_mps_generator()
        else:
            self._generator = torch.default_generator

    def training_step(self, batch: Batch) -> Tensor:
        """Return the mean loss of a batch, in nats per token."""
        # Dropout is a function of (seed, batch, rank), as batches are: a resumed run drops the
        # same units, and no generator state has to be saved.
        position = self.trainer.fit_loop.epoch_loop.total_batch_idx
        stream = position * self.trainer.world_size + self.trainer.global_rank
        assert self._generator is not None  # set by on_train_start
        self._generator.manual_seed(dropout_seed(self.seed, stream))
        loss = self.mean_loss(self.model, *batch)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.trainer.world_size > 1 and data.start_at_document:
            loss = loss * self._share_of_targets(batch[1])
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute the gradients, unless they were replayed in one CUDA graph with the loss."""
        if isinstance(self.mean_loss, ReplayedLoss):
            self.mean_loss.backward()
        else:
            super().backward(loss, *args, **kwargs)

    def on_after_backward(self) -> None:
        """Raise UserError if this rank's batch did not use every parameter, under plain DDP.

        The other ranks would wait for the missing gradients, and this one for them in the next
        collective, for ever: DDP itself looks only as the next batch goes forward.
        """
        model = self.trainer.strategy.model
        if not isinstance(model, DistributedDataParallel):
            return
        try:
            model._check_reducer_finalized()  # type: ignore[no-untyped-call]
        except RuntimeError:
            parameters = self.model.named_parameters()
            unused = [name for name, p in parameters if p.requires_grad and p.grad is None]
            names = ", ".join(unused[:1] or ["some parameters"]) + (", ..." if unused[1:] else "")
            raise UserError(
                f"model: the loss of rank {self.trainer.global_rank}, step "
                f"{self.trainer.global_step + 1:,}, does not use {names}, for whose gradients "
                "trainer=ddp would wait; set trainer.strategy=ddp_find_unused_parameters_true if "
                "a batch need not use every parameter"
            ) from None

    def _share_of_targets(self, targets: Tensor) -> Tensor:
        """Return this rank's share of a batch's targets, relative to an equal share.

        A window that reaches past the end of the text has fewer targets. With the loss scaled by
        this, the mean over ranks is still the mean over targets, as on one device.
        """
        counted = (targets != IGNORED).sum().float()
        return counted / self.trainer.strategy.reduce(counted.clone(), reduce_op="mean")

    # Validation: exact means over all tokens, however they are batched

    def on_validation_model_zero_grad(self) -> None:
        """Keep the gradients: an error message may have to report their norm."""

    def on_validation_epoch_start(self) -> None:
        """Reset the sums of the last evaluation."""
        self._sums = []
        self.sizes = self.sizes.to(self.device)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch's loss and sizes to the sums of its loader.

        Raises:
            UserError: the model sees what it is to predict, or does not return all logits.
        """
        if dataloader_idx == len(self._sums):
            self._sums.append([])
        self._sums[dataloader_idx].append(summed_loss(self.model, *batch, self.sizes))
        if batch_idx == dataloader_idx == 0:
            check_causal(self.model, batch[0])

    def on_validation_epoch_end(self) -> None:
        """Set `losses` from the loaders, in order: validation split, training sample."""
        self._finish(("val/loss", "train/eval_loss"))

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        """Set `losses`."""
        self._finish(("test/loss",))

    def _finish(self, names: tuple[str, ...]) -> None:
        """Set the metrics of each name, from one loader, or one per corpus of a mixture."""
        size = max(1, len(self.mixture))
        for place, name in enumerate(names):
            loaders = self._sums[place * size : (place + 1) * size]
            if not loaders:  # there may be no training sample
                continue
            # Each batch's sum is float32; batches are added up in double precision.
            totals = torch.stack([torch.stack(sums).cpu().double().sum(0) for sums in loaders])
            if self.trainer.world_size > 1:  # on the device, where its process group works
                totals = self.trainer.strategy.reduce(totals.to(self.device), reduce_op="sum")
            if self.mixture and len(loaders) == size:
                figures = mixed_figures(name, totals.tolist(), self.mixture)
            else:
                figures = figures_of(name, *totals[0].tolist())
            self.losses |= figures
            self.log_dict(figures, logger=False)  # for callbacks such as EarlyStopping

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add vocabulary, configuration and provenance."""
        checkpoint["litchar"] = self.card

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resume from the raw weights, if the checkpoint has averaged ones but no callback averages
        any more; and with the next epoch, if one was just ending."""
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]
        if epochs["total"]["completed"] < epochs["total"]["processed"]:
            # Lightning would draw one more batch in that epoch, and step on it alone.
            batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            batches["current"] = dict.fromkeys(batches["current"], 0)
            batches["is_last_batch"] = False
            for count in (epochs["total"], epochs["current"]):
                count["completed"] = count["processed"]
        if self.trainer.state.fn == "fit" and not callbacks_of(self.trainer, WeightAveraging):
            checkpoint["state_dict"] = checkpoint.get(
                "current_model_state", checkpoint["state_dict"]
            )


def callbacks_of(trainer: L.Trainer, kind: type[C]) -> list[C]:
    """Return the run's callbacks of this kind."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    return [callback for callback in callbacks if isinstance(callback, kind)]


def dropout_seed(seed: int, stream: int) -> int:
    """Return a seed for torch's generators that depends on every bit of both numbers.

    The CPU generator uses only the low 32 bits, so these must differ too: a finaliser mixes the
    bits (SplitMix64; Steele, Lea and Flood, 2014).
    """
    mask = (1 << 64) - 1
    z = (seed * 0x9E3779B97F4A7C15 + (stream + 1) * 0xD1B54A32D192ED03) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) >> 1
