"""A text as a run sees it: which corpus, and where its splits lie."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from hydra.utils import instantiate

from litchar.errors import UserError
from litchar.text.corpus import Corpus
from litchar.text.store import TokenStore, open_store
from litchar.text.vocabulary import UNITS, Vocabulary


@dataclass(frozen=True)
class Text:
    """Which text, and how it is split: what `conf/data` says of it, without windows and batches.

    The splits follow each other in the text: train, validation, test.

    Attributes:
        path: the text: a file, a directory, or a list of either; goes before `source`.
        pattern: which files of a directory.
        field: of JSON-lines files, the field that is the text.
        column: of Parquet files, the column that is the text.
        source: a function that returns the corpus, for texts with a name.
        unit: what a token is, `character` or `byte`.
        val_fraction: the share of the text that validates.
        test_fraction: the share that is kept for the very end.

    Raises:
        UserError: a setting is unfit.
    """

    path: str | Sequence[str] | None = None
    pattern: str = "**/*.txt"
    field: str | None = None
    column: str | None = None
    source: Callable[[], Corpus] | None = None
    unit: str = Vocabulary.unit
    val_fraction: float = 0.1
    test_fraction: float = 0.0

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise UserError(f"data.unit={self.unit}: there are {' and '.join(UNITS)}")
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

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Text":
        """Return the text that a configuration's `data` describes."""
        mine = {field.name: settings[field.name] for field in fields(cls) if field.name in settings}
        return cls(**mine | {"source": instantiate(mine.get("source"))})

    def corpus(self) -> Corpus:
        """Return the corpus that `path` or `source` names.

        Raises:
            UserError: there is none.
        """
        if self.path is not None:
            return Corpus.find(self.path, self.pattern, self.field, self.column)
        if self.source is None:
            raise UserError("data.path is not set; say which text to train on: data.path=FILE")
        return self.source()

    def open(self) -> TokenStore:
        """Return the token store of the text, from the cache or built now.

        Raises:
            UserError: the text is unfit.
        """
        return open_store(self.corpus(), self.unit)

    def bounds(self, length: int) -> dict[str, tuple[int, int]]:
        """Return where each split of a text of `length` tokens begins and ends.

        Returns:
            name -> (start, stop), for train, val and, if asked for, test.
        """
        slack = 1e-6  # 1 - 0.05 - 0.05 is a little less than 0.9
        train_end = int(length * (1 - self.val_fraction - self.test_fraction) + slack)
        if self.test_fraction == 0:
            return {"train": (0, train_end), "val": (train_end, length)}
        val_end = int(length * (1 - self.test_fraction) + slack)
        return {"train": (0, train_end), "val": (train_end, val_end), "test": (val_end, length)}
