"""The data module: a corpus, split by position, as batches of windows."""

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
from litchar.data.windows import Batch, RandomWindows, SequentialWindows, Span, document_starts
from litchar.errors import UserError, check_flag, check_integer
from litchar.text import Text, TokenStore

# CUDA indexes tensors of bytes, but of no other unsigned type.
INDEXED_AS = {torch.uint16: torch.int32, torch.uint32: torch.int64}


class TextDataModule(L.LightningDataModule):
    """Batches of windows of a text: inputs and targets, (B, T) int64 each.

    Training windows begin at random places; validation and test windows are contiguous and exact,
    see `data.windows`.

    Args:
        block_size: T, the characters in a window.
        batch_size: B, the windows in a training batch over all devices.
        val_batch_size: the windows in a validation batch on one device; no figure depends on it.
        train_sample: at least so many characters of the training split are scored as well, for a
            training loss that is measured like the validation loss; 0: none.
        start_at_document: training windows begin where a document does, not anywhere.
        num_workers: processes that gather training windows, where the device does not.
        seed: chooses the training windows.
        text: which text, and how it is split: what `litchar.text.Text` takes.

    Raises:
        UserError: (some in `setup`) the text or a setting is unfit.
    """

    trainer: L.Trainer  # which asks for the loaders

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
        self._store: TokenStore | None = None
        self.splits: dict[str, Tensor] = {}
        self._spans: dict[str, Span] = {}
        self._resident: dict[str, Tensor] = {}  # the splits that are on the accelerator

    # Setting up

    def setup(self, stage: str | None = None) -> None:
        """Open the token store and split it; a second call does nothing."""
        if self._store is not None:
            return
        for name in ("block_size", "batch_size", "val_batch_size", "num_workers", "train_sample"):
            least = 0 if name in ("num_workers", "train_sample") else 1
            check_integer(f"data.{name}", getattr(self, name), least)
        check_integer("data.seed", self.seed, 0, 2**64 - 1)
        check_flag("data.start_at_document", self.start_at_document)
        if self.start_at_document and self.text.document is None:
            raise UserError(
                "data.start_at_document=true, and data.document is not set; say what a document "
                "is: data.document=line"
            )
        self._store = self.text.open()
        bounds = self.text.bounds_in(self.store)
        self._spans = {name: Span(self.store.tokens, *bound) for name, bound in bounds.items()}
        self.splits = {name: span.tokens for name, span in self._spans.items()}
        self._check_parts()
        shortest = min(self.splits, key=lambda name: len(self.splits[name]))
        if len(self.splits[shortest]) <= self.block_size:
            largest = len(self.splits[shortest]) - 1
            remedy = f"the largest that fits is data.block_size={largest}"
            if largest < 1 and (self.text.max_val_characters or 2) < 2:
                remedy = "so few do not validate; take a larger data.max_val_characters"
            elif largest < 1:
                remedy = "the text is too short to be split; give a longer one"
            raise UserError(
                f"data.block_size={self.block_size} needs at least {self.block_size + 1} "
                f"{self.text.unit}s in each split, and {shortest} has "
                f"{len(self.splits[shortest])}; {remedy}"
            )

    @property
    def store(self) -> TokenStore:
        """The token store of the text; there is one from `setup` on."""
        assert self._store is not None
        return self._store

    def _check_parts(self) -> None:
        for split, parts in self.store.ranges.items():
            for name, (start, stop) in zip(self.text.weights, parts, strict=True):
                if stop - start <= self.block_size:
                    raise UserError(
                        f"data.mixture: {name} has {stop - start} {self.text.unit}s in its {split} "
                        f"split, too few for data.block_size={self.block_size}; leave it out, or "
                        "take shorter windows"
                    )

    def parts(self, split: str) -> list[tuple[int, int]]:
        """Return where each corpus begins and ends within a split: one, if there is no mixture."""
        ranges = self.store.ranges.get(split)
        if ranges is None:
            return [(0, len(self.splits[split]))]
        return [(start - ranges[0][0], stop - ranges[0][0]) for start, stop in ranges]

    def check_shared_by(self, world_size: int) -> None:
        """Refuse a number of devices that cannot have equal shares of a batch.

        Raises:
            UserError: it is such a number.
        """
        if self.batch_size % world_size:
            raise UserError(
                f"data.batch_size={self.batch_size} cannot be shared by {world_size} devices; "
                f"make it a multiple of {world_size}"
            )

    # Loaders

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the endless stream of training batches, from where the run stands."""
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
                    self.text.weights.values(), self.parts("train"), strict=False
                )
            ],
        )

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """Return the loaders of the validation split and of an even sample of the training split;
        of a mixture, one for each corpus.

        The sample has windows of the same length, `train_sample` characters in all, or the whole
        split if that is shorter. With `trainer.overfit_batches` it is the batches trained on.
        """
        if self.trainer.overfit_batches:  # type: ignore[attr-defined]  # Lightning sets it unseen
            return [*self._sequential("val"), self._loader("train", self._random_windows())]
        if not self.train_sample:
            return self._sequential("val")
        return [*self._sequential("val"), *self._sequential("train", self.train_sample)]

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """Return the loaders of the test split."""
        return self._sequential("test")

    def _sequential(self, name: str, sample: int | None = None) -> list[DataLoader[Batch]]:
        """Return a loader for each corpus of a split, or of a sample of so many characters."""
        parts = self.parts(name)
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
        # For an evaluation they would be started anew each time, while the clock of steps runs.
        has_workers = sampler is not None and name not in self._resident
        return DataLoader(
            windows,
            batch_size=None,  # the dataset makes whole batches
            sampler=sampler,
            num_workers=self.num_workers if has_workers else 0,
            worker_init_fn=signals.leave_to_parent,
        )

    # Where windows are gathered

    def _tokens(self, name: str, start: int, stop: int) -> Tensor | Span:
        """Return a stretch of a split to gather windows from: on the accelerator, where the split
        goes if there is room for it; or else of the memory map, which workers open too."""
        tokens = self.splits[name]
        dtype = INDEXED_AS.get(tokens.dtype, tokens.dtype)
        if name not in self._resident and self._has_room(len(tokens) * dtype.itemsize):
            self._resident[name] = tokens.to(dtype).to(self.trainer.strategy.root_device)
        if name in self._resident:
            return self._resident[name][start:stop]
        first = self._spans[name].start
        return Span(self.store.tokens, first + start, first + stop)

    def _has_room(self, n_bytes: int) -> bool:
        """Return whether the accelerator has room for a split: it takes a quarter at most of what
        is free there. On the CPU the memory map itself serves."""
        device = self.trainer.strategy.root_device
        if device.type != "cuda":
            return device.type == "mps"
        free, _ = torch.cuda.mem_get_info(device)
        return n_bytes <= free // 4


def make_data_module(settings: DictConfig) -> TextDataModule:
    """Return the data module that `conf/data` describes.

    The path goes past `instantiate`, which would read `${...}` in it as an interpolation.

    Raises:
        UserError: there is a setting that it does not have.
    """
    try:
        data: TextDataModule = instantiate(settings, path=None, _partial_=True)(path=settings.path)
        return data
    except TypeError as error:
        raise UserError(f"data: {error}") from None


class _FromHere(Sampler[int]):
    """Counts batches without end, from the one that the run has reached when it is iterated."""

    def __init__(self, position: Callable[[], int]) -> None:
        self.position = position

    def __iter__(self) -> Iterator[int]:
        yield from itertools.count(self.position())
