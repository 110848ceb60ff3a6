"""The command line: from arguments to a function of the package, and back to an exit code.

Nothing heavy is imported here, so that `--help` and `--cfg job` respond instantly.
"""

import argparse
import contextlib
import errno
import gc
import importlib
import io
import os
import secrets
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from litchar import signals
from litchar.errors import (
    BusyError,
    DivergedError,
    JobsFailedError,
    RankError,
    UserError,
    causes,
    first_line,
    is_disk_full,
    is_out_of_memory,
    is_users,
)
from litchar.launched import launched
from litchar.overrides import (
    OVERRIDE,
    Known,
    check,
    check_composed,
    explain,
    is_multirun,
    quote,
    readable,
)
from litchar.run_dir import ROOT, default_outputs, remove_traces, sole_owner

# Resolvers for configurations; here, so that a worker that unpickles a `Task` has them too.
OmegaConf.register_new_resolver(  # keeps run directories distinct
    "unique", lambda: secrets.token_hex(2), use_cache=True, replace=True
)
OmegaConf.register_new_resolver(  # a slash would nest the run's directory
    "in_a_path", lambda name: str(name).replace("/", "_"), replace=True
)
OmegaConf.register_new_resolver(
    "or", lambda value, default: default if value is None else value, replace=True
)


class Task:
    """What Hydra calls for a run, and for each job of a sweep, possibly in a worker process.

    Args:
        target: `module:function` to call with the configuration; imported only then.
        known: the keys that the configuration may have, see `readable`.

    Attributes:
        started: whether our own code has begun.
        failure: its first exception, caught because Hydra would print a line of its own.
    """

    def __init__(self, target: str, known: Known) -> None:
        self.target = target
        self.known = known
        self.started = False
        self.failure: Exception | None = None

    def __call__(self, config: DictConfig) -> object:
        """Return the result of the function, or the exception it raised."""
        self.started = True
        try:
            return self._checked(config)(config)
        except Exception as error:
            self.failure = self.failure or error
            return error

    def _checked(self, config: DictConfig) -> Callable[..., Any]:
        """Return the function to call, if `config` is valid; importing it takes seconds, in which
        a signal may come."""
        hydra_config = HydraConfig.get()
        try:
            check_composed(config, self.known, hydra_config.runtime.choices)
            return _function(self.target)
        except BaseException:
            if hydra_config.output_subdir is not None:
                run_dir = Path(hydra_config.runtime.output_dir)
                with contextlib.suppress(BusyError, OSError), sole_owner(run_dir):
                    remove_traces(run_dir)
            raise


def no_multirun(arguments: list[str], conf: Path, config_name: str) -> list[str]:
    """Return `arguments`, or raise UserError if `-m` is among them: for a script that does not
    train, or whose single run does many trainings."""
    if is_multirun(arguments):
        raise UserError(f"-m: {config_name} takes one value per key; leave -m out")
    return arguments


def hydra_main(
    script: str,
    config_name: str,
    target: str,
    before: Callable[[list[str], Path, str], list[str]] = no_multirun,
    follow: str | None = None,
) -> None:
    """Compose `conf/<config_name>.yaml` with the command line and call `target` with it.

    Exits with 0, also if the reader of its output, such as `head`, stops early; with 2 and one line
    if the input was wrong; with 128 + the signal if one came; and with 1 and a traceback otherwise.

    Args:
        script: the calling script's `__file__`; `conf/` and `outputs/` lie beside its directory.
        target: `module:function` to call with the configuration; imported once that is composed.
        before: is called before Hydra with the arguments, the configuration directory and
            `config_name`, and returns the arguments for Hydra.
        follow: `module:function` to call instead in processes that torchrun or srun started, except
            in rank 0; it returns the exit code.
    """
    check_checkout(script)
    root = Path(script).resolve().parents[1]
    os.environ.setdefault("LITCHAR_OUTPUTS", str(root / "outputs"))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through unchanged
    if follow is not None and (place := launched()) is not None:
        if place.rank > 0:
            sys.exit(_function(follow)())
        _function("litchar.training.ranks:dismiss_at_exit")(place)
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
        if not isinstance(ended.__context__, BrokenPipeError):  # on which rich exits with 1
            raise
    except Exception as error:
        if not (isinstance(error, BrokenPipeError) and signals.is_unread(signals.STDOUT)):
            _exit_on(error, task.started, conf, config_name)
    finally:
        if signals.is_unread(signals.STDOUT):  # the interpreter would complain when it flushes it
            signals.discard(signals.STDOUT)


