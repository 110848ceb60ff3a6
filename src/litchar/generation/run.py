"""`scripts/generate.py`: text from a checkpoint, shown as it is sampled."""

import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from litchar.checkpoints import Checkpoint, find
from litchar.device import choose_device
from litchar.errors import UserError
from litchar.generation.sampling import Sampling, generate
from litchar.text.vocabulary import printable


def run(config: DictConfig, output_dir: Path) -> None:
    """Print `num_samples` texts that begin with `prompt`.

    Raises:
        UserError: the checkpoint, the prompt or a setting is unfit.
    """
    sampling = Sampling(**{field.name: config[field.name] for field in fields(Sampling)})
    for name in ("max_new_tokens", "num_samples"):
        if not isinstance(config[name], int) or config[name] < 1:
            raise UserError(f"{name}={config[name]}: must be a whole number of at least 1")
    if not isinstance(config.seed, int) or config.seed < 0:
        raise UserError(f"seed={config.seed}: must be a whole number from 0 on")
    device = choose_device(config.device)
    checkpoint = Checkpoint.load(find(config.checkpoint, Path(config.outputs_dir)))
    vocabulary = checkpoint.vocabulary
    prompt = vocabulary.encode(config.prompt, config.unknown)
    idx = np.array([prompt.tolist() or [0]])
    model = checkpoint.build_model(device)

    # A terminal obeys control characters, and a model may have learned some; a file takes all.
    show = printable if sys.stdout.isatty() else str
    for number in range(config.num_samples):
        if number:
            print("-" * 8)
        decode = vocabulary.decoder()
        sys.stdout.write(show(decode(prompt)))
        seeds = [config.seed + number]
        for step in generate(model, idx, config.max_new_tokens, sampling, seeds):
            sys.stdout.write(show(decode(step.ids)))
            sys.stdout.flush()
        print(show(decode([], final=True)))
