"""`summary.json`: what a run came to, in one file."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

KEYS = (
    "status",  # running, completed, interrupted, diverged or failed
    "error",
    "steps",
    "best_step",
    "unit",  # what a token is: character or byte
    "train_loss",  # nats per token, as are all losses
    "val_loss",
    "best_val_loss",
    "best_val_bpc",  # bits per character
    "best_val_bpb",  # bits per byte
    "seconds_to_target",
    "test_loss",
    "test_bpc",
    "test_bpb",
    "parameters",
    "vocab_size",
    "characters_seen",  # tokens, as are those per second
    "train_seconds",  # steps alone
    "total_seconds",  # process start to end
    "characters_per_second",
    "peak_memory_bytes",
    "device",
    "precision",
    "seed",
    "checkpoint",
)


def write_summary(run_dir: Path, **changes: Any) -> dict[str, Any]:
    """Change figures of the run's `summary.json`, and return all of them.

    Raises:
        KeyError: a figure has no place there.
    """
    place = run_dir / "summary.json"
    summary = dict.fromkeys(KEYS)
    with contextlib.suppress(FileNotFoundError, ValueError):  # ValueError: a power cut emptied it
        summary |= json.loads(place.read_text())
    for key, value in changes.items():
        if key not in summary:
            raise KeyError(key)
        summary[key] = value
    run_dir.mkdir(parents=True, exist_ok=True)
    draft = place.with_name(".summary.json.draft")
    with open(draft, "w") as file:
        file.write(json.dumps(summary, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, place)
    return summary
