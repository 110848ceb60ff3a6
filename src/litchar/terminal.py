"""Terminal output of runs, of sweeps and of the tools that inspect them."""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from litchar import signals

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a path may have any other character


def visible(text: str) -> str:
    """Return `text` with control characters, which could steer a terminal, escaped."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def _cell(value: object) -> str:
    """Return a figure with at least four significant digits, never as 2e+04; a name as it is; and
    nothing for None."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "" if value is None else str(value)


class Terminal(Console):
    """Standard output; it survives the end of its reader, such as `head`, or a killed `tee`.

    Text is printed literally, since a path may contain `[bold]` or `:car:`.

    Args:
        quiet: print nothing, for ranks other than 0.
    """

    def __init__(self, quiet: bool = False) -> None:
        super().__init__(quiet=quiet, highlight=False, markup=False, emoji=False)
        if not self.is_terminal:
            self.width = 1000  # no line wrapping in a file

    def render_str(self, text: str, **options: Any) -> "Text":
        """Return a text, also that of a table cell, with control characters escaped."""
        return super().render_str(visible(text), **options)

    def say(self, line: str) -> None:
        """Print a line without wrapping, however narrow the terminal is."""
        self.print(line, soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Iterable[Iterable[str]]) -> "Table":
        """Return a table of texts; a heading that begins with `#` and a space is right-aligned."""
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
        """Print rows of the same columns as a ruled table: names left-aligned, figures right."""
        from rich.table import Table

        made = Table()
        for column in rows[0]:
            made.add_column(column, justify="left" if column in ("model", "what") else "right")
        for row in rows:
            made.add_row(*map(_cell, row.values()))
        self.print(made)

    def track(self, steps: range, what: str) -> Iterable[int]:
        """Return the steps of a long task; at a terminal a bar counts them, unless they are few."""
        from rich.progress import track

        unseen = len(steps) < 20 or not self.is_terminal  # where the bar would leave an empty line
        return track(steps, what, transient=True, disable=unseen, console=self)

    def on_broken_pipe(self) -> None:
        """Discard all further output."""
        signals.discard(sys.stdout.fileno())
