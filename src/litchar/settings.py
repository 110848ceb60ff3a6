"""A run's settings as plain data: flattening, comparing, and which of them make a different run.

Nothing heavy is imported here; see `litchar.cli`.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf._utils import get_yaml_loader

# Keys that do not make it a different run or sweep job: where it is stored, how it is monitored.
FREE = (
    "sweep",
    "resume",
    "name",
    "run_dir",
    "outputs_dir",
    "report",
    "profile",
    "logger",
    "checkpoint",
    "data.num_workers",
    "trainer.log_every_n_steps",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.profiler",
)
# Keys that may change when a run is resumed: the ones above, how long it trains, on which device,
# and the like. Any other key would make it a different run.
MAY_CHANGE = (
    *FREE,
    "init_from",
    "target_val_loss",
    "callbacks",
    "data.path",  # the text itself is compared
    "data.pattern",
    "data.val_batch_size",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.max_steps",
    "trainer.max_epochs",
    "trainer.max_time",
    "trainer.min_steps",
    "trainer.min_epochs",
    "trainer.detect_anomaly",
    "trainer.deterministic",
    "trainer.inference_mode",
    "trainer.benchmark",
    "trainer.num_sanity_val_steps",
)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers  # what a number is


def read_yaml(path: Path) -> Any:
    """Return a YAML file as plain data: what OmegaConf reads, in a twentieth of its time, without
    its checks; None if it is empty.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not YAML.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's object; empty if there is no such file, or it holds anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def plain(config: DictConfig | ListConfig, resolve: bool = False) -> dict[str, Any]:
    """Return a configuration as nested dictionaries and lists."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=resolve))


def differences(then: dict[str, Any], now: dict[str, Any], also: tuple[str, ...] = ()) -> list[str]:
    """Return the differences that a resumed run may not have, a line each: `key: 1 then, 2 now`.

    Args:
        also: keys to compare as well, although a resumed run may change them.
    """
    found = changes(then, now)
    return [line for key, line in found.items() if within(key, also) or not within(key, MAY_CHANGE)]


def changes(then: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """Return the dotted keys whose values differ, each with a line: `key: 1 then, 2 now`."""
    then, now = flatten(then), flatten(now)
    return {
        key: f"{key}: {then.get(key, 'not set')} then, {now.get(key, 'not set')} now"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key)
    }


def within(key: str, parents: Iterable[str]) -> bool:
    """Return whether a dotted key is one of `parents`, or below one of them."""
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)


def flatten(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested dictionaries by their dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in node.items():
        key = f"{prefix}{name}"
        flat |= flatten(value, f"{key}.") if isinstance(value, dict) else {key: value}
    return flat


def absolute_paths(data: dict[str, Any]) -> dict[str, Any]:
    """Return those of a text's settings that are paths, made absolute: `path`, those in `mixture`,
    and `name` if it is a directory."""
    found = {}
    if data.get("path") is not None:
        found["path"] = _absolute(data["path"])
    if isinstance(mixture := data.get("mixture"), list):
        found["mixture"] = [
            one | absolute_paths({"path": one.get("path")}) if isinstance(one, dict) else one
            for one in mixture
        ]
    if (name := data.get("name")) and Path(name).is_dir():
        found["name"] = str(Path(name).absolute())
    return found


def _absolute(path: Any) -> Any:
    if isinstance(path, list):
        return [_absolute(one) for one in path]
    if path in (None, "") or "://" in str(path):  # an empty one is refused where it is read
        return path
    return str(Path(os.path.expanduser(str(path))).absolute())
