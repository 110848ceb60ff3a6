"""`scripts/report.py`: what a run came to, on one page that needs nothing beside it."""

import argparse

from rich.text import Text

from litchar.cli import exit_codes, lasting_imports
from litchar.terminal import Terminal


@exit_codes()
def main(arguments: list[str] | None = None) -> None:
    """Write the reports that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="report.py",
        description="Write report.html into a run's directory: curves, samples, where the model "
        "is surprised, whether it copies, settings; or into a sweep's: its runs side by side. It "
        "needs no network and nothing beside it.",
    )
    parser.add_argument(
        "runs",
        nargs="*",
        default=["latest"],
        metavar="RUN",
        help="directories of runs or of sweeps; latest is the newest run or job (the default)",
    )
    parser.add_argument(
        "--device", help="cpu, cuda or mps, to run the model on (the best there is)"
    )
    options = parser.parse_args(arguments)
    with lasting_imports():
        from litchar.analysis.reports import find, write_report
    terminal = Terminal()
    for name in options.runs:
        with terminal.status(Text(f"Writing the report of {name}")):
            path = write_report(find(name), device=options.device)
        terminal.say(str(path))
