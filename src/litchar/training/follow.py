"""The program of a rank that rank 0 starts: `python -m litchar.training.follow`."""

import os
import sys
import threading


def end_with_standard_input() -> None:
    """End this process when rank 0, which holds the other end of its standard input, does."""
    os.read(0, 1)  # nothing is ever written there
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_standard_input, daemon=True).start()

    from litchar.training.run import follow  # takes seconds

    sys.exit(follow())
