"""Which settings tell runs apart, which runs can be compared, and what they are called."""

import json
from collections.abc import Sequence
from typing import Any

from litchar.analysis.runs import Run
from litchar.overrides import without_passwords
from litchar.settings import flatten, within
from litchar.text.mixture import mixture_weights
from litchar.text.split import BATCHED_BY, SPLIT_BY
from litchar.training.sweep import identity
from litchar.training.validated import part_validated

SEEDS = ("seed", "data.seed")
CODE = "code"  # not a setting, but told apart like one; see `training.environment`
TEXT_PLACES = ("data.path", "data.pattern")  # its fingerprint tells whether it is the same text


def compared_keys(runs: list[Run], swept: list[str]) -> list[str]:
    """Return the keys that tell runs apart, seeds excepted, and `code` if their code differs.

    Args:
        swept: the keys of a sweep, always included. Other keys count only if they differ between
            runs that agree on these, as when an experiment's file was changed in between.
    """
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(repr([one_form(value_of(run, key)) for key in swept]), []).append(run)
    more = {key for group in alike.values() for key in differing(group)}
    codes = ({run.environment.get(CODE) for run in group} - {None} for group in alike.values())
    if any(len(found) > 1 for found in codes):
        more.add(CODE)
    return sorted({*swept, *more}.difference(SEEDS))


def differing(runs: list[Run]) -> list[str]:
    """Return the keys in which the configurations of `runs` differ.

    A group whose `_target_` differs (`model`) is listed in place of those of its keys that differ
    only between targets. `_target_` is listed, too, if the group's choice does not determine it.
    """
    settings = [identity(run.composed or run.config) for run in runs]
    found = unlike(settings)
    if by_device := [key for key in found if within(key, ["by_device"])]:  # what they resolve to
        settled = {key.split(".", 2)[-1] for key in by_device}
        found = [key for key in found if key not in by_device and key not in settled]
        found += [key for key in unlike([run.settings for run in runs]) if key in settled]
    groups = [key.removesuffix("._target_") for key in found if key.endswith("._target_")]

    def told(group: str) -> bool:
        """Return whether the choice of a group determines its `_target_`."""
        chosen = [repr(value_of(run, group)) for run in runs]
        built = [one.get(f"{group}._target_") for one in settings]
        return len(set(chosen)) == len(set(zip(chosen, built, strict=True)))

    for group in groups:
        choices: dict[Any, list[dict[str, Any]]] = {}
        for one in settings:
            choices.setdefault(one.get(f"{group}._target_"), []).append(one)
        own = {key for same in choices.values() for key in unlike(same)}
        found = [key for key in found if not within(key, [group]) or key in own]
    return sorted([*groups, *found, *(f"{group}._target_" for group in groups if not told(group))])


def unlike(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Return the keys whose values differ."""
    keys = sorted({key for one in settings for key in one})
    return [key for key in keys if len({repr(one_form(one.get(key))) for one in settings}) > 1]


def one_form(value: Any) -> Any:
    """Return a value in canonical form: 0 for 0.0. Only 1.0 stays a float: to Lightning it means
    all batches, and 1 means one."""
    whole = isinstance(value, float) and value.is_integer() and value != 1
    return int(value) if whole else value


def value_of(run: Run, key: str) -> Any:
    """Return a run's value of a key, or its choice of a group."""
    if key == CODE:
        return str(run.environment.get(CODE))
    settings = run.settings or flatten(run.composed)
    if key in settings:
        return settings[key]
    if key in run.choices:
        return run.choices[key]
    target = settings.get(f"{key}._target_")
    return target and target.rpartition(".")[2]


def seeds_of(run: Run) -> tuple[Any, ...]:
    """Return a run's seeds; runs with the same settings and seeds are repeats of each other."""
    seeds = [value_of(run, key) for key in SEEDS]
    return tuple(run.summary.get("seed") if seed is None else seed for seed in seeds)


def seed_of(run: Run) -> str:
    """Return the name of a run among those with its settings: its seed, and that of its windows if
    it differs."""
    return "/".join(map(str, dict.fromkeys(seeds_of(run))))


def comparable_by(run: Run) -> tuple[Any, ...]:
    """Return what two runs must have in common for their losses to be comparable."""
    split = tuple(json.dumps(one_form(run.settings.get(f"data.{name}"))) for name in SPLIT_BY)
    # A mixture's loss is a weighted mean; its fingerprint covers the order of the corpora.
    weights = tuple(weights_of(run).values())
    return (
        run.environment.get("fingerprint"),
        run.unit,
        *split,
        weights,
        *part_validated(run.settings).values(),
    )


def weights_of(run: Run) -> dict[str, float]:
    """Return the weight of each corpus of a run's mixture; empty if it has none."""
    mixture = run.settings.get("data.mixture")
    return mixture_weights(mixture) if mixture else {}


def name_of_text(run: Run) -> str:
    """Return the name of a run's text: its files, or a mixture's corpora and their weights."""
    if weights := weights_of(run):
        return ", ".join(f"{weight:.1%} {name}" for name, weight in weights.items())
    return str(run.environment.get("text", "an unknown text"))


def names_of_texts(runs: Sequence[Run]) -> list[str]:
    """Return a name for the text of each run, all on different texts: where names clash, with the
    settings in which they differ, and if these do not suffice, the start of the fingerprint."""
    names = [name_of_text(run) for run in runs]
    for name in {name for name in names if names.count(name) > 1}:
        same = [i for i, other in enumerate(names) if other == name]
        texts = [flatten(runs[i].config.get("data", {})) for i in same]
        settings = [
            {key: value for key, value in text.items() if not within(key, BATCHED_BY)}
            | part_validated(runs[i].settings)
            for i, text in zip(same, texts, strict=True)
        ]
        keys = unlike(settings)
        apart = [[f"{key}={shown(one.get(key))}" for key in keys] for one in settings]
        if len({repr(one) for one in apart}) < len(apart):  # the files themselves differ
            for i, one in zip(same, apart, strict=True):
                one.append(str(runs[i].environment.get("fingerprint"))[:8])
        for i, one in zip(same, apart, strict=True):
            names[i] = f"{name} ({', '.join(one)})"
    return names


def short(key: str) -> str:
    """Return a key's last part: `n_layer` for `model.n_layer`."""
    return key.rpartition(".")[2]


def shown(value: Any) -> str:
    """Return a value as shown in a table: an absolute path by its name, a checkpoint's with its
    run's as well, the rest as written but for passwords."""
    if isinstance(value, float):
        return "1.0" if value == 1 else f"{value:g}"  # see `one_form`
    text = without_passwords(str(value))
    if not text.startswith("/"):
        return text
    parts = text.rstrip("/").split("/")
    return "/".join(parts[-3:] if parts[-2:-1] == ["checkpoints"] else parts[-1:])
