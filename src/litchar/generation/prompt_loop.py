"""The prompt loop: at a terminal, a text for each prompt that is typed."""

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
Type what the text is to begin with, then Enter; \\n stands for a new line, \\\\ for a backslash.
  :KEY=VALUE   change a setting: :temperature=0.7 :top_k=null :max_new_tokens=200 :seed=1
  :settings    show them
  :quit        end, as Ctrl-D does; Ctrl-C ends a text
Up and down go through what was typed before."""
SETTINGS = ("num_samples", *(field.name for field in fields(Settings)))


def run(
    config: DictConfig, check: Callable[[DictConfig], None], show: Callable[[str], None]
) -> None:
    """Ask for prompts until the person ends it.

    Args:
        config: of `generate`; what is set here changes it.
        check: raises UserError for a configuration that is unfit.
        show: prints texts for a prompt; after each the seed goes up, so that the same prompt gives
            other texts.
    """
    print(":help says what can be typed here")
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
                print(f"error: what was typed is not {error.encoding}")
            except Interrupted as interrupted:
                if interrupted.signum != signal.SIGINT:
                    raise


def _asked() -> str:
    """Return the line that is typed; one that is given up ends as well."""
    try:
        return input("> ")
    except (EOFError, Interrupted):
        print()
        raise


def change(config: DictConfig, setting: str, check: Callable[[DictConfig], None]) -> None:
    """Set `KEY=VALUE` in `config`, if all stays fit.

    Raises:
        UserError: there is no such key, or the value has no meaning.
    """
    key, equals, value = (part.strip() for part in setting.partition("="))
    if key not in SETTINGS or not equals:
        raise UserError(f":{setting}: write :KEY=VALUE, with one of {', '.join(SETTINGS)}")
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
    """Return a setting as it would be typed."""
    if isinstance(value, ListConfig):
        return json.dumps(list(value), ensure_ascii=False)
    return "null" if value is None else str(value)


@contextlib.contextmanager
def history() -> Iterator[None]:
    """Keep what is typed for the arrow keys, from one time to the next, if there is readline."""
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
