"""Yardsticks: the cost of a validation split in bits, for predictors that only count."""

import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from litchar.errors import UserError
from litchar.text.ngrams import BYTES_PER_NGRAM, Packing, add_one, count_tokens, kneser_ney
from litchar.text.remembered import cache_dir, keep
from litchar.text.split import Text
from litchar.text.store import TokenStore

ORDER = 8
MEMORY_BYTES = 2_000_000_000
QUICK = 4_000_000  # tokens in both splits together: counted within a second
FORMAT = 1  # version of the cached files


@dataclass(frozen=True)
class Yardstick:
    """A predictor that needs no training, and its cost on the validation split.

    Attributes:
        note: remarks for the reader, such as the smoothing used.
    """

    name: str
    bits_per_character: float
    bits_per_byte: float
    note: str = ""

    @classmethod
    def of(cls, name: str, bits: float, sizes: tuple[int, int], note: str = "") -> "Yardstick":
        """Return the yardstick that takes `bits` for `sizes` characters and bytes; a piece of a
        binary file may hold no characters."""
        per_character, per_byte = (bits / size if size else math.inf for size in sizes)
        return cls(name, per_character, per_byte, note)


def count_yardsticks(
    text: Text, store: TokenStore, order: int = ORDER, memory_bytes: float = MEMORY_BYTES
) -> list[Yardstick]:
    """Return the cost of the uniform distribution, unigrams, bigrams and n-grams, and cache it,
    unless less memory than usual forced a lower order.

    All are scored on the same tokens as the models: the validation split but its first token.
    Counts are those of the training split.

    Args:
        order: n; lowered if the n-grams would not fit in 64 bits each or in `memory_bytes`.

    Raises:
        UserError: the training or the validation split has fewer than two tokens.
    """
    train, val = splits(text, store)
    vocab_size = len(store.vocabulary)
    counts = count_tokens(train, vocab_size)
    packing = Packing.fit(counts, order)
    most = max(1, int(min(memory_bytes / BYTES_PER_NGRAM, sys.maxsize)))
    n_gram, used = kneser_ney(packing, train, val, most)
    sizes = characters_and_bytes(store, val[1:])

    def yardstick(name: str, probabilities: np.ndarray, note: str = "") -> Yardstick:
        return Yardstick.of(name, float(-np.log2(probabilities).sum()), sizes, note)

    found = [
        yardstick("uniform", np.full(len(val) - 1, 1 / vocab_size)),
        yardstick("unigram", add_one(counts, train, val, 1), "counts plus one"),
        yardstick("bigram", add_one(counts, train, val, 2), "counts plus one"),
        yardstick(f"{used}-gram", n_gram, _note(packing, used, order, memory_bytes)),
    ]
    if used == packing.order or memory_bytes >= MEMORY_BYTES:
        kept = json.dumps([asdict(yardstick) for yardstick in found])
        keep(_place(store, text, order), kept)
    return found


def quick_yardsticks(text: Text, store: TokenStore) -> list[Yardstick]:
    """Return a text's yardsticks if they are cached or take less than a second, else none."""
    try:
        return [Yardstick(**kept) for kept in json.loads(_place(store, text, ORDER).read_text())]
    except (OSError, ValueError, TypeError):
        pass
    train, val = splits(text, store)
    return count_yardsticks(text, store) if len(train) + len(val) <= QUICK else []


def splits(text: Text, store: TokenStore) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of the training and the validation split.

    Raises:
        UserError: either has fewer than two tokens.
    """
    bounds = text.bounds_in(store)
    train, val = (store.tokens[slice(*bounds[name])] for name in ("train", "val"))
    if len(train) < 2 or len(val) < 2:
        raise UserError(
            f"{text.corpus}: {len(train)} {text.unit}s for training and {len(val)} for "
            "validation are too few; each needs 2, so give a longer text"
        )
    return train, val


def characters_and_bytes(store: TokenStore, tokens: np.ndarray) -> tuple[int, int]:
    """Return how many characters and how many UTF-8 bytes of text `tokens` stand for."""
    characters, size = count_tokens(tokens, len(store.vocabulary)) @ store.vocabulary.sizes
    return int(characters), int(size)


def _note(packing: Packing, used: int, order: int, memory_bytes: float) -> str:
    """Return how the n-grams were smoothed, and why they are shorter or coarser than asked for."""
    note = "modified Kneser-Ney"
    if packing.order < order:
        note += f"; order {order} does not fit the text or its vocabulary"
    if used < packing.order:
        note += f"; order {used + 1} does not fit memory_gb={memory_bytes / 1e9:g}"
    if packing.codes.max() < len(packing.codes) - 1:
        note += f"; contexts distinguish the {int(packing.codes.max())} most frequent"
    return note


def _place(store: TokenStore, text: Text, order: int) -> Path:
    """Return where the yardsticks of a store and its splits are cached."""
    store_name = Path(str(store.tokens.filename)).parent.name
    ends = "-".join(str(stop) for _, stop in text.bounds_in(store).values())
    return cache_dir() / "yardsticks" / f"{store_name}-{ends}-{order}-{FORMAT}.json"
