"""`scripts/generate.py`: text from a checkpoint, shown as it is sampled."""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

from litchar.checkpoints import Checkpoint, find
from litchar.device import choose_device
from litchar.errors import UserError
from litchar.generation import prompt_loop
from litchar.generation.known import known_documents
from litchar.generation.sampling import Sampling
from litchar.generation.scoring import coloured, legend, log_probs_of
from litchar.generation.writing import write
from litchar.text import Vocabulary
from litchar.text.vocabulary import printable

NUM_SAMPLES = {None: 1, "file": 1, "line": 20}  # where it is not set, by what a document is


def run(config: DictConfig, output_dir: Path) -> None:
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
    device = choose_device(config.device)
    checkpoint = Checkpoint.load(find(config.checkpoint, Path(config.outputs_dir)))
    vocabulary = checkpoint.vocabulary
    model = checkpoint.build_model(device)
    if unset:
        config.num_samples = NUM_SAMPLES[vocabulary.document]
    if vocabulary.document == "line" and config.prompts is None and config.prompt is None:
        config.prompt = ""  # a line by itself is what is wanted

    def show(prompts: Sequence[str]) -> None:
        cleaned = [checkpoint.cleaning(prompt) for prompt in prompts]
        samples = show_texts(model, vocabulary, cleaned, config)
        if vocabulary.document:
            print(known_documents(checkpoint, samples), file=sys.stderr)

    if config.score is not None:
        show_score(model, vocabulary, checkpoint.cleaning(config.score), config)
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
    sampling_of(config)
    for name, least in (("max_new_tokens", 1), ("num_samples", 1), ("seed", 0)):
        value = config[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(f"{name}={value}: must be a whole number of at least {least}")
    if not isinstance(config.json, bool):
        raise UserError(f"json={config.json}: must be true or false")
    if any(not isinstance(text, str) or not text for text in stops_of(config)):
        raise UserError(f"stop={config.stop}: must be a text of at least one character, or a list")
    for name in ("prompts", "score"):
        if config[name] is not None and config.prompt is not None:
            raise UserError(f"{name} and prompt: give one of them")


def sampling_of(config: DictConfig) -> Sampling:
    """Return how `config` chooses characters."""
    return Sampling(**{field.name: config[field.name] for field in fields(Sampling)})


def stops_of(config: DictConfig) -> list[str]:
    """Return the stop strings of `config`."""
    if OmegaConf.is_list(config.stop):
        return list(config.stop)
    return [] if config.stop is None else [config.stop]


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
        try:
            return [sys.stdin.read().removesuffix("\n")]  # which echo adds
        except UnicodeDecodeError as error:
            raise UserError(f"standard input: not UTF-8 at byte {error.start}") from None
    path = Path(config.prompts).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UserError(f"prompts={path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"prompts={path}: not UTF-8 at byte {error.start}") from None
    if not any(lines):
        raise UserError(f"prompts={path}: has no prompt; it takes one on each line")
    return [line for line in lines if line]


def show_texts(
    model: nn.Module, vocabulary: Vocabulary, prompts: Sequence[str], config: DictConfig
) -> list[list[int]]:
    """Print `num_samples` texts for each prompt, or a line of JSON for each.

    Returns:
        the ids of each, prompt included.

    Raises:
        UserError: a prompt has characters that the model never saw.
    """
    # A terminal obeys control characters, and a model may have learned some; a file takes all.
    show = printable if sys.stdout.isatty() else str
    sampling, stops = sampling_of(config), stops_of(config)
    encoded = [vocabulary.encode(prompt, config.unknown) for prompt in prompts]
    seeds = range(config.seed, config.seed + config.num_samples)
    shown = []
    for prompt in encoded:
        texts = write(model, vocabulary, prompt, config.max_new_tokens, sampling, seeds, stops)
        for seed, text in zip(seeds, texts, strict=True):
            shown_prompt = vocabulary.decode(prompt)
            if config.json:
                for _ in text:
                    pass
                line = {
                    "prompt": shown_prompt,
                    "text": text.text,
                    "seed": seed,
                    "finish": text.finish,
                    "log_probs": [round(p, 6) for p in text.log_probs],
                }
                print(json.dumps(line), flush=True)
                shown.append([*prompt.tolist(), *text.ids])
                continue
            if shown and vocabulary.document != "line":
                print("-" * 8)
            sys.stdout.write(show(shown_prompt))
            for piece in text:
                sys.stdout.write(show(piece))
                sys.stdout.flush()
            print()
            shown.append([*prompt.tolist(), *text.ids])
    return shown


def show_score(model: nn.Module, vocabulary: Vocabulary, text: str, config: DictConfig) -> None:
    """Print `text`, coloured by how surprising each character is, and its bits per character.

    Raises:
        UserError: it is too short, or has characters that the model never saw.
    """
    ids = vocabulary.encode(text, config.unknown).astype(np.int64)
    if len(ids) < 2:
        raise UserError("score: takes 2 characters that the model knows; the first begins the text")
    log_probs = log_probs_of(model, ids)
    text = vocabulary.decode(ids)
    bits = -log_probs.sum() / math.log(2)
    n = max(1, len(text) - 1)
    if config.json:
        figures = {
            "text": text,
            "bits_per_character": bits / n,
            "log_probs": [round(p, 6) for p in log_probs.tolist()],
        }
        print(json.dumps(figures))
        return
    console = Console(highlight=False)
    console.print(coloured(vocabulary, ids, log_probs), soft_wrap=True)
    if console.is_terminal:
        console.print(legend())
    console.print(
        f"{bits / n:.4f} bits per character over {n:,} characters (the first is not predicted)",
        soft_wrap=True,
    )
