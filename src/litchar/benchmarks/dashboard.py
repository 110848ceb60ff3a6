"""Cost of the TensorBoard pages besides curves: the seconds spent in each of their callbacks."""

import argparse
import re
import statistics
import tempfile
from pathlib import Path
from typing import Any

from litchar.benchmarks import run_training, spread

RUNS = {"teaching_transformer": ("experiment=teaching_transformer", "data=ml"), "default": ()}
CALLBACKS = ("Overview", "Layers", "Attention", "Confusions", "Embeddings")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--run", choices=RUNS, default="default", help="which (default)")
    parser.add_argument("--steps", type=int, help="steps to run (as many as the run has)")


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each callback of `conf/callbacks/default.yaml`, and one for all together.

    Lightning's SimpleProfiler times every hook. Comparing a run with the callbacks to one without
    would not work: run times vary by more than the callbacks take.
    """
    shares: dict[str, list[tuple[float, float, float]]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for repeat in range(options.repeats):
            place = Path(directory) / f"hooks{repeat}"
            summary = run_training(
                Path(directory),
                *RUNS[options.run],
                "trainer.profiler={_target_:lightning.pytorch.profilers.SimpleProfiler,"
                f"dirpath:{place},filename:times}}",
                *([f"trainer.max_steps={options.steps}"] if options.steps else []),
                "trainer.accelerator=cpu",
            )
            while_stepping, all_of_them = hook_seconds((place / "fit-times.txt").read_text())
            for name in (*CALLBACKS, "all"):
                names = CALLBACKS if name == "all" else (name,)
                seconds = sum(all_of_them.get(n, 0.0) for n in names)
                stepping = sum(while_stepping.get(n, 0.0) for n in names)
                shares.setdefault(name, []).append(
                    (
                        seconds,
                        100 * stepping / summary["train_seconds"],
                        100 * seconds / summary["total_seconds"],
                    )
                )
    return [
        {
            "what": name,
            "s": statistics.median(taken[0] for taken in found),
            "% of steps": statistics.median(taken[1] for taken in found),
            **spread("% in all", [taken[2] for taken in found]),
        }
        for name, found in shares.items()
    ]


def hook_seconds(report: str) -> tuple[dict[str, float], dict[str, float]]:
    """Return the seconds in each callback's hooks: those outside validation and setup, and all."""
    while_stepping: dict[str, float] = {}
    all_of_them: dict[str, float] = {}
    row = r"\[Callback\](\w+)\.(\w+)\s*\|\s*\S+\s*\|\s*\S+\s*\|\s*([\d.e-]+)"
    for name, hook, seconds in re.findall(row, report):
        all_of_them[name] = all_of_them.get(name, 0.0) + float(seconds)
        if "validation" not in hook and hook not in ("setup", "teardown"):
            while_stepping[name] = while_stepping.get(name, 0.0) + float(seconds)
    return while_stepping, all_of_them
