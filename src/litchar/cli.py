"""The command line: from what was typed to a function of the package, and back to an exit code.

Nothing heavy is imported here, so that `--help` and `--cfg job` answer at once.
"""

import contextlib
import difflib
import functools
import gc
import importlib
import io
import os
import re
import secrets
import select
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import (
    MissingConfigException,
    OverrideParseException,
)
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from litchar import signals
from litchar.errors import (
    DivergedError,
    JobsFailedError,
    RankError,
    UserError,
    causes,
    is_users,
    reason,
)
from litchar.launched import launched

# Keys whose values are a person's own text, which Hydra's grammar must not read.
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

LISTS = frozenset({"data.path", "stop"})  # which take several
PLACES = frozenset({"run_dir", "outputs_dir"})  # which Hydra itself makes
# Groups that take no key beside those they have. What others take is not known before it is there:
# arguments of what is chosen, which refuses others, and parts with names of a person's own.
CLOSED = frozenset({"trainer", "tune"})

# What configurations may say; here, so that a worker which unpickles a `Task` knows it too.
OmegaConf.register_new_resolver(  # run directories differ by it
    "unique", lambda: secrets.token_hex(2), use_cache=True, replace=True
)
OmegaConf.register_new_resolver(  # a slash would hide a run in a directory of directories
    "in_a_path", lambda name: str(name).replace("/", "_"), replace=True
)
OmegaConf.register_new_resolver(
    "or", lambda value, default: default if value is None else value, replace=True
)


class Task:
    """What Hydra calls for a run, and for each job of a sweep, there perhaps in a worker.

    Args:
        target: `module:function`, imported when it is called with the configuration.
        known: what may stand in that, see `readable`.

    Attributes:
        started: whether our own code has begun.
        failure: what it raised; Hydra would print a line of its own.
    """

    def __init__(self, target: str, known: "Known") -> None:
        self.target = target
        self.known = known
        self.started = False
        self.failure: Exception | None = None

    def __call__(self, config: DictConfig) -> object:
        """Return what the function does, or what it raised."""
        self.started = True
        try:
            self._check(config)
            return _function(self.target)(config)
        except Exception as error:
            self.failure = self.failure or error
            return error

    def _check(self, config: DictConfig) -> None:
        hydra_config = HydraConfig.get()
        try:
            check_composed(config, self.known, hydra_config.runtime.choices)
        except UserError:
            if hydra_config.output_subdir is not None:
                remove_traces(Path(hydra_config.runtime.output_dir))
            raise


def remove_traces(run_dir: Path) -> None:
    """Take away what Hydra wrote for a run that was refused: its directory, or its part of one."""
    if {entry.name for entry in run_dir.iterdir()} <= {".hydra", ".lock", "train.log"}:
        shutil.rmtree(run_dir)
        return
    resumed = sorted(run_dir.glob(".hydra/resumed-*"), key=lambda path: path.stat().st_mtime_ns)
    if resumed:
        shutil.rmtree(resumed[-1])


def no_multirun(arguments: list[str], conf: Path, config_name: str) -> list[str]:
    """Refuse `-m`, for a script that does not train, or whose one run has many trainings in it.

    Raises:
        UserError: it was asked for.
    """
    if {"-m", "--multirun"} & set(arguments):
        raise UserError(f"-m: {config_name} takes one value for each key; leave -m out")
    return arguments


