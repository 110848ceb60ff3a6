"""`scripts/generate.py`: text from a checkpoint, shown as it is sampled."""

import json
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from litchar.errors import UserError, check_flag, check_integer
from litchar.generation import prompt_loop
from litchar.generation.known import known_documents
from litchar.generation.scoring import Score, legend
from litchar.generation.text_model import TextModel
from litchar.generation.writing import Settings, Writing, typed
from litchar.terminal import Terminal
from litchar.text.vocabulary import printable

SECONDS_BEFORE_SAYING = 2  # that the prompt is awaited
WAITING = "Reading the prompt from standard input, up to its end; prompt=TEXT would give one."
NUM_SAMPLES = {None: 1, "file": 1, "line": 20}  # where it is not set, by what a document is


def run(config: DictConfig) -> None:
    """Print texts that begin with the prompt, or with each of several; or score a text.

    Without a prompt a terminal is asked for prompts, and anything else is read as one. A model of
    lines needs none. Which documents are known from the text that the model was trained on is said
    on stderr.

    Raises:
        UserError: the checkpoint, a prompt or a setting is unfit.
    """
    unset = config.num_samples is None
    config.num_samples = 1 if unset else config.num_samples
    check(config)
    text_model = TextModel.load(config.checkpoint, config.device, Path(config.outputs_dir))
    checkpoint, document = text_model.checkpoint, text_model.vocabulary.document
    if unset:
        config.num_samples = NUM_SAMPLES[document]
    if document == "line" and config.prompts is None and config.prompt is None:
        config.prompt = ""  # a line by itself is what is wanted

    def show(prompts: Sequence[str]) -> None:
        texts = show_texts(text_model, prompts, config)
        if document and (said := known_documents(checkpoint, texts)):
            print(said, file=sys.stderr)

    if config.score is not None:
        show_score(text_model.score(config.score, settings_of(config).unknown), config.json)
    elif config.prompt is None and config.prompts is None and asks():
        print(f"{checkpoint.path}, step {checkpoint.step:,}")
        prompt_loop.run(config, check, lambda prompt: show([prompt]))
    else:
        show(prompts_of(config))


def check(config: DictConfig) -> None:
    """Refuse settings that have no meaning.

    Raises:
        UserError: there is one.
    """
    settings_of(config)
    check_integer("num_samples", config.num_samples, 1)
    check_flag("json", config.json)
    given = [name for name in ("prompts", "score", "prompt") if config[name] is not None]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)}: give one of them")


def settings_of(config: DictConfig) -> Settings:
    """Return how `config` wants a text to be written; its texts are as they were typed."""
    chosen = {field.name: config[field.name] for field in fields(Settings)}
    if OmegaConf.is_list(config.stop):
        chosen["stop"] = [typed(one) if isinstance(one, str) else one for one in config.stop]
    for name in ("stop", "unknown"):
        if isinstance(chosen[name], str):
            chosen[name] = typed(chosen[name])
    return Settings(**chosen)


def asks() -> bool:
    """Return whether a person sits at both ends."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


def prompts_of(config: DictConfig) -> list[str]:
    """Return the prompts: the one given, the lines of a file, or what is piped in.

    Raises:
        UserError: the file is missing, empty or no text.
    """
    if config.prompt is not None:
        return [config.prompt]
    if config.prompts is None:
        if sys.stdin is None or sys.stdin.isatty():
            return [""]
        waiting = threading.Timer(SECONDS_BEFORE_SAYING, print, [WAITING], {"file": sys.stderr})
        waiting.daemon = True
        waiting.start()
        try:
            piped = sys.stdin.read().removeprefix("\ufeff")  # the byte-order mark of some editors
            return [piped.removesuffix("\n")]  # which echo adds
        except UnicodeDecodeError as error:
            raise UserError(f"standard input: not UTF-8 at byte {error.start}") from None
        finally:
            waiting.cancel()
    path = Path(os.path.expanduser(config.prompts))
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"prompts={path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"prompts={path}: not UTF-8 at byte {error.start}") from None
    if not any(lines):
        raise UserError(f"prompts={path}: has no prompt; it takes one on each line")
    return [line for line in lines if line]


def show_texts(text_model: TextModel, prompts: Sequence[str], config: DictConfig) -> list[Writing]:
    """Print `num_samples` texts for each prompt, or a line of JSON for each; return documents.

    Raises:
        UserError: a prompt has characters that the model never saw.
    """
    # A terminal obeys control characters, and a model may have learned some; a file takes all.
    show = printable if sys.stdout.isatty() else str
    document = text_model.vocabulary.document
    documents: list[Writing] = []
    texts = text_model.write(prompts, settings_of(config), config.num_samples)
    for i, text in enumerate(texts):
        if config.json:
            line = {
                "prompt": text.prompt,
                "text": text.whole(),
                "seed": text.seed,
                "finish": text.finish,
                "log_probs": [round(p, 6) for p in text.log_probs],
            }
            print(json.dumps(line), flush=True)
        else:
            if i and document != "line":
                print("-" * 8)
            try:
                sys.stdout.write(show(text.prompt))
                for piece in text:
                    sys.stdout.write(show(piece))
                    sys.stdout.flush()
            finally:  # of Ctrl-C as well: the shell begins a line
                print()
        if document:
            documents.append(text)
    return documents


def show_score(score: Score, as_json: bool) -> None:
    """Print a text, coloured by how surprising each character is, and its bits per character."""
    if as_json:
        figures = {
            "text": score.text,
            "bits_per_character": score.bits_per_character,
            "log_probs": [round(p, 6) for p in score.log_probs.tolist()],
        }
        print(json.dumps(figures))
        return
    terminal = Terminal()
    terminal.print(score.coloured(), soft_wrap=True)
    if terminal.color_system is not None:
        terminal.print(legend())
    terminal.say(repr(score))
    if terminal.color_system is None:  # a pipe, or a terminal that a screen reader reads
        for line in ("The most surprising characters:", *score.most_surprising()):
            terminal.say(line)