def check_checkout(script: str) -> None:
    """Refuse a script whose checkout (a worktree, say) is not the installed one: it would run the
    installed code instead of its own. Refuse also to start in a directory that is gone."""
    try:
        Path.cwd()
    except FileNotFoundError:
        exit_with("the current directory was deleted; change to another")
    root = Path(script).resolve().parents[1]
    if not ((root / "src/litchar").is_dir() and (ROOT / "conf").is_dir()):
        return
    if not (ROOT / "src").samefile(root / "src"):
        exit_with(
            f"{script} would run the code of another checkout, {ROOT / 'src'}; run it with "
            f"PYTHONPATH={shlex.quote(f'{root}/src')}, or install this one: pip install -e "
            f"{shlex.quote(str(root))}"
        )


def _set_up(conf: Path, config_name: str) -> None:
    """Set up Hydra's plugins, quote the arguments, handle signals, and make the streams robust."""
    OmegaConf.register_new_resolver(
        "keys_of_script", lambda: keys_of_script(conf, config_name), replace=True
    )
    Plugins.instance().register(StudyExperiments)
    # Overrides first: argparse accepts none after an option that follows another override.
    arguments = sorted(sys.argv[1:], key=lambda argument: not OVERRIDE.match(argument))
    sweeps = is_multirun(arguments)
    sys.argv[1:] = [quote(argument, sweeps) for argument in arguments]
    signals.install()
    if sys.stdout is None:  # closed
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an unencodable character must not end a run
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper) and not sys.stdin.isatty():
        # Some locales would have it ASCII, and let through what is not.
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")


def _exit_on(error: Exception, started: bool, conf: Path, config_name: str) -> NoReturn:
    """Exit with the code and the line that `error` calls for, or re-raise it if it is our bug.

    Args:
        started: whether our own code has begun.
    """
    if isinstance(error, DivergedError | JobsFailedError | RankError):
        exit_with(str(error), 1)
    if isinstance(error, OSError) and error.filename and not started:
        exit_with(
            f"{error.filename}: cannot be written ({error.strerror}); try run_dir=DIRECTORY "
            "(for a sweep, outputs_dir=DIRECTORY)"
        )
    for cause in () if isinstance(error, UserError) else causes(error):  # says it better
        if line := _refused(cause):
            exit_with(line)
    # Before our own code starts, nothing but the command line can be at fault.
    if is_users(error) or not started:
        exit_with(explain(error, conf, config_name))
    raise error


def _refused(error: BaseException) -> str | None:
    """Return the line for memory, disk space or a path that the system refused; None for other
    errors."""
    if is_out_of_memory(error):
        return (
            f"out of memory ({first_line(error)}); lower batch_size or num_samples, for example, "
            "or use another device"
        )
    if not isinstance(error, OSError):
        return None
    if isinstance(error, PermissionError) and error.filename:
        return f"{error.filename}: {error.strerror}; change its permissions, or choose another path"
    if error.errno == errno.EROFS and error.filename:
        return f"{error.filename}: {error.strerror}; choose another path"
    if is_disk_full(error):
        # Of two paths, the second is written to.
        place = error.filename2 or error.filename or "the output disk"
        return f"{place}: {error.strerror}; free some space there, or choose another path"
    if error.errno == errno.ENAMETOOLONG:
        return f"{error.filename}: {error.strerror}; give a shorter one"
    return None


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Give an argparse `main`, decorated with `@exit_codes()`, the exit codes of other scripts: 2
    and one line if the input was wrong, and 128 + the signal if one came."""
    check_checkout(sys.argv[0])
    signals.install()
    try:
        yield
    except UserError as error:
        exit_with(str(error))
    except Exception as error:
        if (line := _refused(error)) is None:
            raise
        exit_with(line)


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, which refuses a wrong command line in one line, without printing its usage."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise UserError(f"{message}; see {self.prog} --help")


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
    """Import what lives until exit without garbage collection.

    torch and Lightning create 700,000 objects. Python would scan them for garbage during the
    import, now and then later, and at exit: two seconds in all, to find none.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def keys_of_script(conf: Path, config_name: str) -> str:
    """Return a script's keys and comments, as written in its file, for its help text."""
    text = (conf / f"{config_name}.yaml").read_text()
    keys = text.partition("\n\n")[2].partition("\nhydra:\n")[0]
    return keys.rstrip().replace("$", "$$")  # Hydra makes a string.Template of its help


class StudyExperiments(SearchPathPlugin):
    """Lets Hydra find the experiments written by studies: `outputs/conf/experiment/`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add their directory as the last to be searched."""
        conf = default_outputs().absolute() / "conf"
        if conf.is_dir():
            search_path.append("litchar", f"file://{conf}")


def exit_with(message: str, code: int = 2) -> NoReturn:
    """Print one line, with control characters escaped, and exit with `code`."""
    from litchar.terminal import visible

    print("error: " + visible(" ".join(message.split())), file=sys.stderr)
    try:
        print(end="", flush=True)
    except OSError:  # its disk is full, or its reader gone: Python would fail again at exit, by 120
        signals.discard(signals.STDOUT)
    sys.exit(code)
