"""`scripts/generate.py`: print text from a checkpoint as it is sampled, or score a text."""

import json
import os
import re
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

SECONDS_BEFORE_SAYING = 2  # that standard input is awaited
WAITING = "Reading the prompt from standard input until it ends; or give prompt=TEXT."
NUM_SAMPLES = {None: 1, "file": 1, "line": 20}  # the default, by what a document is


def run(config: DictConfig) -> None:
    """Print texts that continue the prompt, or each of several; or score a text.

    Without a prompt, ask for prompts if this is a terminal, else read one from standard input; a
    model of lines starts from an empty one. If the model's text has documents, report on stderr
    which of the generated ones occur in it.

    Raises:
        UserError: the checkpoint, a prompt or a setting is invalid.
    """
    unset = config.num_samples is None
    config.num_samples = 1 if unset else config.num_samples
    check(config)
    text_model = TextModel.load(config.checkpoint, config.device, Path(config.outputs_dir))
    checkpoint, document = text_model.checkpoint, text_model.vocabulary.document
    if unset:
        config.num_samples = NUM_SAMPLES[document]
    if document == "line" and config.prompts is None and config.prompt is None:
        config.prompt = ""  # generate whole lines

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
    """Raise UserError if a setting is invalid, or two of prompts, score and prompt are given."""
    settings_of(config)
    check_integer("num_samples", config.num_samples, 1)
    check_flag("json", config.json)
    given = [name for name in ("prompts", "score", "prompt") if config[name] is not None]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)}: give only one of them")


def settings_of(config: DictConfig) -> Settings:
    """Return the `Settings` in `config`, with the escapes in `stop` and `unknown` resolved."""
    chosen = {field.name: config[field.name] for field in fields(Settings)}
    if OmegaConf.is_list(config.stop):
        chosen["stop"] = [typed(one) if isinstance(one, str) else one for one in config.stop]
    for name in ("stop", "unknown"):
        if isinstance(chosen[name], str):
            chosen[name] = typed(chosen[name])
    return Settings(**chosen)


def asks() -> bool:
    """Return whether standard input and output are both a terminal."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


def prompts_of(config: DictConfig) -> list[str]:
    """Return the prompts: the one given, the lines of a file, or what is piped in.

    Raises:
        UserError: the file cannot be read or has no prompt, or the input is not UTF-8.
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
            return [re.sub(r"\r?\n\Z", "", piped)]  # added by echo
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
        raise UserError(f"prompts={path}: has no prompts; write one per line")
    return [line for line in lines if line]


def show_texts(text_model: TextModel, prompts: Sequence[str], config: DictConfig) -> list[Writing]:
    """Print `num_samples` texts for each prompt, as text or as JSON lines.

    They are returned if the model's text has documents.

    Raises:
        UserError: a prompt has characters that are not in the vocabulary.
    """
    # A model may have learned control characters, which a terminal would obey.
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
            finally:  # after Ctrl-C too: the shell's prompt goes on a new line
                print()
        if document:
            documents.append(text)
    return documents


def show_score(score: Score, as_json: bool) -> None:
    """Print a text, each character coloured by its surprise, and its bits per character."""
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
    if terminal.color_system is None:  # a pipe, or a terminal for a screen reader
        for line in ("The most surprising characters:", *score.most_surprising()):
            terminal.say(line)
