"""Compare runs: grouped over seeds, with what exceeds seed noise, and at equal cost if asked."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from litchar.analysis.comparison import Comparison, compare
from litchar.analysis.comparison_tables import print_comparison, write_tables
from litchar.analysis.runs import is_run
from litchar.analysis.statistics import COSTS, At
from litchar.cli import ArgumentParser, exit_codes
from litchar.errors import UserError
from litchar.terminal import Terminal


def report_on(
    paths: Sequence[Path], directory: Path | None, at: At | None, console: Terminal
) -> Comparison:
    """Compare runs, print the result, and write tables, plot and report to `directory` if given.

    Raises:
        UserError: there is no run, or `directory` cannot be written.
    """
    comparison = compare(paths, at)
    print_comparison(comparison, console)
    if directory is None:
        return comparison

    from litchar.analysis.comparison_plot import write_plot  # imports matplotlib
    from litchar.analysis.sweep_report import write_sweep_report

    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_tables(comparison, directory)
        if comparison.tables:
            write_plot(comparison, directory / "sweep.png")
        write_sweep_report(comparison, directory)
    except OSError as error:
        place = error.filename2 or directory  # os.replace's target, not its draft
        raise UserError(
            f"{place}: cannot be written ({error.strerror}); name another place: --out DIRECTORY"
        ) from None
    plot = " and sweep.png" if comparison.tables else " (no sweep.png: no run is counted)"
    console.say(f"{directory}: sweep.csv, runs.csv, report.html{plot}")
    return comparison


@exit_codes()
def main(arguments: list[str] | None = None) -> None:
    """Compare the runs or revisions that the command line names.

    Exits with 0; with 1 if revisions differ despite `--assert-equal`; with 2 on a wrong command
    line.
    """
    given = sys.argv[1:] if arguments is None else arguments
    end = given.index("--") if "--" in given else len(given)
    options = _parser().parse_args(given[:end])
    console = Terminal()
    compared = _compare_revisions if options.revisions else _compare_paths
    equal = compared(options, given[end + 1 :], console)
    sys.exit(0 if equal else 1)


def _directory(text: str) -> Path:
    if not text:  # an unset variable; pathlib would take the working directory
        raise argparse.ArgumentTypeError("is empty; name a directory")
    return Path(text)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="compare.py",
        description=__doc__,
        usage="compare.py PATH ... [--at KIND=NUMBER] [--out DIRECTORY]\n"
        "       compare.py --revisions A B [--seeds 1,2,3] [--assert-equal] -- [KEY=VALUE ...]",
    )
    parser.add_argument("paths", nargs="*", type=Path, help="directories of sweeps or of runs")
    parser.add_argument("--at", help=f"compare at equal cost: {', '.join(COSTS)}, as in steps=1000")
    parser.add_argument(
        "--out",
        type=_directory,
        help="where to write sweep.csv, runs.csv, sweep.png and report.html",
    )
    parser.add_argument(
        "--revisions",
        nargs=2,
        metavar=("A", "B"),
        help="git revisions to train and compare; . is the code here",
    )
    parser.add_argument("--seeds", help="seeds to train each revision with (1,2,3)")
    parser.add_argument(
        "--assert-equal", action="store_true", help="exit with 1 if the revisions differ"
    )
    return parser


def _compare_paths(options: argparse.Namespace, overrides: list[str], console: Terminal) -> bool:
    if not options.paths:
        raise UserError("name directories of runs or of a sweep: compare.py outputs/sweeps/NAME")
    if overrides or options.assert_equal or options.seeds:
        raise UserError("overrides, --seeds and --assert-equal need --revisions A B")
    at = None if options.at is None else At.parse(options.at)
    sweep = options.paths[0] if len(options.paths) == 1 and not is_run(options.paths[0]) else None
    out = options.out or (sweep if at is None else None)
    report_on(options.paths, out, at, console)
    return True


def _compare_revisions(
    options: argparse.Namespace, overrides: list[str], console: Terminal
) -> bool:
    from litchar.analysis.revisions import first_difference, trained_revisions, verdict

    if options.paths or options.at or options.out:
        raise UserError("--revisions A B takes no paths, --at or --out: compare.py --revisions A B")
    try:
        given = options.seeds or "1,2,3"
        seeds = list(dict.fromkeys(int(seed) for seed in given.split(",")))
    except ValueError:
        raise UserError(f"--seeds {options.seeds}: write whole numbers: 1,2,3") from None
    taken = [text for text in overrides if text.startswith(("seed=", "run_dir=", "-"))]
    if taken:
        raise UserError(
            f"{taken[0]}: only overrides of one run may follow --; give seeds with --seeds (for "
            "--config-dir: hydra.searchpath=[file:///DIRECTORY])"
        )
    with trained_revisions(options.revisions, overrides, seeds, console) as (one, other):
        console.say(verdict(one, other))
        difference = first_difference(one, other)
        console.say(
            f"they first differ at {difference}"
            if difference
            else "weights and metrics are the same to the bit"
        )
    return difference is None or not options.assert_equal
