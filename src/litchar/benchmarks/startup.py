"""Time from starting `train.py` to its first step."""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from litchar.benchmarks import run_training, spread


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This benchmark has no options of its own."""


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row each for a cold and a warm token store: seconds of a whole one-step process.

    Uses the bundled text and the device's default sizes. One batch is validated too, so the figure
    is an upper bound on the time to the first step. No report is written.
    """
    seconds: dict[str, list[float]] = {"cold token store": [], "warm token store": []}
    with tempfile.TemporaryDirectory() as directory:
        for repeat in range(options.repeats):
            for taken in seconds.values():
                began = time.perf_counter()
                run_training(
                    Path(directory) / str(repeat),
                    "trainer.max_steps=1",
                    "trainer.limit_val_batches=1",
                    "data.train_sample=0",
                    "report=false",
                )
                taken.append(time.perf_counter() - began)
    return [{"what": what, **spread("seconds", taken)} for what, taken in seconds.items()]
