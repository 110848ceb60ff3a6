"""Overrides: quoting KEY=VALUE for Hydra, and checking keys against those that exist."""

import argparse
import difflib
import functools
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import (
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from litchar.errors import UserError, causes, reason
from litchar.run_dir import default_outputs
from litchar.settings import read_yaml

# Keys whose values are free text, which Hydra's grammar must not parse.
TEXTS = frozenset({"prompt", "unknown", "name", "score"})
PATHS = frozenset(  # and names, which may be null as well
    {
        "data.path",
        "data.pattern",
        "data.field",
        "data.column",
        "data.name",
        "data.subset",
        "data.split",
        "checkpoint",
        "init_from",
        "resume",
        "run_dir",
        "outputs_dir",
        "page",
        "output",
        "prompts",
        "stop",
        "documents",
        "meta",
        "host",
        "sweep.name",
        "tune.storage",
    }
)

LISTS = frozenset({"data.path", "stop"})  # which accept several
PLACES = frozenset({"run_dir", "outputs_dir"})  # which Hydra itself creates
# Groups that accept no new keys. What others accept is not known until they are composed: arguments
# of the chosen target, which rejects unknown ones itself, and parts with names of the user's own.
CLOSED = frozenset({"trainer", "tune", "by_device", "launcher"})
OF_OTHERS = frozenset({"callbacks", "logger", "optimizer", "scheduler"})  # of classes not ours


def quote(argument: str, sweeps: bool = False) -> str:
    """Return a command-line argument, quoted so that Hydra takes a text or a path literally.

    A value that is already quoted is left alone; so are `null`, and a list where one is accepted.
    In a directory that Hydra itself creates, `~` is expanded to the home directory.

    Args:
        sweeps: comma-separated paths are a sweep's, unless they name one file together.

    Raises:
        UserError: a path is empty, which would mean the working directory, null where one is
            required, or one that Hydra would not create as it stands.
    """
    key, equals, value = argument.partition("=")
    name = key.lstrip("+")
    if equals and name in PATHS and value in ("", "''", '""'):
        raise UserError(f"{key}= is empty (an unset variable?); give a value or leave it out")
    if equals and name in PLACES and value == "null":
        raise UserError(f"{argument}: runs must be stored; name a directory or leave it out")
    if not equals or name not in TEXTS | PATHS or _QUOTED.fullmatch(value):
        return argument
    if name in PLACES and "${" in value:  # it resolves the name again, however it is escaped
        raise UserError(
            f"{argument}: Hydra reads ${{...}} in the name of a directory as the value of a key; "
            f"choose another name, or if you mean that value, write '{key}=\"{value}\"'"
        )
    listed = name in LISTS and value[:1] == "[" and value[-1:] == "]"
    if sweeps and name in LISTS and re.search(r"(\A|,)\[.*\](,|\Z)", value):  # several lists
        listed = True
    if listed or (name in PATHS and value == "null"):
        return argument
    whole = os.path.expanduser(value)  # like exists below, it accepts any string
    if sweeps and name in PATHS and "," in value and not os.path.exists(whole):
        if value.startswith("choice("):
            return argument
        paths = (quote(f"{key}={path}").partition("=")[2] for path in _PART.findall(value))
        return f"{key}={','.join(paths)}"
    if name in PLACES:
        value = whole
    return f"{key}={QuotedString(literal(value), Quote.double).with_quotes()}"


def literal(text: str) -> str:
    """Return `text` escaped so that OmegaConf takes it literally.

    It resolves ${...} unless the dollar is escaped, and unescapes backslashes before it, too.
    """
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)


def without_passwords(text: str) -> str:
    """Return `text` with credentials in URLs (before the @) masked: it goes into reports."""
    return re.sub(r"(://)[^/@\s]+@", r"\1***@", text)


OVERRIDE = re.compile(r"~|[\w+][^=]*=")
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_PART = re.compile(rf"(?:\A|(?<=,))(?:(?:{_QUOTED.pattern})(?=,|\Z)|[^,]*)", re.DOTALL)


