"""The contents of a run's directory as plain data; any of its files may be missing."""

import csv
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from litchar.errors import UserError
from litchar.overrides import options_of
from litchar.run_dir import records
from litchar.settings import flatten, read_json, read_yaml
from litchar.text import Vocabulary

REPORT = "report.html"  # in the directory of a run or a sweep


@dataclass(frozen=True)
class Run:
    """The record of a run; what is missing from the directory is empty here.

    Attributes:
        path: the directory.
        summary: `summary.json`
        rows: `metrics.csv`: the figures of each step that has any, and `step`.
        samples: `samples.txt`: steps and texts.
        config: `config.yaml`, resolved.
        composed: the configuration as Hydra composed it, before `by_device` was resolved; of a
            resumed run, the latest.
        overrides: the command line's overrides; of a key given again on resuming, the latest.
        environment: `environment.json`
    """

    path: Path
    summary: dict[str, Any]
    rows: list[dict[str, float]]
    samples: list[tuple[int, str]]
    config: dict[str, Any]
    composed: dict[str, Any]
    overrides: list[str]
    environment: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> "Run":
        """Return the record at `path`.

        Raises:
            UserError: `path` is not a run's directory.
        """
        if not is_run(path):
            if path.is_file():
                raise UserError(f"{path}: is a file; name the run's directory")
            what = "not a run's directory (it has no summary.json)"
            raise UserError(f"{path}: {what if path.is_dir() else 'no such directory'}")
        typed = records(path)[0]
        return cls(
            path,
            _summary(path / "summary.json"),
            _rows(path / "metrics.csv"),
            _samples(path / "samples.txt"),
            _config(path / "config.yaml"),
            _config(typed / "config.yaml"),
            _overrides(path),
            read_json(path / "environment.json"),
        )

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The values of `config`, by their dotted keys."""
        return flatten(self.config)

    @cached_property
    def choices(self) -> dict[str, Any]:
        """The choice of each config group, as Hydra recorded it."""
        recorded = _yaml(records(self.path)[0] / "hydra.yaml", dict)
        try:
            return dict(recorded["hydra"]["runtime"]["choices"])
        except (KeyError, TypeError, ValueError):  # missing or damaged
            return {}

    @cached_property
    def options(self) -> list[str]:
        """The command-line arguments that name a config directory beside `conf/`, if any."""
        found = (options_of(_yaml(place / "hydra.yaml", dict)) for place in records(self.path))
        return next(filter(None, found), [])

    @property
    def name(self) -> str:
        """The run's name: that of its directory, after its sweep's if it is a job of one."""
        place = self.path.absolute()
        parts = place.parts[-2:] if place.parent.parent.name == "sweeps" else place.parts[-1:]
        return "/".join(parts)

    @property
    def status(self) -> str:
        """Its status in `summary.json`: `running`, `completed`, `failed` ...; else `unknown`."""
        return self.summary.get("status") or "unknown"

    @property
    def unit(self) -> str:
        """What a token is: a character or a byte."""
        return self.summary.get("unit") or Vocabulary.unit

    def known(self, *names: str) -> list[Any]:
        """Return figures of the summary, by name; empty unless it has them all."""
        figures = [self.summary.get(name) for name in names]
        return [] if None in figures else figures

    @property
    def history(self) -> list[dict[str, float]]:
        """The rows of the steps that were validated."""
        return [row for row in self.rows if math.isfinite(row.get("val/loss", math.nan))]


def is_run(path: Path) -> bool:
    """Return whether `path` is a run's directory."""
    return (path / "summary.json").is_file()


def _overrides(path: Path) -> list[str]:
    """Return a run's overrides, the latest of each key: resuming need not repeat them all."""
    typed: dict[str, str] = {}
    for place in reversed(records(path)):
        for override in map(str, _yaml(place / "overrides.yaml", list)):
            typed[override.partition("=")[0].lstrip("+")] = override
    return list(typed.values())


def _summary(path: Path) -> dict[str, Any]:
    """Return the entries of `summary.json` that are words or numbers, as they should be."""
    words = {"status", "error", "unit", "device", "precision", "checkpoint"}
    return {
        key: value
        for key, value in read_json(path).items()
        if value is None or isinstance(value, str if key in words else int | float)
    }


def _config(path: Path) -> dict[str, Any]:
    """Return a configuration without what should be a section and is none."""
    return {
        key: value
        for key, value in _yaml(path, dict).items()
        if isinstance(value, dict) or key not in ("data", "model")
    }


_T = TypeVar("_T", dict[str, Any], list[Any])


def _yaml(path: Path, kind: type[_T]) -> _T:
    try:
        found = read_yaml(path)
    except (OSError, ValueError):
        found = None
    return found if isinstance(found, kind) else kind()


def _rows(path: Path) -> list[dict[str, float]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            found = [_numbers(row) for row in csv.DictReader(file)]
    except (OSError, ValueError, csv.Error):
        return []
    return [row for row in found if "step" in row]


def _numbers(row: dict[str | None, Any]) -> dict[str, float]:
    """Return the cells of a row that are numbers, without those that are empty or half written."""
    numbers = {}
    for name, value in row.items():
        try:
            numbers[str(name)] = float(value)
        except (TypeError, ValueError):
            continue
    return numbers


def _samples(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_bytes().decode(errors="replace")
    except OSError:
        return []
    pieces = re.split(r"^--- step (\d+)\n", text, flags=re.MULTILINE)[1:]
    steps, texts = map(int, pieces[::2]), (text.removesuffix("\n") for text in pieces[1::2])
    return list(zip(steps, texts, strict=True))
