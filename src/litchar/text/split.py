"""A text as a run sees it: its corpus, and where its splits begin and end."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from hydra.utils import instantiate

from litchar.errors import UserError, check_flag, check_integer
from litchar.overrides import nearest
from litchar.text.cleaning import Cleaning
from litchar.text.corpus import Corpus
from litchar.text.mixture import Mixture, Splitting, mixture_weights
from litchar.text.sources import HuggingFace
from litchar.text.store import Encoding, TokenStore, boundaries, find_store, open_store
from litchar.text.vocabulary import DOCUMENTS, UNITS, Vocabulary

# The settings that determine a text's splits.
SPLIT_BY = ("val_fraction", "test_fraction", "max_val_characters", "document", "shuffle")
# Settings that apply only to texts named by one of these keys.
OF_TEXTS = {
    "pattern": ("path", "mixture"),
    "field": ("path", "mixture"),
    "column": ("path", "name", "mixture"),
    "subset": ("name",),
    "split": ("name",),
}
# The other keys of `conf/data`: how windows and batches are drawn from a text.
BATCHED_BY = (
    "_target_",
    "block_size",
    "batch_size",
    "val_batch_size",
    "train_sample",
    "start_at_document",
    "num_workers",
    "seed",
)


def stray(settings: Mapping[str, Any]) -> list[str]:
    """Return the settings that apply to no text, as none of the keys in `OF_TEXTS` names one."""
    return [
        name
        for name, texts in OF_TEXTS.items()
        if settings.get(name) not in (None, getattr(Text, name))
        and all(settings.get(text) is None for text in texts)
    ]


@dataclass(frozen=True)
class Text:
    """Which text, and how it is split: `conf/data` without its settings for windows and batches.

    The splits are consecutive in the text: train, validation, test. A text of documents is split
    at the document boundaries nearest to the fractions.

    Attributes:
        path: the text: a file, a directory, or a list of either; takes precedence over `source`.
        pattern: a glob for the files of a directory.
        field: for JSON-lines files, the field that holds the text.
        column: for Parquet files and datasets, the column that holds the text.
        name: of a dataset that the `datasets` library loads, from the Hub or a directory.
        subset: which configuration of the dataset, if it has several.
        split: which split of the dataset, such as `train`.
        source: a function that returns the corpus, for named texts.
        mixture: several texts instead, each a path and a weight; see `litchar.text.mixture`.
        unit: what a token is, `character` or `byte`.
        document: what a document is: `line`, `file`, or None for a text without documents.
        normalize: a Unicode normal form for the text, see `litchar.text.cleaning.Cleaning`.
        lowercase: convert the text to lowercase.
        min_count: replace characters that occur fewer times.
        shuffle: shuffle the documents before they are split, in the same order for every seed.
        val_fraction: the share of the text for validation.
        test_fraction: the share held out for the final test.
        max_val_characters: upper limit on the validation tokens of a long text; None: no limit.

    Raises:
        UserError: a setting is invalid.
    """

    path: str | Sequence[str] | None = None
    pattern: str = "**/*.txt"
    field: str | None = None
    column: str | None = None
    name: str | None = None
    subset: str | None = None
    split: str = "train"
    source: Callable[[], Corpus] | None = None
    mixture: Sequence[Mapping[str, Any]] | None = None
    unit: str = Vocabulary.unit
    document: str | None = None
    normalize: str | bool | None = None
    lowercase: bool | None = None
    min_count: int | None = None
    shuffle: bool = False
    val_fraction: float = 0.1
    test_fraction: float = 0.0
    max_val_characters: int | None = None

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise UserError(f"data.unit={self.unit}: must be {' or '.join(UNITS)}")
        if self.document not in DOCUMENTS:
            raise UserError(f"data.document={self.document}: must be line, file or null")
        if self.unit != Vocabulary.unit and self.cleaning.name:
            raise UserError(
                f"data.unit={self.unit} reads a text unchanged; leave data.normalize, "
                "data.lowercase and data.min_count out, or set data.unit=character"
            )
        check_flag("data.shuffle", self.shuffle)
        self._check_named()
        if self.shuffle and self.document is None:
            raise UserError(
                "data.shuffle=true shuffles documents, but data.document is not set; "
                "say what a document is: data.document=line"
            )
        self._check_shares()

    def _check_named(self) -> None:
        """Refuse two names for a text, malformed names, and settings that apply to no text."""
        if self.path is not None and self.name is not None:
            raise UserError(
                f"data.path={self.path} and data.name={self.name}: both name a text; leave one out"
            )
        for name in stray(vars(self)):
            named = " or ".join(f"data.{text}" for text in OF_TEXTS[name])
            given = getattr(self, name)
            raise UserError(f"data.{name}={given}: needs {named}, which is not set")
        for name in ("pattern", "field", "column"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise UserError(f"data.{name}={value}: must be text")
        if self.mixture is not None:
            mixture_weights(self.mixture)
            for key, value in (("path", self.path), ("name", self.name)):
                if value is not None:
                    raise UserError(
                        f"data.{key}={value}: data.mixture names the texts; leave data.{key} out"
                    )

    def _check_shares(self) -> None:
        """Refuse shares that leave nothing to train or to validate on."""
        for name in ("val_fraction", "test_fraction"):
            if not isinstance(getattr(self, name), int | float):
                raise UserError(f"data.{name}={getattr(self, name)}: must be a number, such as 0.1")
        if not 0 < self.val_fraction < 1:
            raise UserError(
                f"data.val_fraction={self.val_fraction}: must lie between 0 and 1, such as 0.1"
            )
        if not 0 <= self.test_fraction < 1 - self.val_fraction:
            raise UserError(
                f"data.test_fraction={self.test_fraction}: must be at least 0 and leave room for "
                f"training beside data.val_fraction={self.val_fraction}"
            )
        if self.max_val_characters is not None:
            check_integer("data.max_val_characters", self.max_val_characters, 1)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Text":
        """Return the text that a configuration's `data` describes.

        Raises:
            UserError: a setting is invalid or unknown.
        """
        names = {field.name for field in fields(cls)} | set(BATCHED_BY)
        if unknown := [str(name) for name in settings if name not in names]:
            key = f"data.{unknown[0]}"
            near = nearest(key, [f"data.{name}" for name in names])
            raise UserError(f"{key}: there is no such key{near}")
        mine = {field.name: settings[field.name] for field in fields(cls) if field.name in settings}
        return cls(**mine | {"source": instantiate(mine.get("source"))})

    @property
    def cleaning(self) -> Cleaning:
        """The cleaning of the text's characters."""
        return Cleaning(self.normalize, self.lowercase, self.min_count)

    @functools.cached_property
    def corpus(self) -> Corpus:
        """The corpus that `path`, `name`, `source` or `mixture` names, cleaned; its files are
        looked up once.

        Raises:
            UserError: no text is named, or it does not exist.
        """
        if self.mixture is not None:
            return Mixture([self._at(entry) for entry in self.mixture], self.cleaning)
        return self.cleaning.of(self._as_it_is())

    @property
    def weights(self) -> dict[str, float]:
        """The corpora of a mixture and their shares of the training windows; empty without a
        mixture."""
        return {} if self.mixture is None else mixture_weights(self.mixture)

    def _at(self, entry: Mapping[str, Any]) -> Corpus:
        """Return the corpus at a path, such as an entry of the mixture names; keys that are missing
        there default to the settings of the text."""
        how = {key: entry.get(key, getattr(self, key)) for key in ("pattern", "field", "column")}
        corpus = Corpus.find(entry["path"], **how)
        if self.unit == Vocabulary.unit:  # else the tokens are the files' bytes
            corpus.check_rows()
        return corpus

    def _as_it_is(self) -> Corpus:
        if self.path is not None:
            return self._at({"path": self.path})
        if self.name is not None:
            return HuggingFace(self.name, self.column, self.subset, self.split)
        if self.source is None:
            raise UserError(
                "data.path is not set; say which text to train on: data.path=FILE, or "
                "data=huggingface data.name=NAME"
            )
        return self.source()

    def open(self) -> TokenStore:
        """Return the token store of the text, from the cache or built now.

        Raises:
            UserError: the text cannot be read or encoded.
        """
        return open_store(self.corpus, self._encoding)

    @property
    def _encoding(self) -> Encoding:
        splitting = None
        if self.mixture is not None:
            name = f"{self.val_fraction}-{self.test_fraction}-{self.max_val_characters}"
            splitting = Splitting(name, self.bounds)
        return Encoding(self.unit, self.document, self.shuffle, splitting)

    def bounds_in(self, store: TokenStore) -> dict[str, tuple[int, int]]:
        """Return where each split of this text begins and ends in its store."""
        if not store.ranges:
            return self.bounds(store.tokens)
        return {name: (parts[0][0], parts[-1][1]) for name, parts in store.ranges.items()}

    def cached(self, fingerprint: str) -> TokenStore | None:
        """Return the store of the corpus with this fingerprint if it is still in the cache."""
        return find_store(fingerprint, self._encoding)

    def bounds(self, tokens: np.ndarray) -> dict[str, tuple[int, int]]:
        """Return where each split of a text begins and ends.

        Adjacent splits of documents share the boundary token between them.

        Args:
            tokens: the tokens of the text's store

        Returns:
            name -> (start, stop), for train, val and, if asked for, test.

        Raises:
            UserError: the text is empty, or has too few documents or one that is too long.
        """
        if len(tokens) <= (self.document is not None):  # one boundary, and no document
            raise UserError("the text is empty")
        slack = 1e-6  # 1 - 0.05 - 0.05 is a little less than 0.9
        train, _, test = self._shares(len(tokens))
        cuts = [int(len(tokens) * train + slack)]
        if test > 0:
            cuts.append(int(len(tokens) * (1 - test) + slack))
        if self.document is None:
            starts, stops = [0, *cuts], [*cuts, len(tokens)]
        else:
            edges = self._between_documents(boundaries(tokens), cuts)
            starts, stops = edges[:-1], [edge + 1 for edge in edges[1:]]
        return dict(zip(("train", "val", "test"), zip(starts, stops, strict=True), strict=False))

    def _shares(self, size: int) -> tuple[float, float, float]:
        """Return the shares of train, validation and test of a text of `size` tokens."""
        val = self.val_fraction
        if self.max_val_characters is not None:
            val = min(val, self.max_val_characters / size)
        return 1 - val - self.test_fraction, val, self.test_fraction

    def _between_documents(self, edges: np.ndarray, cuts: list[int]) -> list[int]:
        """Return the document boundaries among `edges` nearest to `cuts`, plus the first and the
        last, with at least one document between any two of them."""
        documents = len(edges) - 1
        if documents <= len(cuts):
            raise UserError(
                f"the text has {documents} document{'s'[: documents != 1]}, too few for "
                f"{len(cuts) + 1} splits of whole ones; leave data.document={self.document} out to "
                "split it anywhere"
            )
        longest, share = int(np.diff(edges).max()) - 1, max(self._shares(int(edges[-1]) + 1))
        if longest > edges[-1] * share:
            raise UserError(
                f"a document of {longest:,} {self.unit}s is longer than the largest split, "
                f"{share:.0%} of the text's {int(edges[-1]):,}; change data.val_fraction, or leave "
                f"data.document={self.document} out to split the text anywhere"
            )
        chosen = [0]
        for i, cut in enumerate(cuts):
            nearest = int(np.abs(edges - cut).argmin())
            chosen.append(min(max(nearest, chosen[-1] + 1), documents - (len(cuts) - i)))
        return [int(edge) for edge in edges[[*chosen, documents]]]
