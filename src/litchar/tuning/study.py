"""A study: what it searches, and the check that all of its workers search the same."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from optuna import Study, create_study, load_study
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage

from litchar.analysis.differences import SEEDS
from litchar.errors import UserError
from litchar.settings import changes, differences, flatten, plain, within
from litchar.text.split import BATCHED_BY, Text
from litchar.training.checks import check_settings
from litchar.training.resolve import resolve_by_device, resolve_paths
from litchar.training.validated import LIMITS, part_validated, validation_limit
from litchar.tuning.space import Value, override, read_space

# Keys that may change in a resumed run, but not between the trials of a study.
COMPARED = (
    "init_from",
    "target_val_loss",
    "callbacks",
    "trainer.max_steps",
    "trainer.max_epochs",
    "trainer.max_time",
    "trainer.min_steps",
    "trainer.min_epochs",
)


@dataclass(frozen=True)
class Search:
    """The search that a command line asks for.

    Attributes:
        space: the distributions, by key.
        overrides: of the training configuration; the same for every trial.
        identity: what must be the same for all workers of the study, as plain data.
    """

    space: Mapping[str, BaseDistribution]
    overrides: Sequence[str]
    identity: dict[str, Any]

    @classmethod
    def of(cls, config: DictConfig) -> "Search":
        """Return the search of the command line that composed `config`.

        Raises:
            UserError: the command line has something that is invalid for every trial.
        """
        given = config.tune.space
        space = read_space({} if given is None else plain(given, resolve=True))
        typed = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
        parsed = training_overrides(cast(list[str], typed))
        _check_line(parsed, space, config.tune.name)
        search = cls(space, [str(given.input_line) for given in parsed], {})
        settings = search.compose({})
        check_settings(settings)
        _check_space(space, settings)
        if settings.init_from == "latest":
            raise UserError(
                "init_from=latest: trials could start from one another; name a checkpoint"
            )
        resolve_by_device(settings)
        search.identity.update(
            space=flatten(plain(config.tune.space, resolve=True)),
            pruner=plain(config.tune.pruner, resolve=True),
            sampler=plain(config.tune.sampler, resolve=True),
            settings={
                key: value
                for key, value in flatten(plain(settings, resolve=True)).items()
                if key not in space
            },
        )
        search.note_text()
        return search

    def note_text(self) -> None:
        """Record the fingerprint of the text, as it is now, in the `identity`.

        Raises:
            UserError: the text is missing or invalid.
        """
        text = Text.of(self.compose({}).data)
        self.identity["text"] = text.corpus.fingerprint()

    def compose(self, values: Mapping[str, Value], *more: str) -> DictConfig:
        """Return the training configuration of a trial with these values."""
        chosen = [override(key, value) for key, value in values.items()]
        config = hydra.compose("train", [*self.overrides, *chosen, *more])
        resolve_paths(config)
        return config


def _check_line(parsed: Sequence[Override], space: Collection[str], name: str) -> None:
    """Refuse overrides of keys that are each trial's own, or that are searched.

    Args:
        name: of the study.

    Raises:
        UserError: the command line has such an override, deletes a key, or uses the experiment file
            that the study itself writes.
    """
    own = [key for key in space if key in ("run_dir", "resume", "outputs_dir")]
    own += [str(g.input_line) for g in parsed if g.key_or_group in ("run_dir", "resume")]
    if own:
        raise UserError(
            f"{own[0]}: each trial has its own run directory and resumes by itself; leave this out"
        )
    for given in parsed:
        if given.is_delete():
            raise UserError(f"{given.input_line}: tune cannot delete keys; set this one to null")
        chosen = given.value()
        names = chosen if isinstance(chosen, list) else [chosen]
        if given.key_or_group == "experiment" and f"tune/{name}" in names:
            raise UserError(
                f"{given.input_line}: this study writes that file; use another tune.name"
            )
        if given.key_or_group in space:
            raise UserError(
                f"{given.input_line}: this key is searched; remove it from the space as well: "
                f"~tune.space.{given.key_or_group}"
            )


def _check_space(space: Mapping[str, BaseDistribution], fixed: DictConfig) -> None:
    """Refuse to search keys that do not exist, null as a config group's choice, seeds, and keys
    that change the text, or the part of it that is scored: such losses cannot be compared.

    Args:
        fixed: the training configuration, checked.

    Raises:
        UserError: the space has such a key or choice.
    """
    groups = GlobalHydra.instance().config_loader().list_groups("")
    settings = flatten(plain(fixed, resolve=True))
    part, (limiting, limit) = part_validated(settings), validation_limit(settings)
    for key in space:
        if key not in groups and OmegaConf.select(fixed, key, default=groups) is groups:
            raise UserError(
                f"tune.space.{key}: there is no such key to search; remove it from the space: "
                f"~tune.space.{key}"
            )
        if key in SEEDS:
            raise UserError(
                f"tune.space.{key}: is chance, of which no choice is better; search other keys"
            )
        if within(key, ["data"]) and not within(key, [f"data.{name}" for name in BATCHED_BY]):
            raise UserError(
                f"tune.space.{key}: losses on different texts cannot be compared; search other keys"
            )
        if key in LIMITS:
            raise UserError(
                f"tune.space.{key}: losses on different parts of the validation split cannot be "
                "compared; search other keys"
            )
        if key.removeprefix("data.") in part:
            raise UserError(
                f"tune.space.{key}: {limiting}={limit} makes it decide which part of the "
                "validation split is scored: losses cannot be compared; leave out one"
            )
        if key in groups and None in getattr(space[key], "choices", ()):
            raise UserError(f"tune.space.{key}: a group's choices are names of files, not null")


def training_overrides(arguments: Sequence[str]) -> list[Override]:
    """Return the overrides of the training configuration, without those of `tune`."""
    parsed = OverridesParser.create().parse_overrides(list(arguments))
    return [
        given
        for given in parsed
        if given.key_or_group.replace("/", ".").partition(".")[0] != "tune"
    ]


def open_study(storage: BaseStorage, directory: Path, search: Search, command: str) -> Study:
    """Return the study named like its `directory`, newly created or already there.

    Raises:
        UserError: the study searches something else, or the directory holds trials of another one.
    """
    try:  # loading writes nothing
        study = load_study(study_name=directory.name, storage=storage)
    except KeyError:
        study = create_study(study_name=directory.name, storage=storage, load_if_exists=True)
    if "identity" not in study.user_attrs:
        if any((directory / "trials").glob("*")):  # which would be taken for its own
            raise UserError(
                f"{directory}: holds trials of a study that tune.storage does not have; delete "
                "it, or use another tune.name"
            )
        study.set_user_attr("identity", json.dumps(search.identity))
        study.set_user_attr("command", command)
    check_same_search(study, search)
    return study


def check_same_search(study: Study, search: Search) -> None:
    """Raise UserError, which says how they differ, if `study` is of another search."""
    then, now = json.loads(study.user_attrs["identity"]), json.loads(json.dumps(search.identity))
    changed = [
        f"tune.{part}.{line}"
        for part in ("space", "sampler", "pruner")
        for line in changes(then[part], now[part]).values()
    ] + differences(then["settings"], now["settings"], also=COMPARED)
    if then["text"] != now["text"]:
        changed.append("data: another text")
    if changed:
        raise UserError(
            f"tune.name={study.study_name} is a different study ({'; '.join(changed)}); use the "
            "same settings, or another tune.name"
        )


def study_directory(config: DictConfig) -> Path:
    """Return the directory of a study.

    Raises:
        UserError: the study's name is not a valid directory name.
    """
    if config.tune.name is None:
        raise UserError("tune.name=null: give the study a name")
    name = str(config.tune.name)
    if not name.strip(".") or not re.fullmatch(r"[A-Za-z0-9_.-]+", name):  # in experiment=tune/...
        raise UserError(f"tune.name={name}: use only letters from a to z, digits, -, _ and .")
    return Path(config.outputs_dir).absolute() / "tune" / name
