"""Callbacks that make TensorBoard a dashboard: what `conf/callbacks/default.yaml` turns on.

None of them affects training: they read weights between steps, and run the model in evaluation
mode, outside the step timer. They draw no random numbers.
"""

from collections.abc import Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from torch import Tensor, nn

from litchar.analysis.attention import attention_maps, draw_maps, fixed_line
from litchar.analysis.characters import kind_of, label_of, name_of
from litchar.analysis.confusions import Confusion, most_confused, predictions
from litchar.analysis.layers import activation_statistics, parameters_by_layer, update_ratios
from litchar.data import TextDataModule
from litchar.data.windows import SequentialWindows
from litchar.errors import check_integer
from litchar.text import Vocabulary
from litchar.training.callbacks import is_validation, language_model, metrics_of, tensorboards
from litchar.training.checkpointing import validation_follows
from litchar.training.sharding import full

# The Custom Scalars page: category -> chart -> its kind, and patterns of the tags that it shows.
LAYOUT = {
    "Loss": {
        "training and validation (nats)": ["Multiline", ["^train/loss$", "^val/loss$"]],
        "bits per character": ["Multiline", ["^val/bpc$"]],
    },
    "Steps": {
        "speed (characters per second)": ["Multiline", ["^speed/chars_per_second$"]],
        "learning rate": ["Multiline", ["^lr$"]],
        "gradient norm": ["Multiline", ["^grad_norm$"]],
    },
    "Layers": {
        "update / weight": ["Multiline", ["^weights/update_ratio/"]],
        "root mean square of outputs": ["Multiline", ["^activations/rms/"]],
        "largest output": ["Multiline", ["^activations/max/"]],
    },
}


class Overview(Callback):
    """Logs the run's configuration as text, and lays out the Custom Scalars page."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log both when training starts or resumes."""
        settings = OmegaConf.to_yaml(OmegaConf.create(language_model(trainer).card["config"]))
        for logger in tensorboards(trainer):
            logger.log_text("settings", settings, trainer.global_step)
            logger.log_layout(LAYOUT)


class Layers(Callback):
    """Logs, at each validation, how far the last step moved each layer's weights, relative to
    their norm, and how large each layer's outputs are on a line of the validation text.

    Args:
        length: the maximum length of the line, in tokens.

    Raises:
        UserError: `length` is not a whole number of at least 1.
    """

    def __init__(self, length: int = 24) -> None:
        check_integer("callbacks.layers.length", length, 1)
        self.length = length
        self._before: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._ratios: dict[str, Tensor] = {}

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Copy the weights if a validation follows this step."""
        if validation_follows(trainer) or trainer.global_step + 1 == trainer.max_steps:
            self._before = {
                layer: [(parameter, parameter.detach().clone()) for parameter in parameters]
                for layer, parameters in parameters_by_layer(language_model(trainer).model).items()
            }

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Compute the update ratios, if the weights were copied."""
        if self._before:
            self._ratios = update_ratios(self._before)
            self._before = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the update ratios and the activation statistics."""
        if not is_validation(trainer):
            return
        figures = {f"weights/update_ratio/{k}": float(full(v)) for k, v in self._ratios.items()}
        self._ratios = {}
        line = validation_line(trainer, self.length).to(pl_module.device)
        statistics = activation_statistics(language_model(trainer).model, line)
        figures |= {f"activations/rms/{layer}": rms for layer, (rms, _) in statistics.items()}
        figures |= {f"activations/max/{layer}": most for layer, (_, most) in statistics.items()}
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step)


class Attention(Callback):
    """Draws each head's attention on a line of the validation text, if the model has attention.

    Args:
        length: the maximum length of the line, in tokens.

    Raises:
        UserError: `length` is not a whole number of at least 1.
    """

    def __init__(self, length: int = 24) -> None:
        check_integer("callbacks.attention.length", length, 1)
        self.length = length

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log an image for each layer."""
        if not is_drawn(trainer):
            return
        line = validation_line(trainer, self.length)
        maps = attention_maps(language_model(trainer).model, line.to(pl_module.device))
        vocabulary = vocabulary_of(trainer)
        labels = [label_of(vocabulary.symbols[i], vocabulary.unit) for i in line[0].tolist()]
        for logger in tensorboards(trainer):
            for layer, weights in maps.items():
                image = draw_maps(weights.cpu().numpy(), labels)
                logger.log_image(f"attention/{layer}", image, trainer.global_step)