def hydra_main(
    script: str,
    config_name: str,
    target: str,
    before: Callable[[list[str], Path, str], list[str]] = no_multirun,
    follow: str | None = None,
) -> None:
    """Compose `conf/<config_name>.yaml` with the command line and call `target` with it.

    Exits with 0, also when whoever read its output, such as `head`, has enough; with 2 and one line
    if the input was wrong, with 128 + the signal if one came, and with 1 and a traceback otherwise.

    Args:
        script: the calling script's `__file__`; `conf/` and `outputs/` lie beside its directory.
        target: `module:function`, imported once the configuration stands, and called with it.
        before: is given the arguments, the directory of configurations and `config_name` before
            Hydra is, and returns the arguments to go on with.
        follow: `module:function` that is called instead in each process that torchrun or srun
            started but the first, which leads; it returns the exit code.
    """
    root = Path(script).resolve().parents[1]
    os.environ.setdefault("LITCHAR_OUTPUTS", str(root / "outputs"))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come back here, as they are
    if follow is not None and (place := launched()) is not None:
        if place.rank > 0:
            sys.exit(_function(follow)())
        _function("litchar.training.ranks:dismiss_at_exit")()
    conf = root / "conf"
    task = Task(target, readable(conf, config_name))
    try:
        _set_up(conf, config_name)
        check(sys.argv[1:], conf, config_name)
        sys.argv[1:] = before(sys.argv[1:], conf, config_name)
        hydra.main(version_base="1.3", config_path=str(conf), config_name=config_name)(task)()
        if task.failure:
            raise task.failure
    except SystemExit as ended:
        if not isinstance(ended.__context__, BrokenPipeError):  # with which rich exits with 1
            raise
    except Exception as error:
        if not (isinstance(error, BrokenPipeError) and _unread()):
            _exit_on(error, task.started, conf, config_name)
    finally:
        if _unread():  # else the interpreter would complain when it writes out what is left
            os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)


def _set_up(conf: Path, config_name: str) -> None:
    """Let Hydra find what our configurations name, and read what was typed as it was meant."""
    OmegaConf.register_new_resolver(
        "keys_of_script", lambda: keys_of_script(conf, config_name), replace=True
    )
    Plugins.instance().register(StudyExperiments)
    sweeps = not {"-m", "--multirun"}.isdisjoint(sys.argv)
    # Options first: argparse takes no override behind one that stands behind another.
    arguments = sorted(sys.argv[1:], key=lambda argument: bool(_OVERRIDE.match(argument)))
    sys.argv[1:] = [quote(argument, sweeps) for argument in arguments]
    signals.install()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that it cannot show ends no run
            stream.reconfigure(errors="backslashreplace")


def _exit_on(error: Exception, started: bool, conf: Path, config_name: str) -> NoReturn:
    """Exit with the code and the line that `error` means, or raise it: a fault of ours.

    Args:
        started: whether our own code has begun.
    """
    if isinstance(error, DivergedError | JobsFailedError | RankError):
        exit_with(str(error), 1)
    if isinstance(error, OSError) and error.filename and not started:
        exit_with(f"{error.filename}: cannot be written ({error.strerror}); try run_dir=DIRECTORY")
    forbidden = next((e for e in causes(error) if isinstance(e, PermissionError)), None)
    if forbidden and forbidden.filename:
        exit_with(_forbidden(forbidden))
    # Before our own code starts, nothing but the command line can be at fault.
    if is_users(error) or not started:
        exit_with(_explain(error, conf, config_name))
    raise error


