"""Trains two revisions of the code on the same seeds, and compares their losses and weights."""

import contextlib
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from litchar.analysis.statistics import LEVEL, Row, interval, paired
from litchar.checkpoints import load
from litchar.errors import UserError
from litchar.run_dir import ROOT, default_outputs
from litchar.terminal import Terminal
from litchar.training.environment import git


@dataclass(frozen=True)
class Revision:
    """A git revision, by the name it was given, with its runs by seed and their best losses."""

    name: str
    runs: dict[int, Path]
    losses: list[float]


@contextlib.contextmanager
def trained_revisions(
    names: Sequence[str], overrides: Sequence[str], seeds: Sequence[int], terminal: Terminal
) -> Iterator[list[Revision]]:
    """Train each revision on each seed, and yield the runs while they exist.

    Everything is kept in a temporary directory, which is deleted afterwards, even after a signal.

    Args:
        names: of git revisions; `.` is the working tree, uncommitted changes included.
        overrides: of the configuration, as on `train.py`'s command line.

    Raises:
        UserError: a name is no revision, a revision rejects the overrides, or a run fails.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="litchar-")))
        codes = [
            ROOT if name == "." else stack.enter_context(worktree(name, directory / f"code{i}"))
            for i, name in enumerate(names)
        ]
        for name, code in zip(names, codes, strict=True):  # fail now, not after hours of training
            _run(name, code, ["--cfg", "job", *overrides])
        revisions = []
        for i, (name, code) in enumerate(zip(names, codes, strict=True)):
            runs, losses = {}, []
            for seed in seeds:
                terminal.print(f"{name}, seed {seed} ...", end=" ")
                runs[seed] = directory / f"runs{i}" / f"seed{seed}"
                losses.append(_train(name, code, runs[seed], [*overrides, f"seed={seed}"]))
                terminal.print(f"{losses[-1]:.4f}")
            revisions.append(Revision(name, runs, losses))
        yield revisions


@contextlib.contextmanager
def worktree(name: str, place: Path) -> Iterator[Path]:
    """Check a revision out at `place` for a while, as a git worktree."""
    _git("no such revision", name, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    _git("cannot be checked out", name, "worktree", "add", "--quiet", "--detach", str(place), name)
    try:
        yield place
    finally:
        subprocess.run(
            git("worktree", "remove", "--force", str(place)),
            capture_output=True,
            check=False,
        )


def _git(refusal: str, name: str, *arguments: str) -> None:
    try:
        done = subprocess.run(git(*arguments), capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError(
            f"--revisions {name}: git is not installed; install it to check out revisions"
        ) from None
    if done.returncode:
        reason = " ".join(done.stderr.split()[-12:])
        raise UserError(f"--revisions {name}: {refusal}{f' ({reason})' if reason else ''}")


def _train(name: str, code: Path, run_dir: Path, overrides: list[str]) -> float:
    """Train with that code in a process of its own; return the best validation loss.

    Only options that every revision has are used.
    """
    quiet = "trainer.enable_progress_bar=false"
    _run(name, code, [*overrides, f"run_dir={run_dir}", quiet])
    loss = json.loads((run_dir / "summary.json").read_text())["best_val_loss"]
    if loss is None:
        raise UserError(f"--revisions {name}: the run was never validated; give it more steps")
    return float(loss)


def _run(name: str, code: Path, arguments: list[str]) -> None:
    """Run `train.py` of that code, with the `outputs/` of this checkout.

    Raises:
        UserError: its exit code is not 0.
    """
    command = [sys.executable, str(code / "scripts" / "train.py"), *arguments]
    path = os.pathsep.join(filter(None, [str(code / "src"), os.environ.get("PYTHONPATH")]))
    outputs = str(default_outputs())
    environment = os.environ | {"PYTHONPATH": path, "LITCHAR_OUTPUTS": outputs}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        _, errors = process.communicate()
    except BaseException:  # a signal: the run must not outlive this process
        process.terminate()
        process.wait()
        raise
    if process.returncode:
        line = (errors.strip().splitlines() or ["no message"])[-1].removeprefix("error: ")
        raise UserError(f"--revisions {name} ended with exit code {process.returncode}: {line}")


def verdict(one: Revision, other: Revision) -> str:
    """Say whether the two differ by more than seeds explain, seed by seed: where the code draws the
    same weights and batches, most of what a seed does is the same for both."""
    losses = [np.array(revision.losses) for revision in (one, other)]
    parts = [
        f"{revision.name}: {row.mean:.4f} (n={row.n}, sd {row.sd:.4f})"
        for revision, row in zip((one, other), (Row({}, [], each) for each in losses), strict=True)
    ]
    differences = losses[1] - losses[0]
    if not differences.any():
        end = "the best validation losses are the same to the bit"
    elif len(differences) < 2:
        end = f"{differences[0]:+.4f}; one seed does not show how much seeds vary: give --seeds"
    elif math.isnan(p := paired(*losses)):
        end = f"{differences.mean():+.4f}; no loss varies with the seed, so nothing tells chance"
    else:
        low, high = interval(differences)
        does = "they differ" if p < LEVEL else "this does not show that they differ"
        end = (
            f"seed by seed {differences.mean():+.4f}, 95% interval {low:+.4f} to {high:+.4f}; "
            f"{does} (paired t-test, p = {p:.2g})"
        )
    return "; ".join([*parts, end])


def first_difference(one: Revision, other: Revision) -> str | None:
    """Return where the metrics or the weights of two revisions first differ, or None.

    Figures of speed are ignored, and so are figures that only one of the two writes.
    """
    for seed in one.runs:
        pair = one.runs[seed], other.runs[seed]
        found = _metrics_differ(*pair) or _weights_differ(*pair)
        if found:
            return f"seed {seed}: {found}"
    return None


def _metrics_differ(one: Path, other: Path) -> str | None:
    rows = [_rows(run) for run in (one, other)]
    columns = [c for c in rows[0][0] if c in rows[1][0] and not c.startswith("speed/")]
    for a, b in zip(*rows, strict=False):
        for column in columns:
            if a[column] != b[column]:
                values = f"{a[column] or 'empty'} and {b[column] or 'empty'}"
                return f"step {a['step']}: {column} is {values}"
    if len(rows[0]) != len(rows[1]):
        return f"metrics.csv has {len(rows[0])} and {len(rows[1])} rows"
    return None


def _rows(run: Path) -> list[dict[str, Any]]:
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def _weights_differ(one: Path, other: Path) -> str | None:
    states = [load(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (one, other)]
    if states[0].keys() != states[1].keys():
        names = sorted(states[0].keys() ^ states[1].keys())
        return f"only one has the weight {names[0]}"
    for name, weight in states[0].items():
        if weight.shape != states[1][name].shape:
            return f"{name} is {tuple(weight.shape)} and {tuple(states[1][name].shape)}"
        if not torch.equal(weight, states[1][name]):
            largest = (weight.double() - states[1][name].double()).abs().max()
            return f"{name} differs by up to {largest:.3g}"
    return None
