"""`scripts/report.py`: the results of a run on one self-contained page.

Heavy imports wait until a report is written, so that `--help` answers at once.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from litchar.cli import ArgumentParser, exit_codes, lasting_imports
from litchar.errors import UserError
from litchar.run_dir import default_outputs, newest_first
from litchar.terminal import Terminal

if TYPE_CHECKING:
    from litchar.data.splits import Splits


@exit_codes()
def main(arguments: list[str] | None = None) -> None:
    """Write the reports that the command line asks for."""
    parser = ArgumentParser(
        prog="report.py",
        description="Write report.html into a run's directory (curves, samples, where the model "
        "is surprised, whether it copies, settings) or a sweep's (its runs side by side). The page "
        "needs no network and no other file.",
    )
    parser.add_argument(
        "runs",
        nargs="*",
        default=["latest"],
        metavar="RUN",
        help="directories of runs or of sweeps; latest is the newest run or job (the default)",
    )
    parser.add_argument(
        "--device", help="device to run the model on: cpu, cuda or mps (the best available)"
    )
    options = parser.parse_args(arguments)
    with lasting_imports():
        import litchar.analysis.run_report  # noqa: F401  # for `write_report`
    terminal = Terminal()
    for name in options.runs:
        with terminal.status(Text(f"Writing the report of {name}")):
            path = write_report(find(name), device=options.device)
        terminal.say(str(path))


def write_report(place: Path, splits: "Splits | None" = None, device: str | None = None) -> Path:
    """Write the report of the run or the sweep at `place` into its directory; return its path.

    Args:
        splits: of the run's text, if it is open already: then whatever takes more than seconds is
            skipped.
        device: to run the model on; by default the best available.

    Raises:
        UserError: there is no run or no such device, or the report cannot be written.
    """
    from litchar.analysis.page import write_page
    from litchar.analysis.run_report import STYLE, run_report
    from litchar.analysis.runs import REPORT, Run, is_run

    path = place / REPORT
    try:
        if not is_run(place) and any(place.glob("*/summary.json")):
            from litchar.analysis.comparison import compare
            from litchar.analysis.sweep_report import write_sweep_report

            return write_sweep_report(compare([place]), place)
        run = Run.load(place)
        write_page(path, run.name, run_report(run, splits, device), STYLE)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    return path


def find(name: str) -> Path:
    """Return `name` as a directory; `latest` is that of the newest run or job of a sweep.

    Raises:
        UserError: `name` is `latest`, and there is no run.
    """
    from litchar.analysis.runs import is_run

    if name != "latest":
        return Path(os.path.expanduser(name))
    outputs = default_outputs()
    newest = next(filter(is_run, newest_first(outputs)), None)
    if newest is None:
        raise UserError(
            f"latest: there is no run under {outputs}; train one: python scripts/train.py"
        )
    return newest
