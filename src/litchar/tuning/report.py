"""A study's results: the best settings as an experiment file, and a report as HTML and PNG."""

import io
import os
import shlex
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import optuna
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from matplotlib import pyplot as plt
from omegaconf import OmegaConf
from optuna.trial import FrozenTrial, TrialState

from litchar.analysis.page import escape, section, table, write_page
from litchar.atomic import atomic_write
from litchar.overrides import literal, options_of
from litchar.run_dir import default_outputs
from litchar.terminal import Terminal
from litchar.tuning.slots import filled, root
from litchar.tuning.study import Search, training_overrides

PLOTS = {  # functions of `optuna.visualization`, and how many completed trials each needs
    "plot_optimization_history": 1,
    "plot_intermediate_values": 1,
    "plot_param_importances": 2,
    "plot_parallel_coordinate": 2,
    "plot_slice": 1,
}


def write_report(study: optuna.Study, total: int, search: Search, directory: Path) -> None:
    """Write `report.html` and `report.png` into the study's directory, and the best settings where
    `experiment=tune/NAME` finds them, see `litchar.cli.StudyExperiments`; nothing if no trial has
    completed."""
    if not _completed(study):
        return
    place = directory.parents[1] / "conf" / "experiment" / "tune" / f"{directory.name}.yaml"
    _write(place, best_experiment(study, search).encode(errors="backslashreplace"))
    # Plotly's script needs more than a page of ours may do.
    write_page(directory / "report.html", f"Study {directory.name}", _body(study, total), policy="")
    _write(directory / "report.png", _picture(study))


def print_report(study: optuna.Study, total: int, directory: Path, terminal: Terminal) -> None:
    """Print the number of trials with each outcome, the best five, and what to do next."""
    trials = filled(study.get_trials(deepcopy=False), total)
    outcomes = [str(trial.user_attrs["outcome"]) for trial in trials]
    counted = ", ".join(f"{outcomes.count(name)} {name}" for name in dict.fromkeys(outcomes))
    terminal.print(f"\n{len(trials)} trials: {counted}")
    completed = _completed(study)
    if not completed:
        return
    best = ((str(root(t)), f"{t.value:.4f}", described(t.params)) for t in completed[:5])
    terminal.print(terminal.table(("# trial", "# best val loss", "settings"), best))
    terminal.say(f"\nReport: {directory / 'report.html'}")
    terminal.say(f"Next:\n  {_best_command(directory)}")
    terminal.say(f"  {_best_command(directory, '-m')} seed=1,2,3")
    if len(completed) > 1:
        terminal.say(
            "The best of several losses with one seed flatters itself; the second command shows "
            "what other seeds give"
        )


def _best_command(directory: Path, *options: str) -> str:
    """Return the command line that trains with the best settings of the study in `directory`."""
    outputs = directory.parents[1]
    options += tuple(options_of({"hydra": HydraConfig.get()}))
    words = ["python", "scripts/train.py", *options, f"experiment=tune/{directory.name}"]
    command = shlex.join(words)
    if outputs != default_outputs().absolute():  # where Hydra looks for it
        command = f"LITCHAR_OUTPUTS={shlex.quote(str(outputs))} {command}"
    return command


def best_experiment(study: optuna.Study, search: Search) -> str:
    """Return an experiment file with what the study's command line fixed and the best values."""
    best = _completed(study)[0]
    groups = set(GlobalHydra.instance().config_loader().list_groups(""))
    taken: dict[str, list[str]] = {"experiment": [], "debug": []}  # the last one wins
    overridden: list[dict[str, Any]] = []
    values = OmegaConf.create()
    fixed = search.compose({})

    def of_line(given: Override) -> Any:
        """Return a value from the command line, with paths made absolute."""
        key, value = given.key_or_group, given.value()
        if key in ("data.path", "data.mixture", "data.name"):
            return fixed.data._get_node(key.removeprefix("data."))
        if key == "init_from" and value is not None:
            return literal(str(Path(os.path.expanduser(str(value))).absolute()))
        return value

    line = [(given.key_or_group, of_line(given)) for given in training_overrides(search.overrides)]
    for key, value in [*line, *best.params.items()]:
        if key in taken:
            names = value if isinstance(value, list) else [value]
            taken[key] += [f"/{key}/{name}" for name in names]
        elif key in groups or "/" in key:
            overridden.append({f"override /{key}": value})
        else:
            OmegaConf.update(values, key, value)
    defaults = [*taken["experiment"], *taken["debug"], *overridden]
    body = OmegaConf.create({"defaults": defaults} if defaults else {})
    return (
        "# @package _global_\n"
        f"# python scripts/train.py experiment=tune/{study.study_name}\n"
        f"# Trial {root(best)} of {study.user_attrs['command']}\n"
        f"# Validation loss {best.value:.4f} nats per token, seed {fixed.seed}.\n"
        f"{OmegaConf.to_yaml(OmegaConf.merge(body, values))}"
    )


