"""What a step costs under the Trainer, in a bare loop, and in the teaching script's own form."""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from litchar.benchmarks import run_training


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--steps", type=int, default=1000, help="of each measurement (1000)")


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each form of `teaching_transformer`: milliseconds a step.

    All have one batch size and arithmetic, and step with AdamW: the first two with the fused one,
    the last with torch's default, as the script does. Each is measured in a process of its own, in
    turns. Under the Trainer logging is included and validation is not.
    """
    with tempfile.TemporaryDirectory() as directory:
        forms: dict[str, Callable[[], float]] = {
            "under the Trainer": lambda: _under_the_trainer(options.steps, Path(directory)),
            "bare loop": lambda: _bare("Transformer", options.steps),
            "bare loop, head by head": lambda: _bare("TeachingModel", options.steps),
        }
        times: dict[str, list[float]] = {what: [] for what in forms}
        for _ in range(options.repeats):
            for what, milliseconds in forms.items():
                times[what].append(milliseconds())
    bare = statistics.median(times["bare loop"])
    return [
        {
            "what": what,
            "ms a step": statistics.median(taken),
            "least": min(taken),
            "most": max(taken),
            "over the bare loop": statistics.median(taken) - bare,
            "ratio": statistics.median(taken) / bare,
        }
        for what, taken in times.items()
    ]


def _under_the_trainer(steps: int, directory: Path) -> float:
    summary = run_training(
        directory,
        "experiment=teaching_transformer",
        "data=ml",
        "data.train_sample=0",
        f"trainer.max_steps={steps}",
        f"trainer.val_check_interval={steps}",
        "trainer.limit_val_batches=1",
        "trainer.accelerator=cpu",
    )
    milliseconds: float = 1e3 * summary["train_seconds"] / summary["steps"]
    return milliseconds


def _bare(model: str, steps: int) -> float:
    command = [sys.executable, "-m", __name__, model, str(steps)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def time_bare_loop(model: str, steps: int) -> float:
    """Return the milliseconds a step of the teaching transformer in a hand-written loop."""
    import torch
    import torch.nn.functional as F

    from litchar.benchmarks.teaching import TeachingModel
    from litchar.models import Transformer
    from litchar.text import open_store
    from litchar.text.sources import bundled
    from litchar.training.optimizers import adamw

    store = open_store(bundled("ml.txt"))
    tokens = torch.from_numpy(store.tokens.astype("int64"))
    sizes: dict[str, Any] = {"block_size": 32, "n_layer": 4, "n_head": 4, "n_embd": 64}
    if model == "TeachingModel":
        net: torch.nn.Module = TeachingModel(len(store.vocabulary), **sizes)
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    else:
        net = Transformer(
            len(store.vocabulary),
            **sizes,
            position="learned",
            norm="layer",
            qk_norm=False,
            activation="relu",
            bias=True,
            qkv_bias=False,
            head_bias=True,
            init="torch",
        )
        optimizer = adamw(net, 1e-3, 0.01, (0.9, 0.999), decay="all")
    began = time.perf_counter()
    for _ in range(steps):
        offsets = torch.randint(len(tokens) - 32, (16,))
        x = torch.stack([tokens[i : i + 32] for i in offsets])
        y = torch.stack([tokens[i + 1 : i + 33] for i in offsets])
        loss = F.cross_entropy(net(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
    return 1e3 * (time.perf_counter() - began) / steps


if __name__ == "__main__":
    print(time_bare_loop(sys.argv[1], int(sys.argv[2])))
