"""The prompt loop: type prompts at a terminal, get a text for each."""

import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import fields

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from litchar.errors import Interrupted, UserError, first_line
from litchar.generation.writing import Settings, typed
from litchar.overrides import literal
from litchar.text.remembered import cache_dir

HELP = """\
Type the beginning of a text, then Enter; \\n stands for a new line, \\\\ for a backslash.
  :KEY=VALUE   change a setting: :temperature=0.7 :top_k=null :max_new_tokens=200 :seed=1
  :settings    show them
  :quit        quit, like Ctrl-D; Ctrl-C stops a text
The up and down keys recall earlier lines."""
SETTINGS = ("num_samples", *(field.name for field in fields(Settings)))


def run(
    config: DictConfig, check: Callable[[DictConfig], None], show: Callable[[str], None]
) -> None:
    """Ask for prompts until the user quits.

    Args:
        config: of `generate`; settings changed at the prompt are written to it.
        check: raises UserError for an invalid configuration.
        show: prints the texts for a prompt; the seed is raised after each call, so that the same
            prompt gives other texts.
    """
    print(":help shows what you can type here")
    with history():
        while True:
            try:
                line = _asked()
                if line in (":quit", ":q", ":exit"):
                    return
                if line == ":help":
                    print(HELP)
                elif line == ":settings":
                    print("\n".join(f"  {name}={said(config[name])}" for name in SETTINGS))
                elif line.startswith(":"):
                    change(config, line[1:], check)
                else:
                    show(typed(line))
                    config.seed += config.num_samples
            except EOFError:
                return
            except UserError as error:
                print(f"error: {error}")
            except UnicodeDecodeError as error:
                print(f"error: what you typed is not {error.encoding}")
            except Interrupted as interrupted:
                if interrupted.signum != signal.SIGINT:
                    raise


def _asked() -> str:
    """Return the line typed; on Ctrl-C or Ctrl-D, end the terminal's line and raise."""
    try:
        return input("> ")
    except (EOFError, Interrupted):
        print()
        raise


def change(config: DictConfig, setting: str, check: Callable[[DictConfig], None]) -> None:
    """Set `KEY=VALUE` in `config`, if the result passes `check`.

    Raises:
        UserError: there is no such key, or the value is invalid; `config` is unchanged.
    """
    key, equals, value = (part.strip() for part in setting.partition("="))
    if key not in SETTINGS or not equals:
        raise UserError(f":{setting}: write :KEY=VALUE with one of {', '.join(SETTINGS)}")
    tried = config.copy()
    try:
        enclosed = len(value) > 1 and value[0] + value[-1] in ("[]", '""', "''")
        if key in ("stop", "unknown") and value != "null" and not enclosed:
            tried[key] = literal(value)
        else:
            tried[key] = OmegaConf.create(f"value: {value}").value
        check(tried)
    except (UserError, OmegaConfBaseException, YAMLError) as error:
        raise UserError(first_line(error)) from None
    config.merge_with(tried)


def said(value: object) -> str:
    """Return a setting's value as it would be typed."""
    if isinstance(value, ListConfig):
        return json.dumps(list(value), ensure_ascii=False)
    return "null" if value is None else str(value)


@contextlib.contextmanager
def history() -> Iterator[None]:
    """Keep the history of typed lines from one session to the next, if readline is available."""
    try:
        import readline
    except ImportError:  # on Windows
        yield
        return
    path = cache_dir() / "history"
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.set_history_length(1000)
            readline.write_history_file(path)