def _completed(study: optuna.Study) -> list[FrozenTrial]:
    """Return the completed trials, best first."""
    done = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
    return sorted(done, key=lambda trial: (trial.value, trial.number))


def described(values: Mapping[str, object]) -> str:
    """Return a trial's values of the search space, by key, formatted for people."""
    return ", ".join(f"{key}={_shown(value)}" for key, value in values.items())


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _body(study: optuna.Study, total: int) -> str:
    """Return the report as the body of a page: the command line, the plots and all trials."""
    plots = ""
    for name in _drawable(study):
        figure = getattr(optuna.visualization, name)(study, **_named(name))
        figure.update_layout(template="plotly_white", width=None)  # as wide as the page
        if name == "plot_intermediate_values":
            figure.update_layout(xaxis_title="validation", yaxis_title="validation loss")
        plots += figure.to_html(full_html=False, include_plotlyjs=not plots)
    keys = sorted({key for trial in study.trials for key in trial.params})
    rows = [
        [
            str(root(trial)),
            "" if trial.value is None else f"{trial.value:.4f}",
            str(trial.user_attrs.get("outcome", "running")),
            *(_shown(trial.params.get(key, "")) for key in keys),
            str(trial.user_attrs.get("reason", "")),
        ]
        for trial in filled(study.get_trials(deepcopy=False), total)
    ]
    rows.sort(key=lambda row: (row[2] != "completed", float(row[1] or "inf")))
    trials = table(["# trial", "# val loss", "outcome", *keys, "reason"], rows)
    return f"<p>{escape(study.user_attrs['command'])}</p>{plots}{section('Trials', trials)}"


def _drawable(study: optuna.Study) -> list[str]:
    """Return the names of the plots for which enough trials have completed."""
    done = len(_completed(study))
    return [name for name, needed in PLOTS.items() if done >= needed]


def _picture(study: optuna.Study) -> bytes:
    """Return the plots, each a figure of Optuna's, stacked vertically in one PNG.

    The parallel coordinates are left out: in matplotlib their many axes overlap.
    """
    names = [name for name in _drawable(study) if name != "plot_parallel_coordinate"]
    with matplotlib.rc_context(), warnings.catch_warnings():  # Optuna changes the style globally
        warnings.simplefilter("ignore")  # about experimental functions and layouts
        images = [_drawn(name, study) for name in names]
    widest = max(image.shape[1] for image in images)
    padded = [
        np.pad(image, ((0, 30), (0, widest - image.shape[1]), (0, 0)), constant_values=1)
        for image in images
    ]
    picture = io.BytesIO()
    matplotlib.image.imsave(picture, np.concatenate(padded))
    return picture.getvalue()


def _drawn(name: str, study: optuna.Study) -> np.ndarray:
    """Return one of Optuna's plots: (height, width, 4)."""
    axes = np.ravel(getattr(optuna.visualization.matplotlib, name)(study, **_named(name)))
    if name == "plot_intermediate_values":
        axes[0].set(xlabel="validation", ylabel="validation loss")
    figure = axes[0].figure
    figure.set_size_inches(max(11, 3.2 * len(axes)), 4)
    drawing = io.BytesIO()
    figure.savefig(drawing, format="png", bbox_inches="tight", dpi=100)
    plt.close(figure)
    drawing.seek(0)
    return matplotlib.image.imread(drawing)


def _named(plot: str) -> dict[str, str]:
    """Return the keyword arguments that name the objective in a plot."""
    return {} if plot == "plot_intermediate_values" else {"target_name": "validation loss"}


def _write(path: Path, content: bytes) -> None:
    """Write a file atomically: several workers may end at once."""
    with atomic_write(path) as draft:
        draft.write_bytes(content)
