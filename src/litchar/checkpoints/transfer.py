"""Transfer of weights between models with different vocabularies."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from litchar.checkpoints.checkpoint import Checkpoint
from litchar.errors import UserError
from litchar.text import Vocabulary

FREE = ("vocab_size", "block_size", "dropout", "noise", "init")  # options that may differ


def differing(parent: Checkpoint, settings: dict[str, Any]) -> str:
    """Return a list, for a message, of the model options of `parent` that differ from `settings`,
    apart from those in `FREE`; empty if there are none."""
    return ", ".join(
        f"model.{name}={json.dumps(then)} there, {json.dumps(settings[name])} here"
        for name, then in parent.model_settings.items()
        if name not in FREE and name in settings and then != settings[name]
    )


@torch.no_grad()
def transfer_weights(
    parent: Checkpoint,
    model: nn.Module,
    vocabulary: Vocabulary,
    build: Callable[[int], nn.Module],
    settings: dict[str, Any],
) -> tuple[int, int, int]:
    """Copy the weights of `parent` into `model`, matching vocabulary rows by character.

    Which dimensions of which parameters run over the vocabulary is found by building the model
    with two vocabulary sizes, so that no model has to declare it.

    Args:
        model: freshly initialised; rows of characters that `parent` does not know stay so, as do
            n-gram embeddings if the vocabularies differ.
        vocabulary: of `model`.
        build: returns the model for a given vocabulary size.
        settings: of `model`.

    Returns:
        the number of characters in both vocabularies, whose rows were copied; in the new one only,
        whose rows stay freshly initialised; and in the old one only

    Raises:
        UserError: the models differ in more than the vocabulary, or the vocabularies differ and a
            dimension depends on their size without being equal to it, as in a table of pairs.
    """
    old_ids = {symbol: i for i, symbol in enumerate(parent.vocabulary.symbols)}
    new_ids = {symbol: i for i, symbol in enumerate(vocabulary.symbols) if symbol in old_ids}
    old_rows, new_rows = [old_ids[symbol] for symbol in new_ids], list(new_ids.values())
    with torch.device("meta"):
        small, large = build(2).state_dict(), build(3).state_dict()

    weights, old_weights = model.state_dict(), parent.build_model().state_dict()
    if weights.keys() != old_weights.keys():
        name = sorted(weights.keys() ^ old_weights.keys())[0]
        raise UserError(
            f"init_from={parent.path}: its model differs from this one in {name}"
            f" ({differing(parent, settings)})"
        )
    same = vocabulary == parent.vocabulary
    for name, new in weights.items():
        if name.startswith("ngrams.") and not same:
            continue  # rows of these tables go by ids, which now stand for other characters
        old = old_weights[name]
        sizes = list(zip(small[name].shape, large[name].shape, strict=True))
        over_vocabulary = [i for i, (a, b) in enumerate(sizes) if a != b and not same]
        if any(sizes[i] != (2, 3) for i in over_vocabulary):
            raise UserError(
                f"init_from={parent.path}: {name} has no separate row for each {vocabulary.unit}, "
                f"but this text has other {vocabulary.unit}s; train such a model from scratch"
            )
        if any(old.shape[i] != new.shape[i] for i in range(new.ndim) if i not in over_vocabulary):
            raise UserError(
                f"init_from={parent.path}: {name} has shape {tuple(old.shape)} there and "
                f"{tuple(new.shape)} here; leave the model's sizes and data.block_size out to keep "
                "the old ones"
            )
        new[_rows(new, over_vocabulary, new_rows)] = old[_rows(old, over_vocabulary, old_rows)]
    matched = len(new_ids)
    return matched, len(vocabulary) - matched, len(parent.vocabulary) - matched


def _rows(tensor: Tensor, dimensions: list[int], rows: list[int]) -> tuple[np.ndarray, ...]:
    """Return the index that selects `rows` along `dimensions` and everything along the others."""
    return np.ix_(*(rows if i in dimensions else range(n) for i, n in enumerate(tensor.shape)))
