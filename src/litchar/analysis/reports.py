"""Write the report of a run or of a sweep into its directory, or find the newest run."""

import os
from pathlib import Path

from litchar.analysis.page import write_page
from litchar.analysis.run_report import STYLE, run_report
from litchar.analysis.runs import REPORT, Run, is_run
from litchar.data import TextDataModule
from litchar.errors import UserError
from litchar.training.environment import ROOT


def write_report(
    place: Path, data: TextDataModule | None = None, device: str | None = None
) -> Path:
    """Write the report of the run or the sweep at `place` into its directory; return its path.

    Args:
        data: the run's text, if it is open already: then nothing is done that takes more than
            seconds.
        device: to run the model on; by default the best there is.

    Raises:
        UserError: there is no run or no such device, or the report cannot be written.
    """
    path = place / REPORT
    try:
        if not is_run(place) and any(place.glob("*/summary.json")):
            from litchar.analysis.comparison import compare  # which takes long to import
            from litchar.analysis.sweep_report import write_sweep_report

            return write_sweep_report(compare([place]), place)
        run = Run.load(place)
        write_page(path, run.name, run_report(run, data, device), STYLE)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    return path


def find(name: str) -> Path:
    """Return the directory of the run called `name`, or of the newest run or job of a sweep if that
    is `latest`.

    Raises:
        UserError: there is none.
    """
    if name != "latest":
        return Path(os.path.expanduser(name))
    outputs = Path(os.environ.get("LITCHAR_OUTPUTS", ROOT / "outputs"))
    places = ("runs/*/summary.json", "sweeps/*/*/summary.json")
    runs = [summary.parent for place in places for summary in outputs.glob(place)]
    if not runs:
        raise UserError(f"latest: there is no run under {outputs}; python scripts/train.py")
    return max(runs, key=lambda run: (run / "summary.json").stat().st_mtime_ns)
