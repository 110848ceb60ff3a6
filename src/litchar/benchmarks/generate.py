"""Sample text: milliseconds per step, compared with nanoGPT's own loop if --peer names it."""

import argparse
import math
import runpy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litchar.benchmarks import spread
from litchar.errors import UserError, check_integer

if TYPE_CHECKING:
    import torch

VOCAB_SIZE = 65
# Name, model sizes, fraction of --characters.
SIZES = (
    ("0.80M", {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64}, 1.0),
    ("10.65M", {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256}, 0.1),
)
KINDS: dict[str, dict[str, Any]] = {
    "rotary": {},
    "learned": {
        "position": "learned",
        "norm": "layer",
        "norm_eps": 1e-5,
        "qk_norm": False,
        "activation": "gelu",
        "tie_head": True,
        "init": "gpt2",
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--peer", type=Path, help="directory of nanoGPT, unpacked")
    parser.add_argument(
        "--characters",
        type=int,
        default=2000,
        help="characters to sample (2000), rounded up to a multiple of 16; a tenth for 10.65M",
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="batch sizes (1)")
    parser.add_argument("--device", help="cpu or cuda (the best available)")


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each size, batch size and sampler: median and range of ms per step.

    Weights are random, not trained. The samplers take turns, each starting from a full context, so
    the time is the steady state of a long text; it excludes loading and a warm-up. nanoGPT computes
    as its sample.py does by default: on a GPU in mixed bfloat16. There it has another row for
    float32, in which ours computes.

    Raises:
        UserError: a batch size or `--characters` is below 1, or `--peer` has no model.py.
    """
    from litchar.device import choose_device
    from litchar.generation.ahead import GROUP

    device = choose_device(options.device)
    check_integer("--characters", options.characters, 1)
    for batch in options.batch:
        check_integer("--batch", batch, 1)
    rows = []
    for name, sizes, share in SIZES:
        n = GROUP * math.ceil(options.characters * share / GROUP)
        samplers = {f"litchar, {kind}": _ours(device, sizes, kind) for kind in KINDS}
        if options.peer:
            peers = {"nanoGPT": _peer(options.peer, device, sizes, mixed=device.type != "cpu")}
            if device.type != "cpu":
                peers["nanoGPT, float32"] = _peer(options.peer, device, sizes, mixed=False)
            samplers = peers | samplers
        for batch in options.batch:
            times: dict[str, list[float]] = {sampler: [] for sampler in samplers}
            for _ in range(options.repeats):
                for sampler, sample in samplers.items():
                    seconds = sample(batch, n)
                    times[sampler].append(1000 * seconds / n)
            peer = statistics.median(times["nanoGPT"]) if options.peer else None
            for sampler, each in times.items():
                median = statistics.median(each)
                rows.append(
                    {
                        "what": f"{name}, batch {batch}, {device.type}: {sampler}",
                        **spread("ms/step", each),
                        "characters/s": 1000 * batch / median,
                        "times nanoGPT": peer and peer / median,
                    }
                )
    return rows


Sample = Callable[[int, int], float]  # batch size and characters -> seconds


def _ours(device: "torch.device", sizes: dict[str, Any], kind: str) -> Sample:
    import numpy as np

    from litchar.generation import Sampling, generate
    from litchar.generation.ahead import GROUP
    from litchar.models import Transformer

    model = Transformer(VOCAB_SIZE, **sizes, **({"init": "torch"} | KINDS[kind])).to(device).eval()
    sampling = Sampling(temperature=0.8)

    def sample(batch: int, n: int) -> float:
        idx = np.zeros((batch, model.block_size), dtype=np.int64)
        # On a GPU steps are computed ahead: as far ahead at the end of the measurement as before.
        steps = generate(model, idx, 3 + n + 2 * GROUP, sampling)
        for _ in range(3):
            next(steps)
        began = time.perf_counter()
        for _ in range(n):
            next(steps)
        return time.perf_counter() - began

    return sample


def _peer(directory: Path, device: "torch.device", sizes: dict[str, Any], mixed: bool) -> Sample:
    import torch

    if not (directory / "model.py").is_file():
        raise UserError(f"--peer={directory}: there is no model.py of nanoGPT")
    theirs = runpy.run_path(str(directory / "model.py"))
    config = theirs["GPTConfig"](vocab_size=VOCAB_SIZE, bias=False, dropout=0.0, **sizes)
    model = theirs["GPT"](config).to(device).eval()

    def sample(batch: int, n: int) -> float:
        idx = torch.zeros((batch, config.block_size), dtype=torch.int64, device=device)
        torch.backends.cuda.matmul.allow_tf32 = mixed
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            model.generate(idx, 3, temperature=0.8, top_k=200)
            began = time.perf_counter()
            model.generate(idx, n, temperature=0.8, top_k=200)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        return time.perf_counter() - began

    return sample
