"""Where runs, sweeps and what looks at them print."""

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a path may have any other character


def visible(text: str) -> str:
    """Return `text` with the characters that steer a terminal made visible, and all others as they
    are."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class Terminal(Console):
    """Standard output; it outlives whoever reads, such as `head`, or `tee` when it is killed.

    What it prints is shown as it is: a path may have `[bold]` or `:car:` in it.

    Args:
        quiet: print nothing, as ranks other than the first.
    """

    def __init__(self, quiet: bool = False) -> None:
        super().__init__(quiet=quiet, highlight=False, markup=False, emoji=False)
        if not self.is_terminal:
            self.width = 1000  # a file needs no folds

    def render_str(self, text: str, **options: Any) -> "Text":
        """Return a text, also of a cell of a table, such that it steers no terminal."""
        return super().render_str(visible(text), **options)

    def say(self, line: str) -> None:
        """Print a line in one piece, however narrow the terminal is."""
        self.print(line, soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Iterable[Iterable[str]]) -> "Table":
        """Return a table of texts; behind `#` and a space a heading right-aligns."""
        from rich.table import Table

        made = Table(box=None, pad_edge=False, show_header=any(columns))
        for heading in columns:
            if heading.startswith("# "):
                made.add_column(heading.removeprefix("# "), justify="right", no_wrap=True)
            else:
                made.add_column(heading, overflow="fold")
        for row in rows:
            made.add_row(*row)
        return made

    def print_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Print rows of the same columns with lines between: names on the left, figures right."""
        from rich.table import Table

        made = Table()
        for column in rows[0]:
            made.add_column(column, justify="left" if column in ("model", "what") else "right")
        for row in rows:
            made.add_row(*(f"{v:,.4g}" if isinstance(v, float) else f"{v}" for v in row.values()))
        self.print(made)

    def track(self, steps: range, what: str) -> Iterable[int]:
        """Return the steps of what takes long; at a terminal a bar counts them, unless they are
        few."""
        from rich.progress import track

        unseen = len(steps) < 20 or not self.is_terminal  # where it would leave an empty line
        return track(steps, what, transient=True, disable=unseen, console=self)

    def on_broken_pipe(self) -> None:
        """Go on unseen."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
