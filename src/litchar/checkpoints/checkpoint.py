"""A checkpoint's content: enough to rebuild the model and to encode and decode its text."""

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from litchar.checkpoints.files import load
from litchar.errors import UserError, first_line
from litchar.models.checks import MOST_BUFFER_BYTES
from litchar.run_dir import newest_first
from litchar.text import Vocabulary
from litchar.text.cleaning import Cleaning

FORMAT = 1
MODELS = "litchar.models."  # where a checkpoint's model may come from
# What data of the wrong kind raises, such as a tensor in place of a number (RuntimeError).
STRANGE = (LookupError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError)
MOST_SHARED = 1000  # layers allowed even of a model with fewer weights: layers may share them


def make_card(
    vocabulary: Vocabulary, model: dict[str, Any], config: dict[str, Any], **provenance: Any
) -> dict[str, Any]:
    """Return the metadata that a checkpoint stores beside the weights, as plain data.

    Args:
        model: the model's class under `_target_`, and every argument it was built with.
        config: the run's complete configuration, resolved.
        provenance: the run's origin: versions, the text's name and fingerprint.
    """
    return {
        "format": FORMAT,
        "vocabulary": vocabulary.to_json(),
        "model": model,
        "config": config,
        "provenance": provenance,
    }


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        path: the checkpoint's file.
        vocabulary: the model's characters, or byte values.
        model_settings: the model's class under `_target_`, and its arguments.
        config: the configuration of the run that wrote it.
        provenance: versions, git revision, the text's name and fingerprint.
        cleaning: how the characters of the training text were cleaned.
        step: number of optimiser steps taken.
        losses: the validation results at that step, by TensorBoard tag; empty if it was saved
            between validations.
        weights: the model's state dict.
        resumable: whether training can resume from it exactly: whether it has optimiser state.
    """

    path: Path
    vocabulary: Vocabulary = field(repr=False)
    model_settings: dict[str, Any]
    config: dict[str, Any] = field(repr=False)
    provenance: dict[str, Any] = field(repr=False)
    cleaning: Cleaning = field(repr=False)
    step: int
    losses: dict[str, float]
    weights: dict[str, Tensor] = field(repr=False)
    resumable: bool

    @classmethod
    def load(cls, path: str | Path) -> "Checkpoint":
        """Return the checkpoint at `path`.

        Raises:
            UserError: the file is missing, damaged, not a litchar checkpoint, or of a newer format.
            PermissionError: it must not be read.
        """
        path = Path(os.path.expanduser(path))
        return cls.of(load(path), path)

    @classmethod
    def of(cls, data: dict[str, Any], path: Path) -> "Checkpoint":
        """Return the checkpoint whose file at `path` holds `data`.

        Raises:
            UserError: `data` is not a litchar checkpoint, or of a newer format.
        """
        card = data["litchar"]
        try:
            if card["format"] > FORMAT:
                raise UserError(
                    f"{path}: written in format {card['format']}, but this litchar reads "
                    f"{FORMAT}; update litchar"
                )
            vocabulary, settings = Vocabulary.from_json(card["vocabulary"]), dict(card["model"])
            if missing := {"_target_", "vocab_size", "block_size"} - settings.keys():
                raise ValueError(f"its model has no {min(missing)}")
            if len(vocabulary) != settings["vocab_size"]:
                raise ValueError(
                    f"{len(vocabulary)} {vocabulary.unit}s, but a model for "
                    f"{settings['vocab_size']}"
                )
            beside = [name for name in data["state_dict"] if not name.startswith("model.")]
            if beside:
                raise ValueError(f"{beside[0]} is not a weight of the model")
            return cls(
                path=path,
                vocabulary=vocabulary,
                model_settings=settings,
                config=dict(card["config"]),
                provenance={"fingerprint": None, **card["provenance"]},
                cleaning=Cleaning.named_in(card["config"].get("data", {})),
                step=int(data["global_step"]),
                losses=_losses_at(int(data["global_step"]), data.get("callbacks", {})),
                weights={
                    name.removeprefix("model."): tensor
                    for name, tensor in data["state_dict"].items()
                },
                resumable="optimizer_states" in data,
            )
        except STRANGE as error:
            raise UserError(f"{path}: not a checkpoint that litchar wrote ({error})") from None

    def cleaned(self, text: str) -> str:
        """Return a text, such as a prompt, cleaned as the training text was. Line ends become `\\n`
        unless `\\r` is in the vocabulary, as it is where tokens are bytes."""
        if "\r" not in self.vocabulary.characters:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        return self.cleaning(text)

    def check_model(self) -> None:
        """Raise UserError unless the weights fit the model, which takes no memory for its own."""
        with self._fitting():
            layers = self.model_settings.get("n_layer")
            if isinstance(layers, int) and layers > max(MOST_SHARED, len(self.weights)):
                raise ValueError(f"{layers} layers, and {len(self.weights)} weights")
            with torch.device("meta"), _Undrawn():
                expected = self._new_model()
            _check_weights(self.weights, expected)

    def build_model(self, device: str | torch.device = "cpu") -> nn.Module:
        """Return the model with its trained weights, in evaluation mode, on `device`.

        Raises:
            UserError: the weights do not match the model's settings, or are not all finite.
        """
        self.check_model()
        with self._fitting():
            model = self._new_model()
            model.load_state_dict(self.weights)
        for name, weight in model.named_parameters():
            if not weight.isfinite().all():
                raise UserError(
                    f"{self.path}: {name} has a value that is not finite: its training had "
                    "diverged; use an earlier checkpoint"
                )
        return model.to(device).eval()

    def _new_model(self) -> nn.Module:
        settings = dict(self.model_settings)
        model: nn.Module = trusted(settings.pop("_target_", None), MODELS, self.path)(**settings)
        return model

    @contextlib.contextmanager
    def _fitting(self) -> Iterator[None]:
        """Turn a model's errors about its settings and weights into a UserError with the path."""
        try:
            yield
        except STRANGE as error:
            raise UserError(
                f"{self.path}: its weights do not fit its settings: {first_line(error)}"
            ) from None


