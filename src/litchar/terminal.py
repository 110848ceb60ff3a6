"""Where runs, sweeps and what looks at them print."""

import os
import sys

from rich.console import Console


class Terminal(Console):
    """Standard output; it outlives whoever reads, such as `head`, or `tee` when it is killed."""

    def __init__(self) -> None:
        super().__init__(highlight=False)

    def say(self, line: str) -> None:
        """Print a line as it is."""
        self.print(line, soft_wrap=True, markup=False, emoji=False)

    def on_broken_pipe(self) -> None:
        """Go on unseen."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
