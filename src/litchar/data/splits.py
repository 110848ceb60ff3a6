"""The splits of a text, as ids."""

from torch import Tensor

from litchar.data.windows import Span
from litchar.text import Text


class Splits(dict[str, Tensor]):
    """The splits of a text by name: (N,) ids each, read from the memory-mapped token store.

    Attributes:
        text: which text, and how it is split.
        store: its token store.
        spans: where each split lies in the store.

    Raises:
        UserError: the text cannot be read, or cannot be split.
    """

    def __init__(self, text: Text) -> None:
        self.text = text
        self.store = text.open()
        bounds = text.bounds_in(self.store)
        self.spans = {name: Span(self.store.tokens, *bound) for name, bound in bounds.items()}
        super().__init__({name: span.tokens for name, span in self.spans.items()})

    def parts(self, split: str) -> list[tuple[int, int]]:
        """Return (start, stop) of each corpus within a split: one pair unless it is a mixture."""
        ranges = self.store.ranges.get(split)
        if ranges is None:
            return [(0, len(self[split]))]
        return [(start - ranges[0][0], stop - ranges[0][0]) for start, stop in ranges]
