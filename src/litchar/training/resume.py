"""Find the run that a command line resumes, before Hydra creates or changes any directory.

Nothing heavy is imported here; see `litchar.cli`.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from litchar.errors import BusyError, UserError
from litchar.overrides import parsed_line, quote
from litchar.run_dir import holds_a_run, is_busy, newest_first, records
from litchar.settings import differences, plain, read_json, read_yaml


def redirect(arguments: list[str], conf: Path, config_name: str) -> list[str]:
    """Return the command line with the run directory that `resume` refers to.

    `resume=PATH` resumes in the run directory of that checkpoint, `resume=auto` in `run_dir` if it
    is given, else in the newest unfinished run with the same configuration. If there is none, the
    command line is returned unchanged.

    Raises:
        UserError: the checkpoint does not exist, `run_dir` holds a run that would be overwritten,
            or a `sweep.` key is given without `-m`.
        BusyError: another process is training in that directory.
    """
    options = vars(parsed_line(arguments)[0])
    overrides, config_dir = options.pop("overrides"), options.pop("config_dir")
    n = len(overrides)  # they come first: argparse accepts none behind an option
    options.pop("run")  # the default anyway
    if any(options.values()):
        return arguments  # --help, --cfg, or a sweep, whose jobs have their own directories
    parsed = OverridesParser.create().parse_overrides(overrides)
    for given in parsed:
        if given.key_or_group.startswith("sweep."):
            raise UserError(f"{given.input_line}: this is not a sweep; add -m and lists of values")
    if not {"resume", "run_dir", "experiment"} & {given.key_or_group for given in parsed}:
        return arguments
    if config_dir and not Path(config_dir).is_dir():
        return arguments  # Hydra will refuse it
    if config_dir:
        place = _quoted(f"file://{Path(config_dir).absolute()}")
        overrides = [*overrides, f"hydra.searchpath=[{place}]"]
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        config = hydra.compose(config_name, overrides)
    default, chosen = read_yaml(conf / f"{config_name}.yaml")["run_dir"], plain(config)["run_dir"]
    named = Path(config.run_dir).absolute() if chosen != default else None
    run_dir = _where_to_resume(config, named)
    if run_dir is None:
        return arguments
    if is_busy(run_dir):
        raise BusyError(run_dir)
    added = [] if named else [f"run_dir={_quoted(run_dir)}"]
    return [*arguments[:n], *added, *output_subdir(run_dir), *arguments[n:]]


def _where_to_resume(config: DictConfig, named: Path | None) -> Path | None:
    """Return the directory in which `config` resumes a run; None if it begins one.

    Args:
        named: `run_dir`, if it is given.
    """
    resumed = None
    if config.resume == "auto":
        resumed = named or next(unfinished_runs(config), None)
    elif config.resume is not None:
        resumed = run_of(Path(os.path.expanduser(config.resume)))
    stays = named and resumed and named.resolve() == resumed.resolve()
    if named and not stays and ((named / ".hydra").exists() or holds_a_run(named)):
        raise UserError(
            f"run_dir={config.run_dir} already holds a run; continue it (resume=auto), choose "
            "another directory, or delete it"
        )
    return resumed and (named or resumed)


def output_subdir(run_dir: Path) -> list[str]:
    """Return the override that keeps Hydra from overwriting a resumed run's original `.hydra`; none
    for a new run."""
    if not (run_dir / ".hydra").is_dir():
        return []
    return [f"hydra.output_subdir=.hydra/resumed-{len(records(run_dir))}"]


def run_of(checkpoint: Path) -> Path | None:
    """Return the run directory that `checkpoint`, a file or that directory itself, belongs to.

    A file outside a directory named `checkpoints` was moved out of its run: return None, so that
    the run is resumed in a new directory.

    Raises:
        UserError: it does not exist, or it is a directory without checkpoints, into which Hydra
            would otherwise write.
    """
    if not checkpoint.exists():
        raise UserError(f"resume={checkpoint}: no such checkpoint or run directory")
    if checkpoint.is_dir():
        if not any(checkpoint.glob("checkpoints/*.ckpt")):
            raise UserError(f"resume={checkpoint}: there is no checkpoint in this directory")
        return checkpoint.absolute()
    directory = checkpoint.absolute().parent
    return directory.parent if directory.name == "checkpoints" else None


def unfinished_runs(config: DictConfig) -> Iterator[Path]:
    """Yield the unfinished, idle runs with the same configuration, newest first. They may have been
    meant to be shorter, but not longer."""
    wanted = plain(config)
    for run_dir in newest_first(Path(config.outputs_dir), "runs/*"):
        began = run_dir / ".hydra" / "config.yaml"
        try:
            summary = read_json(run_dir / "summary.json")
            status = summary.get("status")
            if status in (None, "completed", "diverged") or not began.exists():
                continue
            before = read_yaml(began)
            steps = wanted["trainer"]["max_steps"]
            its = max(before["trainer"]["max_steps"] or 0, summary.get("steps") or 0)
            if steps is not None and 0 <= steps < its:
                continue  # a shorter run is another one, a longer one its continuation
            if differences(before, wanted, also=("data.path", "data.pattern", "init_from")):
                continue
            if is_busy(run_dir):
                continue
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue  # not a run that can be resumed
        yield run_dir.absolute()


def _quoted(place: str | Path) -> str:
    return quote(f"resume={place}").partition("=")[2]
