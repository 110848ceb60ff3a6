"""Train a recipe to its target, optionally against nanoGPT: seconds of steps, and losses."""

import argparse
import os
import pickle
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from litchar.benchmarks import output_of, run_training, spread
from litchar.errors import UserError
from litchar.text import Corpus, Vocabulary

# nanoGPT's published settings for this text on a CPU and on a GPU: the number of steps after which
# to compare, and the overrides of its configuration. The GPU settings are unchanged; on an H100
# they first got below the published loss of 1.4697 after 1,750 of their 5,000 steps.
SETTINGS = {
    "cpu": (
        2000,
        [
            "--device=cpu",
            "--compile=False",
            "--eval_iters=20",
            "--block_size=64",
            "--batch_size=12",
            "--n_layer=4",
            "--n_head=4",
            "--n_embd=128",
            "--lr_decay_iters=2000",
            "--dropout=0.0",
        ],
    ),
    "cuda": (1750, []),
}

# Scores nanoGPT's checkpoint the way ours are: contiguous windows, every character once.
EXACT_LOSS = """
import numpy, sys, torch
from model import GPT, GPTConfig
device = "cuda" if torch.cuda.is_available() else "cpu"
saved = torch.load("out-shakespeare-char/ckpt.pt", map_location=device)
model = GPT(GPTConfig(**saved["model_args"])).eval().to(device)
model.load_state_dict({k.removeprefix("_orig_mod."): v for k, v in saved["model"].items()})
ids = numpy.fromfile("data/shakespeare_char/val.bin", dtype=numpy.uint16)
ids = torch.from_numpy(ids.astype(int)).to(device)
total, T = 0.0, model.config.block_size
with torch.no_grad():
    for start in range(0, len(ids) - 1, T):
        x = ids[start : start + T][: len(ids) - 1 - start][None]
        y = ids[start + 1 : start + 1 + x.shape[1]][None]
        total += model(x, y)[1].item() * x.shape[1]
print(total / (len(ids) - 1))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--experiment", default="cpu_fast", help="the recipe (cpu_fast)")
    parser.add_argument(
        "--text", type=Path, help="a copy of tiny Shakespeare (else it is downloaded)"
    )
    parser.add_argument(
        "--peer",
        type=Path,
        help="nanoGPT's directory: train it in turn, as it advises for the device",
    )
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE for train.py")


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for the recipe and one for the peer: seconds of steps, and losses.

    The recipe's seconds are to its target, or of all steps if it reaches none. The peer runs on the
    same device for the number of steps in `SETTINGS`, with evaluations not timed; its loss is that
    of its last checkpoint. Each repeat uses another seed.

    Raises:
        UserError: a file is missing, or `train.py` refuses the recipe or an override.
    """
    if options.text is not None and not options.text.is_file():
        raise UserError(f"--text={options.text}: there is no such file")
    if options.peer is not None and options.text is None:
        raise UserError("--peer needs --text FILE, to train nanoGPT on as well")
    if options.peer is not None and not (options.peer / "train.py").is_file():
        raise UserError(f"--peer={options.peer}: has no train.py of nanoGPT")
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        place = [] if options.text is None else [f"data.path={options.text.absolute()}"]
        for seed in range(1, options.repeats + 1):
            run = Path(directory) / f"ours{seed}"
            setting = (f"experiment={options.experiment}", f"seed={seed}", *place)
            began = time.perf_counter()
            summary = run_training(run, *setting, *options.overrides)
            seconds = summary["seconds_to_target"]
            ours.append(
                {
                    "steps": summary["train_seconds"] if seconds is None else seconds,
                    "all": time.perf_counter() - began,
                    "loss": summary["best_val_loss"],
                }
            )
            if options.peer is not None:
                device = "cuda" if summary["device"].startswith("cuda") else "cpu"
                theirs.append(_nanogpt(options.peer, options.text, Path(directory), seed, device))
    rows = [_row(options.experiment, ours)]
    if theirs:
        rows.append(_row(f"nanoGPT, {SETTINGS[device][0]:,} steps", theirs))
        for row in rows:
            row["ratio"] = rows[-1]["s of steps"] / row["s of steps"]
    return rows


def _nanogpt(peer: Path, text: Path, directory: Path, seed: int, device: str) -> dict[str, Any]:
    """Train nanoGPT with its settings for `device` on `text`, in a folder of its own."""
    folder = directory / f"nanogpt{seed}"
    data = folder / "data" / "shakespeare_char"
    data.mkdir(parents=True)
    for entry in peer.absolute().iterdir():
        if entry.name != "data":
            os.symlink(entry, folder / entry.name)
    characters = "".join(Corpus([text]).read())
    vocabulary = Vocabulary(characters)
    ids = vocabulary.encode(characters).astype(np.uint16)
    end = int(0.9 * len(ids))
    ids[:end].tofile(data / "train.bin")
    ids[end:].tofile(data / "val.bin")
    with open(data / "meta.pkl", "wb") as file:
        pickle.dump({"vocab_size": len(vocabulary)}, file)

    script = (peer / "train.py").read_text()  # its seed is fixed to 1337, without an option
    script = script.replace("manual_seed(1337", f"manual_seed({seed}")
    # Logging synchronises with the device; do so at every tenth step, its default log interval.
    script = script.replace("loss.item() *", "(loss.item() if iter_num % 10 == 8 else 0.0) *")
    (folder / "train.py").unlink()
    (folder / "train.py").write_text(script)
    last, settings = SETTINGS[device]
    command = [sys.executable, "train.py", "config/train_shakespeare_char.py", *settings]
    began = time.perf_counter()
    output = output_of([*command, f"--max_iters={last}", "--log_interval=1"], cwd=folder)
    seconds = time.perf_counter() - began
    steps = [float(ms) for ms in re.findall(r"^iter \d+: .* time ([\d.]+)ms", output, re.MULTILINE)]
    evaluated = range(0, len(steps), 250)  # these times include the evaluation before the step
    counted = [ms for i, ms in enumerate(steps) if i not in evaluated]
    mean = sum(counted) / len(counted)
    return {
        "steps": mean * last / 1e3,
        "all": seconds,
        "loss": float(output_of([sys.executable, "-c", EXACT_LOSS], cwd=folder).split()[-1]),
    }


def _row(what: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    losses = [run["loss"] for run in runs]
    return {
        "what": what,
        **spread("s of steps", [run["steps"] for run in runs]),
        "s in all": statistics.median(run["all"] for run in runs),
        "mean loss": statistics.mean(losses),
        "best": min(losses),
        "worst": max(losses),
    }
