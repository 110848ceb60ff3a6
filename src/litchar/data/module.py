"""The Lightning data module: the splits of a text as batches of windows."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from litchar import signals
from litchar.data.splits import Splits
from litchar.data.windows import Batch, RandomWindows, SequentialWindows, Span, document_starts
from litchar.errors import UserError, check_flag, check_integer
from litchar.overrides import not_taken
from litchar.text import Text


class TextDataModule(L.LightningDataModule):
    """Batches of windows of a text: inputs and targets, (B, T) int64 each.

    Training windows start at random offsets; validation and test windows tile their split, so that
    each target is scored exactly once, see `data.windows`.

    Args:
        block_size: T, the number of tokens in a window.
        batch_size: B, the number of windows in a training batch, over all devices.
        val_batch_size: windows per validation batch and device; no result depends on it.
        train_sample: score at least this many tokens of the training split at each validation, for
            a training loss measured like the validation loss; 0: none.
        start_at_document: start training windows at documents instead of anywhere.
        num_workers: processes that gather training windows, unless the tokens are on the device.
        seed: determines the training windows.
        text: which text and how it is split: the arguments of `litchar.text.Text`.

    Raises:
        UserError: (in part from `setup`) the text or a setting is invalid.
    """

    trainer: L.Trainer  # set by Lightning before it asks for the loaders

    def __init__(
        self,
        *,
        block_size: int,
        batch_size: int,
        val_batch_size: int,
        train_sample: int = 16_384,
        start_at_document: bool = False,
        num_workers: int = 0,
        seed: int = 0,
        **text: Any,
    ) -> None:
        super().__init__()
        self.text = Text(**text)
        self.block_size = block_size
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size
        self.train_sample = train_sample
        self.start_at_document = start_at_document
        self.num_workers = num_workers
        self.seed = seed
        self._splits: Splits | None = None
        self._resident: dict[str, Tensor] = {}  # splits copied to the accelerator

    # Setting up

    def setup(self, stage: str | None = None) -> None:
        """Open the text and split it; a second call does nothing."""
        if self._splits is not None:
            return
        for name in ("block_size", "batch_size", "val_batch_size", "num_workers", "train_sample"):
            least = 0 if name in ("num_workers", "train_sample") else 1
            check_integer(f"data.{name}", getattr(self, name), least)
        check_integer("data.seed", self.seed, 0, 2**64 - 1)
        check_flag("data.start_at_document", self.start_at_document)
        if self.start_at_document and self.text.document is None:
            raise UserError(
                "data.start_at_document=true, but data.document is not set; say what a document "
                "is: data.document=line"
            )
        self._splits = Splits(self.text)
        self._check_parts()
        shortest = min(self.splits, key=lambda name: len(self.splits[name]))
        if len(self.splits[shortest]) <= self.block_size:
            largest = len(self.splits[shortest]) - 1
            remedy = f"the largest that fits is data.block_size={largest}"
            if largest < 1 and (self.text.max_val_characters or 2) < 2:
                remedy = "too few to validate on; raise data.max_val_characters"
            elif largest < 1:
                remedy = "the text is too short to be split; give a longer one"
            raise UserError(
                f"data.block_size={self.block_size} needs at least {self.block_size + 1} "
                f"{self.text.unit}s in each split, and {shortest} has "
                f"{len(self.splits[shortest])}; {remedy}"
            )

    @property
    def splits(self) -> Splits:
        """The splits of the text, available after `setup`."""
        assert self._splits is not None
        return self._splits

    def _check_parts(self) -> None:
        for split, parts in self.splits.store.ranges.items():
            for name, (start, stop) in zip(self.text.weights, parts, strict=True):
                if stop - start <= self.block_size:
                    raise UserError(
                        f"data.mixture: {name} has {stop - start} {self.text.unit}s in its {split} "
                        f"split, too few for data.block_size={self.block_size}; leave it out, or "
                        "lower data.block_size"
                    )

    def check_shared_by(self, world_size: int) -> None:
        """Raise UserError unless a batch divides evenly among the ranks."""
        if self.batch_size % world_size:
            raise UserError(
                f"data.batch_size={self.batch_size} cannot be shared by {world_size} devices; "
                f"make it a multiple of {world_size}"
            )

    # Loaders

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the endless stream of training batches, starting at the run's current batch."""
        batch_progress = self.trainer.fit_loop.epoch_loop.batch_progress
        return self._loader(
            "train", self._random_windows(), _FromHere(lambda: batch_progress.total.ready)
        )

    def _random_windows(self) -> RandomWindows:
        self.check_shared_by(self.trainer.world_size)
        starts = None
        if self.start_at_document:
            starts = document_starts(self.splits["train"].numpy(), self.block_size)
        return RandomWindows(
            self._tokens("train", 0, len(self.splits["train"])),
            self.block_size,
            self.batch_size,
            self.seed,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            starts=starts,
            mixture=[
                (weight, *part)
                for weight, part in zip(
                    self.text.weights.values(), self.splits.parts("train"), strict=False
                )
            ],
        )

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """Return the loaders of the validation split and of an evenly spaced sample of the training
        split; for a mixture, one for each corpus.

        The sample has windows of the same length, at least `train_sample` tokens in all, or the
        whole split if that is shorter; of a mixture, as much of each text as if they shared these
        equally. With `trainer.overfit_batches` it is the batches trained on.
        There is none where `trainer.limit_val_batches` is a share that leaves no batch of it.
        """
        if self.trainer.overfit_batches:  # type: ignore[attr-defined]  # set dynamically
            return [*self._sequential("val"), self._loader("train", self._random_windows())]
        sample = self._sequential("train", self.train_sample) if self.train_sample else []
        limit = self.trainer.limit_val_batches
        if isinstance(limit, float) and any(limit * len(loader) < 1 for loader in sample):
            sample = []  # Lightning would refuse the whole run
        return [*self._sequential("val"), *sample]

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """Return the loaders of the test split."""
        return self._sequential("test")

    def _sequential(self, name: str, sample: int | None = None) -> list[DataLoader[Batch]]:
        """Return a loader for each corpus of a split, or of a sample of `sample` tokens."""
        parts = self.splits.parts(name)
        loaders = []
        for start, stop in parts:
            stride = None
            if sample is not None:
                each = max(1, sample // len(parts))
                stride = self.block_size * max(1, (stop - start) // each)
            windows = SequentialWindows(
                self._tokens(name, start, stop),
                self.block_size,
                self.val_batch_size,
                stride,
                rank=self.trainer.global_rank,
                world_size=self.trainer.world_size,
            )
            loaders.append(self._loader(name, windows))
        return loaders

    def _loader(
        self, name: str, windows: Dataset[Batch], sampler: Sampler[int] | None = None
    ) -> DataLoader[Batch]:
        # Not for evaluation: its workers would restart every time, within the timed steps.
        has_workers = sampler is not None and name not in self._resident
        return DataLoader(
            windows,
            batch_size=None,  # the dataset makes whole batches
            sampler=sampler,
            num_workers=self.num_workers if has_workers else 0,
            worker_init_fn=signals.leave_to_parent,
        )

    # Where tokens live

    def _tokens(self, name: str, start: int, stop: int) -> Tensor | Span:
        """Return tokens start to stop - 1 of a split, to gather windows from: a tensor on the
        accelerator if the split fits there, else a span of the memory-mapped file."""
        tokens = self.splits[name]
        # uint8 is the only unsigned type that CUDA can index, and any id fits into an int32.
        dtype = torch.uint8 if tokens.dtype == torch.uint8 else torch.int32
        if name not in self._resident and self._has_room(len(tokens) * dtype.itemsize):
            self._resident[name] = tokens.to(dtype).to(self.trainer.strategy.root_device)
        if name in self._resident:
            return self._resident[name][start:stop]
        first = self.splits.spans[name].start
        return Span(self.splits.store.tokens, first + start, first + stop)

    def _has_room(self, n_bytes: int) -> bool:
        """Return whether the accelerator has room for a split of this size: on CUDA, if it takes at
        most a quarter of the free memory; on MPS always; on a CPU never, as the memory map serves.
        """
        device = self.trainer.strategy.root_device
        if device.type != "cuda":
            return device.type == "mps"
        free, _ = torch.cuda.mem_get_info(device)
        return n_bytes <= free // 4


def make_data_module(settings: DictConfig) -> TextDataModule:
    """Return the data module that `conf/data` describes.

    The path bypasses `instantiate`, which would read `${...}` in it as an interpolation.

    Raises:
        UserError: `settings` has an unknown key, lacks one, or describes something else.
    """
    try:
        data = instantiate(settings, path=None, _partial_=True)(path=settings.path)
    except TypeError as error:
        raise UserError(not_taken("data", settings, error) or f"data: {error}") from None
    if not isinstance(data, TextDataModule):
        raise UserError(
            f"data._target_={settings._target_}: must be litchar.data.TextDataModule or a class "
            "derived from it; a text of your own is a data.source, see CONTRIBUTING.md"
        )
    return data


class _FromHere(Sampler[int]):
    """Yields batch indices without end, from the run's current batch at the time of iteration."""

    def __init__(self, position: Callable[[], int]) -> None:
        self.position = position

    def __iter__(self) -> Iterator[int]:
        yield from itertools.count(self.position())
