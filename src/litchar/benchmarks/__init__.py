"""Benchmarks: each measures one thing, prints medians and spread, and can write JSON."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from litchar.cli import ArgumentParser, exit_codes
from litchar.errors import UserError
from litchar.terminal import Terminal


@exit_codes()
def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark named on the command line."""
    from litchar.benchmarks import dashboard, encode, generate, overhead, startup, train

    parser = ArgumentParser(prog="benchmark.py", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="BENCHMARK")
    for module in (train, overhead, dashboard, encode, startup, generate):
        name = module.__name__.rpartition(".")[2]
        command = commands.add_parser(name, help=module.__doc__, description=module.__doc__)
        command.add_argument(
            "--repeats", type=int, default=3, help="times to repeat each measurement (3)"
        )
        command.add_argument("--json", type=Path, help="write the figures to this file as well")
        module.add_arguments(command)
        command.set_defaults(measure=module.measure)
    options = parser.parse_args(arguments)
    check(options.repeats, options.json)
    rows = options.measure(options)
    Terminal().print_rows(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def check(repeats: int, place: Path | None) -> None:
    """Raise UserError if `repeats` is below 1 or `place` cannot be written: before measuring."""
    if repeats < 1:
        raise UserError(f"--repeats={repeats}: must be at least 1")
    if place is None:
        return
    if place.is_dir():
        raise UserError(f"--json={place}: is a directory; name a file")
    if not place.parent.is_dir():
        raise UserError(f"--json={place}: there is no directory {place.parent}")
    if not os.access(place if place.exists() else place.parent, os.W_OK):
        raise UserError(f"--json={place}: cannot be written (Permission denied)")


def run_training(directory: Path, *overrides: str) -> dict[str, Any]:
    """Run `train.py` in a subprocess, with its cache in `directory`; return its summary."""
    script = Path(sys.argv[0]).resolve().with_name("train.py")
    run_dir = directory / f"run{len(list(directory.glob('run*')))}"
    command = [sys.executable, str(script), f"run_dir={run_dir}", *overrides]
    environment = os.environ | {"LITCHAR_CACHE": str(directory / "cache")}
    output_of([*command, "trainer.enable_progress_bar=false"], env=environment)
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return summary


def output_of(command: list[str], **options: Any) -> str:
    """Return what a command prints.

    Args:
        options: of `subprocess.run`.

    Raises:
        UserError: it refused its input: its exit code is 2, its last line says why.
        SystemExit: it failed.
    """
    finished = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if finished.returncode == 2:
        raise UserError(finished.stderr.strip().rpartition("\n")[2].removeprefix("error: "))
    if finished.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{finished.stderr[-2000:]}")
    output: str = finished.stdout
    return output


def spread(figure: str, measured: Sequence[float]) -> dict[str, float]:
    """Return the median, as `figure`, with the minimum and the maximum."""
    return {figure: statistics.median(measured), "least": min(measured), "most": max(measured)}