def check(arguments: list[str], conf: Path, config_name: str) -> None:
    """Refuse arguments that Hydra would accept silently or fail on with an obscure error.

    These are an unknown option, a value without a key, a group without a choice, a `+key` that
    nothing reads, and keys of Hydra's that would keep runs from being found (`SET_HERE`).

    Raises:
        UserError: the command line has one of them.
    """
    for word in parsed_line(arguments)[1]:
        if word.startswith("-"):
            raise UserError(f"{word}: there is no such option; keys have no dashes: KEY=VALUE")
    for argument in arguments:
        group = argument.removesuffix("=null")
        if group != argument and group in _groups(conf):
            files = ", ".join(sorted(path.stem for path in (conf / group).glob("*.yaml")))
            raise UserError(f"{argument}: must name one of the group's files: {files}")
        prefix, name = re.findall(r"\A([+~]*)([\w/.]*)", argument)[0]
        if (prefix and not name) or argument.startswith("="):
            raise UserError(f"{argument}: there is no key before the value; write KEY=VALUE")
        if name in SET_HERE and argument not in ("hydra.job.chdir=false", "hydra/sweeper=resuming"):
            raise UserError(f"{argument}: not a key for command lines; {SET_HERE[name]}")
        if re.fullmatch(r"\++\w+=[\w/]+", argument) and _keys(conf, config_name).get(name):
            raise UserError(f"{argument}: this group is there; write {argument.lstrip('+')}")
        if "+" in prefix:
            _check_added(name, _keys(conf, config_name))


def is_multirun(arguments: list[str]) -> bool:
    """Return whether a command line asks Hydra for a sweep: by `-m`, or as it may be spelt.

    Raises:
        UserError: an option lacks its value, or has a wrong one.
    """
    return bool(parsed_line(arguments)[0].multirun)


