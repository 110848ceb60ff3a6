"""`summary.json`: a run's settings and results at a glance, in one file."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from litchar.atomic import atomic_write

# Its keys and their meaning; a value is null until it is known. All losses are in nats per token.
KEYS = {
    "status": "`running`, `completed`, `interrupted`, `diverged` or `failed`",
    "error": "why it did not complete",
    "steps": "optimiser steps taken",
    "best_step": "after which the validation loss was lowest",
    "unit": "what a token is: `character` or `byte`",
    "train_loss": "of a sample of the training split, measured like `val_loss`; null without one",
    "val_loss": "of the whole validation split, at the last validation",
    "best_val_loss": "the lowest of all validations",
    "best_val_bpc": "the same in bits per character",
    "best_val_bpb": "the same in bits per byte of UTF-8",
    "seconds_to_target": "of steps, until `target_val_loss`; null if not reached or not set",
    "test_loss": "of the test split, with the best checkpoint; null without one",
    "test_bpc": "the same in bits per character",
    "test_bpb": "the same in bits per byte of UTF-8",
    "parameters": "of the model",
    "flops_per_token": "for training: 6 per multiplied weight, plus 12 L C T for attention",
    "vocab_size": "distinct characters or 256 byte values, plus the boundary of files",
    "characters_seen": "tokens trained on, over all devices",
    "train_seconds": "steps alone: no validation, samples or checkpoints",
    "total_seconds": "from the start of the process to the end of the run; of a resumed run, of "
    "all its processes, up to their last checkpoints",
    "characters_per_second": "tokens divided by `train_seconds`",
    "peak_memory_bytes": "of the GPU, or of the process",
    "device": "as torch names it",
    "precision": "as Lightning names it",
    "seed": "of the run",
    "checkpoint": "the best, or the last if there is no best",
}


def write_summary(run_dir: Path, **changes: Any) -> dict[str, Any]:
    """Update values in the run's `summary.json`, and return the whole summary.

    Raises:
        KeyError: a name is not one of the summary's keys.
    """
    place = run_dir / "summary.json"
    summary = dict.fromkeys(KEYS)
    # ValueError: a power cut emptied it; TypeError: it is no object; RecursionError: it is hostile.
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError, RecursionError):
        summary |= json.loads(place.read_text())
    for key, value in changes.items():
        if key not in summary:
            raise KeyError(key)
        summary[key] = value
    with atomic_write(place) as draft, open(draft, "w") as file:
        file.write(json.dumps(summary, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return summary


def final_metrics(summary: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of a finished run for TensorBoard's HParams page."""
    names = ("best_val_bpc", "best_step", "test_loss", "parameters", "train_seconds")
    final = {"best_val_loss": summary["best_val_loss"]}
    final |= {f"final/{name}": summary[name] for name in names}
    return {name: figure for name, figure in final.items() if figure is not None}
