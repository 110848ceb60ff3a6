"""Entry point of the ranks that rank 0 starts: `python -m litchar.training.follow`."""

import os
import sys
import threading


def end_with_standard_input() -> None:
    """Exit when rank 0 does, which holds the other end of this process's standard input."""
    os.read(0, 1)  # blocks until rank 0 is gone: nothing is ever written there
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_standard_input, daemon=True).start()

    from litchar.training.run import follow  # a slow import: seconds

    sys.exit(follow())
