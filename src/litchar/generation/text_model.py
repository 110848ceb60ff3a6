"""The Python interface to a trained model: what `litchar.load` returns and generate.py uses."""

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from litchar.checkpoints import Checkpoint, find
from litchar.device import choose_device
from litchar.errors import UserError
from litchar.generation.readers import Prepared
from litchar.generation.scoring import Score, log_probs_of
from litchar.generation.writing import Settings, Writing, beginning, write
from litchar.run_dir import default_outputs
from litchar.text import Vocabulary


@dataclass(frozen=True, repr=False)
class TextModel:
    """A trained model that generates and scores text.

    Attributes:
        checkpoint: the checkpoint it was loaded from.
        model: maps ids to logits; in evaluation mode.
    """

    checkpoint: Checkpoint
    model: nn.Module

    @classmethod
    def load(
        cls,
        checkpoint: str | PathLike[str] = "latest",
        device: str | None = None,
        outputs: Path | None = None,
    ) -> "TextModel":
        """Return the model of a checkpoint, see `litchar.load`.

        Args:
            outputs: the directory in which `latest` looks for runs.

        Raises:
            UserError: there is no such checkpoint, it is damaged, or there is no such device.
            PermissionError: the checkpoint must not be read.
        """
        chosen = choose_device(device)
        loaded = Checkpoint.load(find(checkpoint, outputs or default_outputs()))
        return cls(loaded, loaded.build_model(chosen))

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's vocabulary: characters, or bytes."""
        return self.checkpoint.vocabulary

    def encode(self, text: str, unknown: str = "error") -> np.ndarray:
        """Return the ids of `text`, cleaned like the training text: (N,).

        Args:
            unknown: what to do with characters not in the vocabulary, see `Vocabulary.encode`.

        Raises:
            UserError: the text has such characters, and `unknown` is `error`.
        """
        return self.vocabulary.encode(self.checkpoint.cleaned(text), unknown)

    def decode(self, ids: np.ndarray | Sequence[int]) -> str:
        """Return the text of `ids`.

        Raises:
            IndexError: an id is not in the vocabulary.
        """
        return self.vocabulary.decode(ids)

    def generate(self, prompt: str = "", **settings: Any) -> str:
        """Return a continuation of `prompt`, without the prompt.

        Args:
            settings: `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`,
                `max_new_tokens`, `stop`, `seed` and `unknown`, see `Settings` and `Sampling`;
                scripts/generate.py gives the same text for the same settings.

        Raises:
            UserError: a setting is out of range, or the prompt has characters that are not in the
                vocabulary.
        """
        return self.stream(prompt, **settings).whole()

    def stream(self, prompt: str = "", **settings: Any) -> Writing:
        """Return the text of `generate` as an iterable, which yields it as it is sampled.

        At its end `text` holds what was written, `log_probs` the log-probability of each token and
        `finish` the reason why it ended.
        """
        return next(self.write([prompt], Settings(**settings)))

    def write(
        self, prompts: Sequence[str], settings: Settings, num_samples: int = 1
    ) -> Iterator[Writing]:
        """Yield `num_samples` texts for each prompt.

        Raises:
            UserError: a prompt has characters that are not in the vocabulary; raised before any
                text is generated.
        """
        prepared = Prepared(self.model)
        stop = [self.checkpoint.cleaned(text) for text in settings.stops]
        settings = replace(settings, stop=stop)
        for ids in [self.encode(prompt, settings.unknown) for prompt in prompts]:
            yield from write(prepared, self.vocabulary, ids, settings, num_samples)

    def score(self, text: str, unknown: str = "error") -> Score:
        """Return how surprising each character of `text` is to the model.

        Raises:
            UserError: the text is too short, or has characters that are not in the vocabulary.
        """
        ids = self.encode(text, unknown).astype(np.int64)
        begun = beginning(self.vocabulary, ids)
        if len(self.decode(ids)) < (1 if self.vocabulary.document else 2):
            if self.vocabulary.document:
                raise UserError("score: needs a character that the model knows")
            raise UserError(
                "score: needs 2 characters that the model knows; the first is not predicted"
            )
        return Score(self.vocabulary, ids, log_probs_of(self.model, begun))

    def facts(self) -> dict[str, str]:
        """Return the model's key facts by name, formatted for display."""
        vocabulary, losses = self.vocabulary, self.checkpoint.losses
        facts = {
            "checkpoint": str(self.checkpoint.path),
            "model": type(self.model).__name__,
            "parameters": f"{sum(p.numel() for p in self.model.parameters()):,}",
            "block size": f"{self.model.block_size:,}",
            "vocabulary": f"{len(vocabulary)} {vocabulary.unit}s",
            "steps": f"{self.checkpoint.step:,}",
        }
        if "val/loss" in losses:
            facts["validation loss"] = f"{losses['val/loss']:.4f} nats per {vocabulary.unit}"
        if "val/bpc" in losses:
            facts["bits per character"] = f"{losses['val/bpc']:.4f}"
        return facts

    def __repr__(self) -> str:
        said = ", ".join(f"{name}: {value}" for name, value in self.facts().items())
        return f"<litchar {said}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
            for name, value in self.facts().items()
        )
        return f"<table>{rows}</table>"