def find(checkpoint: str | os.PathLike[str] | None, outputs: Path, key: str = "checkpoint") -> Path:
    """Return the path of the checkpoint that `checkpoint` names.

    Args:
        checkpoint: a file, a run's directory (its best checkpoint, or its last if it has no best),
            or `latest`: the newest run's.
        outputs: the directory that holds `runs/` and `sweeps/`.
        key: the option that `checkpoint` is the value of, for messages.

    Raises:
        UserError: `checkpoint` is None, or the directory or `outputs` has no checkpoint.
        PermissionError: one may not look into the directory.
    """
    if checkpoint is None:
        raise UserError(f"{key}=null: give a file, a run's directory, or latest")
    if checkpoint == "latest":
        files = trained(outputs)
        if not files:
            raise UserError(
                f"{key}=latest: no run under {outputs} has a checkpoint; train one (python "
                "scripts/train.py), or set LITCHAR_OUTPUTS to another directory"
            )
        return files[0]
    path = Path(os.path.expanduser(checkpoint))
    if path.is_dir():
        best = best_of(path)
        if best is None:
            try:
                os.stat(path / "checkpoints" / "best.ckpt")
            except PermissionError:
                raise
            except OSError:
                pass  # there is none
            raise UserError(f"{key}={checkpoint}: this directory has no checkpoints/best.ckpt")
        return best
    return path


def trained(outputs: Path) -> list[Path]:
    """Return the best checkpoint of each run and of each job of a sweep, the newest run's first."""
    return [best for run in newest_first(outputs) if (best := best_of(run)) is not None]


def best_of(run_dir: Path) -> Path | None:
    """Return a run's best checkpoint, its last if there is no best, or None."""
    files = (run_dir / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    # Path.is_file raises without permission to look, as in another user's run beside one's own.
    return next((file for file in files if os.path.isfile(file)), None)


def _losses_at(step: int, callbacks: dict[str, Any]) -> dict[str, float]:
    """Return the results that the `Metrics` callback recorded at the validation of `step`."""
    history = callbacks.get("Metrics", {}).get("history", [])
    found: dict[str, Any] = next((point for point in history if point["step"] == step), {})
    return {name: float(value) for name, value in found.items() if "/" in name}


def trusted(target: object, prefix: str, place: str | Path) -> Callable[..., Any]:
    """Return the class or function that a checkpoint names, if it belongs to this project.

    Args:
        target: its dotted name.
        prefix: the package in which it must be defined, with a dot at the end.
        place: where it is named, such as the checkpoint's path, for messages.

    Raises:
        UserError: it is defined outside `prefix`, does not exist, or is private.
    """
    if isinstance(target, str) and target.startswith(prefix):
        module, _, name = target.rpartition(".")
        try:
            found: Callable[..., Any] | None = getattr(importlib.import_module(module), name, None)
        except ImportError as error:
            raise UserError(
                f"{place}: {target} cannot be imported ({first_line(error)}); it was not built"
            ) from None
        own = getattr(found, "__module__", "").startswith(prefix.rstrip("."))
        if found is not None and own and not name.startswith("_"):
            return found
    raise UserError(
        f"{place}: it names {target!r}, which is not one of {prefix}*; it was not built"
    )


class _Undrawn(TorchFunctionMode):
    """Skips `torch.nn.init`: to draw weights on the meta device, which has none, torch imports its
    compiler, which was almost half of the time that `generate.py` took to start."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call a function, unless it is one of those: they return their tensor."""
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]
        return func(*args, **kwargs)


def check_plain(name: str, tensor: object) -> None:
    """Raise ValueError unless a weight is a plain dense tensor of numbers that are all stored."""
    if (
        not isinstance(tensor, Tensor)
        or tensor.layout != torch.strided
        or tensor.is_meta
        or tensor.is_nested
    ):
        raise ValueError(f"{name} is not a plain tensor")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"{name} claims more numbers than are stored")


def _check_weights(weights: dict[str, Tensor], model: nn.Module) -> None:
    """Raise ValueError unless the weights fit `model`, which may be on the meta device, and are
    stored in full, and its buffers take at most `MOST_BUFFER_BYTES`."""
    expected = model.state_dict()
    missing = expected.keys() - weights.keys()
    surplus = weights.keys() - expected.keys()
    if missing or surplus:
        raise ValueError(f"missing {sorted(missing)[:3]}, surplus {sorted(surplus)[:3]}")
    for name, tensor in expected.items():
        found = weights[name]
        check_plain(name, found)
        if found.shape != tensor.shape:
            raise ValueError(f"{name} has shape {tuple(found.shape)}, not {tuple(tensor.shape)}")
        if found.is_floating_point() != tensor.is_floating_point():
            raise ValueError(f"{name} has type {found.dtype}, not {tensor.dtype}")
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in weights.values()}
    stored = sum(storage.nbytes() for storage in storages.values())
    if sum(weight.numel() for weight in model.parameters()) > 2 * stored:  # at least a byte each
        raise ValueError("its weights claim more numbers than are stored")
    if sum(buffer.nbytes for buffer in model.buffers()) > MOST_BUFFER_BYTES:
        raise ValueError("its buffers would take more than 1 GiB")