def _forbidden(error: PermissionError) -> str:
    return f"{error.filename}: {error.strerror}; change its rights, or name another place"


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Let a `main` that argparse reads for, decorated with `@exit_codes()`, end as others do: with
    2 and one line if the input was wrong, and with 128 + the signal if one came."""
    signals.install()
    try:
        yield
    except UserError as error:
        exit_with(str(error))
    except PermissionError as error:
        if not error.filename:
            raise
        exit_with(_forbidden(error))


_STDOUT = 1


def _unread() -> bool:
    """Return whether standard output is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(_STDOUT, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _function(target: str) -> Callable[..., Any]:
    """Return what `module:function` names."""
    module, _, name = target.partition(":")
    if module not in sys.modules:
        with lasting_imports():
            importlib.import_module(module)
    function: Callable[..., Any] = getattr(sys.modules[module], name)
    return function


@contextlib.contextmanager
def lasting_imports() -> Iterator[None]:
    """Import what stays until the end: torch and Lightning make 700,000 objects.

    Python would look through them for garbage while they become more, now and then later, and at
    the end, which takes two seconds in all. It finds none.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def keys_of_script(conf: Path, config_name: str) -> str:
    """Return the keys of a script with their comments, as its file has them, for its help."""
    text = (conf / f"{config_name}.yaml").read_text()
    keys = text.partition("\n\n")[2].partition("\nhydra:\n")[0]
    return keys.rstrip().replace("$", "$$")  # Hydra makes a string.Template of its help


class StudyExperiments(SearchPathPlugin):
    """Lets Hydra find the experiments that studies have written: `outputs/conf/experiment/`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Look there last."""
        conf = Path(os.environ["LITCHAR_OUTPUTS"]).absolute() / "conf"
        if conf.is_dir():
            search_path.append("litchar", f"file://{conf}")


def quote(argument: str, sweeps: bool = False) -> str:
    """Return a command-line argument so that Hydra takes a text or a path as it is.

    A value that is quoted already stays as it is; so do `null`, and a list where one is taken. Of a
    place that Hydra makes itself, `~` is the home directory.

    Args:
        sweeps: several paths with commas between them, which name no file together, are a sweep's.

    Raises:
        UserError: a path is empty, which would mean the working directory, or null where none can
            be missing.
    """
    key, equals, value = argument.partition("=")
    name = key.lstrip("+")
    if equals and name in PATHS and value in ("", "''", '""'):
        raise UserError(f"{key}= is empty (a variable that is not set?); give it or leave it out")
    if equals and name in PLACES and value == "null":
        raise UserError(f"{argument}: runs need a place; name a directory or leave it out")
    if not equals or name not in TEXTS | PATHS or _QUOTED.fullmatch(value):
        return argument
    listed = name in LISTS and value[:1] == "[" and value[-1:] == "]"
    if listed or (name in PATHS and value == "null"):
        return argument
    whole = os.path.expanduser(value)  # like exists below, it takes whatever was typed
    if sweeps and name in PATHS and "," in value and not os.path.exists(whole):
        if value.startswith("choice("):
            return argument
        paths = (quote(f"{key}={path}").partition("=")[2] for path in value.split(","))
        return f"{key}={','.join(paths)}"
    if name in PLACES:
        value = whole
    # Hydra reads \" as a quote, and takes backslashes before one as escaped too.
    value = re.sub(r'(\\*)"', lambda match: match[1] * 2 + r"\"", literal(value))
    value = re.sub(r"(\\+)\Z", lambda match: match[1] * 2, value)
    return f'{key}="{value}"'


def literal(text: str) -> str:
    """Return `text` so that OmegaConf takes it as it is.

    It reads ${...} unless the dollar is escaped, and takes backslashes before it as escaped too.
    """
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)


_OVERRIDE = re.compile(r"~|[^-][^=]*=")
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)


def check(arguments: list[str], conf: Path, config_name: str) -> None:
    """Refuse what Hydra would take or trip over.

    A key without a name, a group without a choice, and `+key` that nothing reads.

    Raises:
        UserError: the command line has one.
    """
    for argument in arguments:
        group = argument.removesuffix("=null")
        if group != argument and group in _groups(conf):
            files = ", ".join(sorted(path.stem for path in (conf / group).glob("*.yaml")))
            raise UserError(f"{argument}: a group takes the name of one of its files: {files}")
        prefix, name = re.findall(r"\A([+~]*)([\w/.]*)", argument)[0]
        if (prefix and not name) or argument.startswith("="):
            raise UserError(f"{argument}: there is no key before the value; write KEY=VALUE")
        if "+" in prefix:
            _check_added(name, _keys(conf, config_name))


def _check_added(name: str, keys: dict[str, bool]) -> None:
    """Refuse a key that is to be added where nothing reads it.

    Raises:
        UserError: it is.
    """
    top, *parts = name.partition("/")[0].split(".")
    if top == "hydra":
        return
    if top not in keys:
        tops = [key for key in keys if "." not in key]
        raise UserError(f"{top}: there is no such key or group{_nearest(top, tops)}")
    parent = top
    for part in parts:
        key = f"{parent}.{part}"
        if key not in keys and (parent in CLOSED or not keys[top]):
            raise UserError(f"{key}: there is no such key{_nearest(key, list(keys))}")
        parent = key


# The keys at the top of a configuration, and those below each: None where a group's files say.
Known = dict[str, frozenset[str] | None]


def readable(conf: Path, config_name: str) -> Known:
    """Return the keys that are read of `conf/<config_name>.yaml`."""
    own: Any = OmegaConf.to_container(OmegaConf.load(conf / f"{config_name}.yaml"))
    known: Known = {}
    for default in own.pop("defaults"):
        if default == "_self_":
            continue
        if isinstance(default, str):
            known |= readable(conf, default)
            continue
        for group, choice in default.items():
            if choice is not None:  # what has no default sets keys that are others'
                known[group.partition("/")[0]] = None
    return {key: frozenset(at if isinstance(at, dict) else ()) for key, at in own.items()} | known


def check_composed(config: DictConfig, known: Known, choices: Mapping[str, str | None]) -> None:
    """Refuse keys that nothing reads, as a file of a person's own may bring them along.

    Args:
        choices: the file chosen of each group.

    Raises:
        UserError: there is one.
    """
    for key in map(str, config):
        if key not in known and key in choices:
            raise UserError(
                f"{key}={choices[key]}: this file sets keys below {key}, which nothing reads; it "
                "has to begin with the line # @package _global_"
            )
        if key not in known:
            raise UserError(f"{key}: there is no such key or group{_nearest(key, list(known))}")
        below, node = known[key], config._get_node(key)
        if below is not None and isinstance(node, DictConfig):
            for name in map(str, node):
                if name not in below:
                    near = _nearest(name, sorted(below))
                    raise UserError(f"{key}.{name}: there is no such key{near}")


def _groups(conf: Path) -> list[str]:
    return sorted(entry.name for entry in conf.iterdir() if entry.is_dir())


def exit_with(message: str, code: int = 2) -> NoReturn:
    """Print one line and exit with `code`."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)


def _explain(error: Exception, conf: Path, config_name: str) -> str:
    """Return one line for an error of the user's, with the nearest right name."""
    chain = list(causes(error))
    if any(isinstance(cause, UserError) for cause in chain):
        return reason(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return f"{group}={name}: there is no such file in conf/{group}" + _nearest(
            name, error.options or []
        )
    if isinstance(error, OverrideParseException):
        return f"{error.override}: Hydra cannot read this; write KEY=VALUE, quoting what is special"
    unknown = next((key for cause in chain if (key := getattr(cause, "full_key", None))), None)
    misplaced = re.match(r"Could not override '([^']+)'", str(error))
    key = unknown or (misplaced and misplaced[1])
    if key and (misplaced or "is not in struct" in str(chain[-1])):
        return f"{key}: {_missing(key, bool(misplaced), conf, config_name)}"
    return reason(error)


def _missing(key: str, typed: bool, conf: Path, config_name: str) -> str:
    """Return why there is no such key, and what may have been meant.

    Args:
        typed: whether the command line sets it, and no code of ours looked for it.
    """
    keys = _keys(conf, config_name)
    group = key.split(".")[0]
    if key in _groups(conf) and not keys.get(key):
        own = [other for other in keys if other.startswith(f"{key}.")]
        has = f"; {key} has {', '.join(own)}" if own else _nearest(key, list(keys))
        return f"{config_name} has no such group{has}"
    if key not in keys:
        return f"there is no such key{_nearest(key, list(keys))}"
    return f"the chosen {group} has no such key" if typed else f"it is needed; leave ~{key} out"


def _nearest(name: str, names: Sequence[str]) -> str:
    """Return a hint at the name that was meant, looked for beside it first."""
    parent = name.rpartition(".")[0]
    beside = [other for other in names if other.rpartition(".")[0] == parent] or names
    close = difflib.get_close_matches(name, beside, n=1)
    close = close or difflib.get_close_matches(name, names, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are {', '.join(sorted(set(beside)))}" if len(beside) < 40 else ""


@functools.cache
def _keys(conf: Path, config_name: str) -> dict[str, bool]:
    """Return the dotted keys of a script's configuration without overrides, and its groups.

    Of each, whether it is a group.
    """
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        config = hydra.compose(config_name, return_hydra_config=True)
    keys = {group: True for group in _groups(conf) if group in config.hydra.runtime.choices}

    def walk(node: DictConfig, prefix: str) -> None:
        for key in map(str, node):
            if prefix or key != "hydra":
                keys.setdefault(f"{prefix}{key}", False)
                child = node._get_node(key)
                if isinstance(child, DictConfig):
                    walk(child, f"{prefix}{key}.")

    walk(config, "")
    return keys
