"""Cost of a step under the Trainer, in a bare loop, and with the teaching script's own model."""

import argparse
import contextlib
import csv
import itertools
import operator
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from litchar.benchmarks import output_of, run_training, spread
from litchar.errors import UserError

if TYPE_CHECKING:
    import torch

BLOCK = 50  # steps timed together; also the runs' log interval


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument(
        "--experiment", default="teaching_transformer", help="the experiment whose steps are timed"
    )
    parser.add_argument("--steps", type=int, default=1000, help="steps per measurement (1000)")


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each form of the experiment's step, in milliseconds.

    All forms share the batch size, the arithmetic and the optimiser, except that the teaching
    script's own form uses torch's default AdamW, as the script does. They take turns, each in a
    subprocess. The time under the Trainer includes logging but not validation. A measurement is the
    median over blocks of 50 steps, so that neither the first steps nor passing load on the machine
    counts. As the machine's speed varies between repeats, "over the bare loop" and "ratio" are the
    medians of the difference and of the ratio within each repeat.

    Raises:
        UserError: `--steps` is less than one block.
    """
    if options.steps < BLOCK:
        raise UserError(
            f"--steps={options.steps}: must be at least {BLOCK}, which it times together"
        )
    forms: dict[str, Callable[[], float]] = {
        "under the Trainer": lambda: _under_the_trainer(options),
        "bare loop": lambda: _bare(options, "own"),
    }
    if options.experiment == "teaching_transformer":
        forms["bare loop, head by head"] = lambda: _bare(options, "teaching")
    times: dict[str, list[float]] = {what: [] for what in forms}
    for _ in range(options.repeats):
        for what, milliseconds in forms.items():
            times[what].append(milliseconds())
    bare = times["bare loop"]
    return [
        {
            "what": what,
            **spread("ms a step", taken),
            "over the bare loop": statistics.median(map(operator.sub, taken, bare)),
            "ratio": statistics.median(map(operator.truediv, taken, bare)),
        }
        for what, taken in times.items()
    ]


def _under_the_trainer(options: argparse.Namespace) -> float:
    with tempfile.TemporaryDirectory() as directory:
        summary = run_training(
            Path(directory),
            f"experiment={options.experiment}",
            "data=ml",
            "data.train_sample=0",
            f"trainer.max_steps={options.steps}",
            f"trainer.val_check_interval={options.steps}",
            "trainer.limit_val_batches=1",
            "report=false",
            f"trainer.log_every_n_steps={BLOCK}",
        )
        characters: float = summary["characters_seen"] / summary["steps"]
        with open(next(Path(directory).glob("run*/metrics.csv"))) as file:
            logged = (row["speed/chars_per_second"] for row in csv.DictReader(file))
            speeds = [float(speed) for speed in logged if speed]
    return 1e3 * characters / statistics.median(speeds)


def _bare(options: argparse.Namespace, form: str) -> float:
    command = [sys.executable, "-m", __name__, sys.argv[0], options.experiment, form]
    return float(output_of([*command, str(options.steps)]))


def time_bare_loop(script: str, experiment: str, form: str, steps: int) -> float:
    """Return the milliseconds per step of an experiment in a hand-written loop.

    Args:
        script: a file in `scripts/`, next to which `conf/` is found.
        form: `own`, or `teaching`: the teaching script's model, which computes head by head.
    """
    import torch

    from litchar.data.windows import gather
    from litchar.losses import mean_loss
    from litchar.text import open_store
    from litchar.text.sources import bundled
    from litchar.training.compilation import compiled_loss
    from litchar.training.replay import ReplayedLoss
    from litchar.training.resolve import resolve_by_device, resolve_dropout

    conf = Path(script).resolve().parents[1] / "conf"
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        config = hydra.compose("train", [f"experiment={experiment}", "data=ml"])
    device = resolve_by_device(config)
    store = open_store(bundled("ml.txt"))
    resolve_dropout(config, len(store.tokens), len(store.vocabulary))
    tokens = torch.from_numpy(store.tokens.astype("int64")).to(device)
    B, T = config.data.batch_size, config.data.block_size  # noqa: N806
    sizes = {"vocab_size": len(store.vocabulary), "block_size": T}
    model, optimizer = _built(form, config, sizes, device)
    precision: Callable[[], Any] = contextlib.nullcontext
    if config.trainer.precision == "bf16-mixed":
        precision = partial(torch.autocast, device.type, torch.bfloat16)
    compiled = compiled_loss(device) if config.compile else mean_loss
    replayed = None
    if config.compile and device.type == "cuda":
        replayed = ReplayedLoss(compiled, model, (B, T), precision)
    clip = config.trainer.gradient_clip_val

    taken = []
    for step in range(steps + 1):
        if step % BLOCK == 0:
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            taken.append(time.perf_counter())
        offsets = torch.randint(len(tokens) - T, (B,), device=device)
        batch = gather(tokens, offsets, T)
        if replayed is not None:
            replayed(model, *batch)
            replayed.backward()
        else:
            with precision():
                loss = compiled(model, *batch)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    blocks = [after - before for before, after in itertools.pairwise(taken)]
    return 1e3 * statistics.median(blocks) / BLOCK


def _built(
    form: str, config: DictConfig, sizes: dict[str, int], device: "torch.device"
) -> "tuple[torch.nn.Module, torch.optim.Optimizer]":
    """Return the model and the optimiser of a form."""
    import torch
    from hydra.utils import instantiate

    from litchar.benchmarks.teaching import TeachingModel
    from litchar.device import set_matmul_precision

    if form == "teaching":
        layers = {key: config.model[key] for key in ("n_layer", "n_head", "n_embd")}
        model = TeachingModel(**sizes, **layers).to(device)
        return model, torch.optim.AdamW(model.parameters(), lr=config.optimizer.lr)
    set_matmul_precision(config.float32_matmul_precision, device)
    model = instantiate(config.model, **sizes).to(device)
    return model, instantiate(config.optimizer)(model)


if __name__ == "__main__":
    script, experiment, form, steps = sys.argv[1:]
    print(time_bare_loop(script, experiment, form, int(steps)))
