"""Where runs, sweeps and what looks at them print."""

import os
import sys

from rich.console import Console


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

    def say(self, line: str) -> None:
        """Print a line in one piece, however narrow the terminal is."""
        self.print(line, soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """Go on unseen."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
