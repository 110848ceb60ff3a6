"""What TensorBoard's pages beyond curves cost a run: with and without the default callbacks."""

import argparse
import statistics
import tempfile
from pathlib import Path

from litchar.benchmarks import run_training

RUNS = {"teaching_transformer": ("experiment=teaching_transformer", "data=ml"), "default": ()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--run", choices=RUNS, default="default", help="which (default)")
    parser.add_argument("--steps", type=int, default=300, help="of each, validated every 100 (300)")


def measure(options: argparse.Namespace) -> list[dict]:
    """Return a row for a run with `callbacks=default` and one without: seconds, in turns.

    Both validate every 100 steps, as whole runs do. Pictures are drawn early and at the end, and so
    are a larger share of a run of few steps than of a whole one.
    """
    forms = {"with all pages": "callbacks=default", "without": "callbacks=none"}
    taken: dict[str, list[dict]] = {what: [] for what in forms}
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(options.repeats):
            for what, callbacks in forms.items():
                summary = run_training(
                    Path(directory),
                    *RUNS[options.run],
                    callbacks,
                    f"trainer.max_steps={options.steps}",
                    "trainer.val_check_interval=100",
                    "trainer.accelerator=cpu",
                )
                taken[what].append(summary)
    rows = []
    for what, summaries in taken.items():
        row: dict = {"what": what}
        for name, key in (("s of steps", "train_seconds"), ("s in all", "total_seconds")):
            seconds = [summary[key] for summary in summaries]
            row |= {name: statistics.median(seconds), f"{name}, least": min(seconds)}
            row |= {f"{name}, most": max(seconds)}
        rows.append(row)
    return rows