class Confusions(Callback):
    """Shows which characters the model mistakes for which others, as a table.

    Args:
        characters: how many of the validation split to look at, at least, in evenly spaced windows.
        most: the maximum number of rows of the table.

    Raises:
        UserError: a setting is not a whole number, or is too small.
    """

    def __init__(self, characters: int = 4096, most: int = 25) -> None:
        check_integer("callbacks.confusions.characters", characters, 1)
        check_integer("callbacks.confusions.most", most, 0)
        self.characters = characters
        self.most = most

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Predict the sample, and log the table."""
        if not is_drawn(trainer):
            return
        actual, predicted = predictions(
            language_model(trainer).model, self._windows(trainer), pl_module.device
        )
        table = confusion_table(
            most_confused(actual, predicted, self.most),
            vocabulary_of(trainer),
            f"The likeliest is right for {np.mean(actual == predicted):.1%} of {len(actual):,} "
            "places in the validation text.",
        )
        for logger in tensorboards(trainer):
            logger.log_markdown("confusions", table, trainer.global_step)

    def _windows(self, trainer: L.Trainer) -> Iterator[tuple[Tensor, Tensor]]:
        data = data_module(trainer)
        tokens = data.splits["val"]
        stride = data.block_size * max(1, len(tokens) // self.characters)
        batch_size = min(data.val_batch_size, -(-len(tokens) // stride))
        windows = SequentialWindows(tokens, data.block_size, batch_size, stride)
        for batch in range(len(windows)):
            yield windows[batch]


class Embeddings(Callback):
    """Shows the characters in the Projector, each at its embedding, if the model has an embedding
    table with a row for each."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the embedding table as it is now."""
        if not is_drawn(trainer):
            return
        vocabulary = vocabulary_of(trainer)
        table = embedding_of(language_model(trainer).model, len(vocabulary))
        if table is None:
            return
        rows = [
            [named(c, vocabulary.unit) for named in (label_of, name_of, kind_of)]
            for c in vocabulary.symbols
        ]
        # A copy: sharding frees its storage after a step, which fails once NumPy has a view of it.
        points = full(table.detach()).float().cpu().clone().numpy()
        for logger in tensorboards(trainer):
            logger.log_points("characters", points, ["character", "name", "kind"], rows)


def data_module(trainer: L.Trainer) -> TextDataModule:
    """Return the data module of a run."""
    data = getattr(trainer, "datamodule", None)
    assert isinstance(data, TextDataModule)
    return data


def vocabulary_of(trainer: L.Trainer) -> Vocabulary:
    """Return the vocabulary of the run's text."""
    return data_module(trainer).splits.store.vocabulary


def is_drawn(trainer: L.Trainer) -> bool:
    """Return whether pictures are drawn at this validation: the first, second, fourth, eighth and
    so on, and the last. TensorBoard keeps ten per tag, and most changes happen early."""
    if not is_validation(trainer):
        return False
    number = len(metrics_of(trainer).history)
    return number & (number - 1) == 0 or trainer.should_stop


def validation_line(trainer: L.Trainer, length: int) -> Tensor:
    """Return the line of validation text that layers and heads are probed with: (1, T) int64."""
    data = data_module(trainer)
    most = min(length, data.block_size)
    line = fixed_line(vocabulary_of(trainer), data.splits["val"].numpy(), most)
    return torch.from_numpy(line.astype(np.int64))[None]


def embedding_of(model: nn.Module, vocab_size: int) -> Tensor | None:
    """Return the weights of the first embedding with a row per token, (V, C), if there is one."""
    tables = (m.weight for m in model.modules() if isinstance(m, nn.Embedding))
    return next((table for table in tables if len(table) == vocab_size), None)


def confusion_table(pairs: list[Confusion], vocabulary: Vocabulary, note: str) -> str:
    """Return the pairs as a Markdown table, below `note`."""
    lines = [
        f"{note} The most frequent wrong {vocabulary.unit}s:",
        "",
        "| in the text | likeliest | times | of its occurrences |",
        "|---|---|--:|--:|",
    ]
    for pair in pairs:
        actual, predicted = (
            _literal(label_of(vocabulary.symbols[i], vocabulary.unit))
            for i in (pair.actual, pair.predicted)
        )
        lines.append(f"| {actual} | {predicted} | {pair.times:,} | {pair.share:.1%} |")
    return "\n".join(lines)


def _literal(label: str) -> str:
    """Return a label escaped for Markdown and HTML."""
    return "".join(c if c.isalnum() else f"&#{ord(c)};" for c in label)