def parsed_line(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return a command line as Hydra reads it, and the words that it does not know."""
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]  # it would print its usage, and exit
    return parser.parse_known_args(arguments)


# Keys of Hydra's that a command line may not set, and what to do instead.
SET_HERE = {
    "hydra.mode": "for a sweep, use train.py -m",
    "hydra.run.dir": "name the directory of a run with run_dir=DIRECTORY",
    "hydra.output_subdir": "a run keeps what was typed in its .hydra",
    "hydra.job.chdir": "paths on a command line are relative to where you type it",
    "hydra.sweep.subdir": "a job's directory is named after its settings",
    "hydra/sweeper": "-m takes lists of values; to search, use scripts/tune.py",
}


def _refuse(message: str) -> NoReturn:
    raise UserError(message)


def _check_added(name: str, keys: dict[str, bool]) -> None:
    """Raise UserError if nothing reads the key `name`, which is to be added."""
    top, *parts = name.partition("/")[0].split(".")
    if top == "hydra":
        return
    if top not in keys:
        tops = [key for key in keys if "." not in key]
        raise UserError(f"{top}: there is no such key or group{nearest(top, tops)}")
    parent = top
    for part in parts:
        key = f"{parent}.{part}"
        if key not in keys and (parent in CLOSED or not keys[top]):
            raise UserError(f"{key}: there is no such key{nearest(key, list(keys))}")
        parent = key


# The top-level keys of a configuration, and the keys below each; None: up to the group's files.
Known = dict[str, frozenset[str] | None]


def readable(conf: Path, config_name: str) -> Known:
    """Return the keys that `conf/<config_name>.yaml` may have."""
    own = read_yaml(conf / f"{config_name}.yaml")
    known: Known = {}
    for default in own.pop("defaults"):
        if default == "_self_":
            continue
        if isinstance(default, str):
            known |= readable(conf, default)
            continue
        for place, choice in default.items():
            if choice is None or place.startswith("override "):
                continue  # a group without a default sets keys of others
            group, _, part = place.partition("/")
            if group not in CLOSED:
                known[group] = None
            elif part:
                known[group] = (known[group] or frozenset()) | {part}
            else:
                files = map(read_yaml, (conf / group).glob("*.yaml"))
                known[group] = frozenset(str(key) for file in files for key in file or ())
    for key, at in own.items():
        if known.setdefault(key, frozenset()) is not None and isinstance(at, dict):
            known[key] = (known[key] or frozenset()) | at.keys()
    return known


def check_composed(config: DictConfig, known: Known, choices: Mapping[str, str | None]) -> None:
    """Raise UserError if nothing reads a key of `config`, such as one from a user's own file.

    Args:
        choices: the file chosen for each group.
    """
    for key in map(str, config):
        if key not in known and key in choices:
            raise UserError(
                f"{key}={choices[key]}: this file sets keys under {key}, which nothing reads; its "
                "first line must be # @package _global_"
            )
        used = rf"\$\{{\s*{re.escape(key)}\s*[}}.\[]"  # in an interpolation
        if key not in known and not re.search(used, OmegaConf.to_yaml(config)):
            raise UserError(f"{key}: there is no such key or group{nearest(key, list(known))}")
        below, node = known.get(key), config._get_node(key)
        if below is not None and isinstance(node, DictConfig):
            for name in map(str, node):
                if name not in below:
                    near = nearest(name, sorted(below))
                    raise UserError(f"{key}.{name}: there is no such key{near}")


def _groups(conf: Path) -> list[str]:
    return sorted(entry.name for entry in conf.iterdir() if entry.is_dir())


_NOT_LOCATED = re.compile(r"Error locating target '([^']+)'.*\nfull_key: (\S+)", re.DOTALL)


def explain(error: Exception, conf: Path, config_name: str) -> str:
    """Return one line that explains a user's error, with the nearest valid name."""
    chain = list(causes(error))
    if any(isinstance(cause, UserError) for cause in chain):
        return reason(error)
    for cause in chain:
        if located := _NOT_LOCATED.match(str(cause)):
            own = getattr(chain[-1], "name", None) == located[1].partition(".")[0]
            advice = "; a module of your own must be on PYTHONPATH" if own else ""
            return (
                f"{located[2]}._target_={located[1]}: cannot be imported ({reason(error)}){advice}"
            )
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        # Of experiment=tune/NAME, or of a path.
        while "/" in group and not (os.path.normpath(group) == group and (conf / group).is_dir()):
            group, _, part = group.rpartition("/")
            name = f"{part}/{name}"
        if not group:
            return f"--config-name={name}: there is no such file in conf; leave it out"
        refused = f"{group}={name}: there is no such file in conf/{group}"
        if "/" in name and not name.startswith("tune/"):
            if group == "data":
                return f"{refused}; for a text of your own: data=text data.path={name}"
            return (
                f"{refused}; give its name without .yaml, and if it lies in another directory's "
                f"{group}/, add --config-dir=DIRECTORY"
            )
        options = [*(error.options or []), *_of_studies(group)]
        return refused + nearest(name.removesuffix(".yaml"), options)
    if package := re.match(r"Requirement '(wandb|mlflow)", reason(error)):
        name = package[1]
        return f'logger={name}: needs the package {name}: pip install -e ".[{name}]"'
    if isinstance(error, OverrideParseException):
        keys = _keys(conf, config_name)
        meant = "data=text data.path" if keys.get("data") else "checkpoint"
        if {"data", "checkpoint"} & keys.keys() and os.path.exists(str(error.override)):
            words = f"{meant}={shlex.quote(str(error.override))}"
            return f"{error.override}: write KEY=VALUE: {words}"
        return (
            f"{error.override}: Hydra cannot parse this; write KEY=VALUE, "
            "quoting special characters"
        )
    unknown = next((key for cause in chain if (key := getattr(cause, "full_key", None))), None)
    misplaced = re.match(r"Could not override '([^']+)'", str(error))
    key = unknown or (misplaced and misplaced[1])
    if key and (misplaced or "is not in struct" in str(chain[-1])):
        nodes = (getattr(cause, "parent_node", None) for cause in chain)
        chosen = next((node._get_root() for node in nodes if node is not None), None)
        return f"{key}: {_missing(key, bool(misplaced), conf, config_name, chosen)}"
    return reason(error)


def _of_studies(group: str) -> list[str]:
    """Return the choices of a group that studies wrote, see `litchar.cli.StudyExperiments`."""
    place = default_outputs() / "conf" / group
    return sorted(str(file.relative_to(place).with_suffix("")) for file in place.rglob("*.yaml"))


def _missing(key: str, typed: bool, conf: Path, config_name: str, chosen: DictConfig | None) -> str:
    """Return why there is no such key, and which one may have been meant.

    Args:
        typed: whether the command line sets it; if not, our own code looked it up.
        chosen: the configuration that lacks it, if known: its groups may not be the default ones.
    """
    keys = _keys(conf, config_name)
    group = key.split(".")[0]
    if key in _groups(conf) and not keys.get(key):
        own = [other for other in keys if other.startswith(f"{key}.")]
        has = f"; {key} has {', '.join(own)}" if own else nearest(key, list(keys))
        return f"{config_name} has no such group{has}"
    if key not in keys:
        groups = [name for name, is_group in keys.items() if is_group]
        names = list(keys) if chosen is None else [*groups, *_dotted(chosen)]
        passed = typed and group in OF_OTHERS and f"{key.rpartition('.')[0]}._target_" in names
        further = f" (+{key} passes it to its class)" if passed else ""
        return f"there is no such key{nearest(key, names)}{further}"
    return f"the chosen {group} has no such key" if typed else f"is required; leave ~{key} out"


def built(key: str, settings: DictConfig, **given: Any) -> Any:
    """Return the object that the settings below `key` describe.

    Args:
        given: further arguments.

    Raises:
        UserError: it does not take one of its arguments, or lacks one.
    """
    try:
        return instantiate(settings, **given)
    except InstantiationException as error:
        if not isinstance(cause := error.__cause__, TypeError):
            raise
        raise UserError(not_taken(key, settings, cause) or f"{key}: {cause}") from None


def not_taken(group: str, settings: Mapping[Any, Any], error: BaseException) -> str | None:
    """Return which of a group's keys the object that it builds does not take, and the closest key
    beside it; None if `error`, raised in building it, is about something else."""
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if unknown is None or unknown[1] not in settings:  # in building something else, then
        return None
    others = [str(name) for name in settings if name != unknown[1]]
    close = difflib.get_close_matches(unknown[1], others, n=1)
    mend = f"did you mean {group}.{close[0]}?" if close else "leave it out"
    return f"{group}.{unknown[1]}: {settings['_target_']} takes no such argument; {mend}"


def nearest(name: str, names: Sequence[str]) -> str:
    """Return a hint at the name that was meant: one with this ending, or the closest, first among
    its siblings."""
    parent = name.rpartition(".")[0]
    beside = [other for other in names if other.rpartition(".")[0] == parent] or names
    close = [other for other in names if other.endswith(f".{name}")]
    close = close or difflib.get_close_matches(name, beside, n=1)
    close = close or difflib.get_close_matches(name, names, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; choose from {', '.join(sorted(set(beside)))}" if len(beside) < 40 else ""


@functools.cache
def _keys(conf: Path, config_name: str) -> dict[str, bool]:
    """Return the dotted keys and the groups of a script's configuration without overrides.

    The value says whether a key is a group.
    """
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        config = hydra.compose(config_name, return_hydra_config=True)
    groups = {group: True for group in _groups(conf) if group in config.hydra.runtime.choices}
    return dict.fromkeys(_dotted(config), False) | groups


def _dotted(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a configuration, without those of Hydra's own."""
    for key in map(str, node):
        if prefix or key != "hydra":
            yield f"{prefix}{key}"
            child = node._get_node(key)
            if isinstance(child, DictConfig):
                yield from _dotted(child, f"{prefix}{key}.")


def options_of(recorded: Any) -> list[str]:
    """Return the arguments of a command line that name a config directory, if any.

    Args:
        recorded: Hydra's record of that command line, with its own settings under `hydra`.
    """
    try:
        sources = recorded["hydra"]["runtime"]["config_sources"]
        found = [source["path"] for source in sources if source["provider"] == "command-line"]
    except (KeyError, TypeError):  # damaged, or another tool's
        return []
    return ["--config-dir", found[0]] if found else []
