"""What a run prints for the user when it begins, and when it has ended."""

import math
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from litchar.data.splits import Splits
from litchar.device import device_name
from litchar.launched import Place
from litchar.settings import within
from litchar.terminal import Terminal
from litchar.text.store import boundaries
from litchar.text.vocabulary import printable
from litchar.text.yardsticks import Yardstick
from litchar.training.validated import validated_on

if TYPE_CHECKING:  # a report, which tells of an outcome as well, needs no Lightning
    from litchar.training.prepare import Setup

SIZES = ("n_layer", "n_head", "n_embd", "dropout", "noise")
ENOUGH = 5  # validations needed to call a curve flat


def headline(setup: "Setup", place: Place, summary: dict[str, Any]) -> str:
    """Return the lines printed when training begins: text, model, device, precision, length."""
    splits = setup.data.splits
    store = splits.store
    ranks = f"{place.world_size} ranks, each on " if place.world_size > 1 else ""
    lines = [
        f"{splits.text.corpus}: {len(store.tokens):,} {store.vocabulary.unit}s, "
        f"a vocabulary of {len(store.vocabulary)}",
        *store.changes,
        *_mixture(splits),
        *_held_out(splits),
        *([] if store.vocabulary.document is None else [_documents(splits)]),
        f"{type(setup.module.model).__name__}: {summary['parameters']:,} parameters{_sizes(setup)}",
        f"{ranks}{device_name(setup.device)}, {summary['precision']}",
        *_length(setup),
        *_warmup(setup),
    ]
    if setup.resumed is not None:
        resumed = setup.resumed
        lines.append(f"Resuming from {resumed.path.name}, step {resumed.step:,}")
    return "\n".join(lines)


def _mixture(splits: Splits) -> list[str]:
    """Return a line for each corpus of a mixture: its weight and its size."""
    weights = splits.text.weights.items()
    return [
        f"{name}: {weight:.1%} of the windows, {stop - start:,} {splits.text.unit}s to train on"
        for (name, weight), (start, stop) in zip(weights, splits.parts("train"), strict=False)
    ]


def _held_out(splits: Splits) -> list[str]:
    """Return a line that says which files are not trained on, if there are several: the last ones
    may be of another kind."""
    files = splits.text.corpus.paths
    if len(files) < 2 or splits.text.mixture or splits.store.vocabulary.document is not None:
        return []
    left = len(splits.store.tokens) - len(splits["train"])
    return [
        f"Held out: the last {left:,} {splits.store.vocabulary.unit}s of the files, which are read "
        f"in order; the last is {files[-1].name}"
    ]


def _documents(splits: Splits) -> str:
    """Return a line with the number of documents and their share in each split."""
    counts = {name: len(boundaries(ids.numpy())) - 1 for name, ids in splits.items()}
    whole = len(splits.store.tokens) - 1
    shares = (
        f"{counts[name]:,} {name} ({(len(ids) - 1) / whole:.1%})" for name, ids in splits.items()
    )
    return f"{sum(counts.values()):,} documents: {', '.join(shares)}"


def _sizes(setup: "Setup") -> str:
    """Return the model's sizes and dropout in brackets: the defaults depend on device and text."""
    model = setup.config.model
    chosen = ((key, model.get(key)) for key in SIZES)
    sizes = ", ".join(f"{key}={value}" for key, value in chosen if value)
    return sizes and f" ({sizes})"


def _length(setup: "Setup") -> list[str]:
    """Return a line with the number of steps and what it amounts to, unless time ends the run or it
    is for one batch."""
    data, trainer = setup.data, setup.config.trainer
    if trainer.max_steps < 1 or trainer.overfit_batches:
        return []
    windows = data.batch_size * trainer.accumulate_grad_batches
    passes = trainer.max_steps * windows * data.block_size / len(data.splits["train"])
    return [
        f"{trainer.max_steps:,} steps of {windows:,} windows of {data.block_size:,} "
        f"{data.text.unit}s: {passes:,.{0 if passes >= 10 else 1}f} passes over the text"
    ]


def _warmup(setup: "Setup") -> list[str]:
    """Return a line if the run is too short for its warm-up."""
    steps, warmup = setup.config.trainer.max_steps, setup.config.scheduler.get("warmup_steps")
    if steps < 1 or not warmup or 2 * warmup <= steps:
        return []
    peak = max(setup.module.schedule(step, steps) for step in range(0, steps, 1 + steps // 1000))
    if peak > 0.75:
        return []
    return [
        f"The learning rate rises to {peak:.0%} of optimizer.lr: scheduler.warmup_steps={warmup} "
        f"is long for a run of {steps}"
    ]


def verdict(
    history: list[dict[str, float]],
    bits: float | None,
    yardsticks: Iterable[Yardstick],
    settings: Mapping[str, Any],
) -> str:
    """Say in words what the validation curve means.

    A last loss more than 1% above the best means overfitting, or too high a learning rate if the
    training loss rose as well. The curve is still improving if the loss fell by more than 1% of the
    best over the last fifth of the run, and otherwise flat, unless there were too few validations.
    A run that was too short ends flat as well if its learning rate decayed; where bigrams do
    better, it surely was.

    Args:
        history: `step` and losses of each validation.
        bits: bits per character at the best validation, if known.
        yardsticks: of the same text, if known.
        settings: of the run, flat.
    """
    if batches := settings.get("trainer.overfit_batches"):
        learned = "1 batch is" if batches == 1 else f"{batches} batches are"
        return f"of no meaning where {learned} learned by heart: look at the training loss"
    if len(history) < 2:
        return f"validated {'once' if history else 'never'}: too rarely to show a trend"
    best = min(history, key=lambda point: point["val/loss"])
    last = history[-1]
    margin = 0.01 * best["val/loss"]
    if last["val/loss"] > best["val/loss"] + margin:
        if last.get("train/eval_loss", -math.inf) > best.get("train/eval_loss", math.inf):
            return (
                f"worse since step {best['step']:,.0f}, on the training text too: "
                "the learning rate may be too high"
            )
        return (
            f"overfitting since step {best['step']:,.0f}: stop there, or try more text, more "
            "model.dropout or a smaller model"
        )
    limits = [value for key, value in settings.items() if within(key, ["trainer.max_time"])]
    in_time = limits not in ([], [None]) and last["step"] != settings["trainer.max_steps"]
    key, what = ("trainer.max_time", "time") if in_time else ("trainer.max_steps", "steps")
    more = f"more {what} ({key})"
    before = [p for p in history[:-1] if p["step"] <= 0.8 * last["step"]] or history[:1]
    if before[-1]["val/loss"] - last["val/loss"] > margin:
        return f"still improving: {more} should lower the loss further"
    if len(history) < ENOUGH:
        return f"validated {len(history)} times: too rarely to tell whether it has begun to fall"
    pairs = (row.bits_per_character for row in yardsticks if row.name == "bigram")
    if bits is not None and any(bits > 1.01 * needed for needed in pairs):
        return (
            f"flat, though counting pairs does better: {more} or a higher optimizer.lr should "
            "lower the loss"
        )
    if str(settings.get("scheduler._target_")).endswith(".constant"):
        return f"flat: more {what} alone will not help much; a larger model or more text may help"
    return (
        "flat at the end, as it may be where the learning rate falls: a longer run "
        f"({key}), a larger model or more text may help"
    )


def together(history: list[dict[str, float]]) -> float | None:
    """Return the loss over all texts of a mixture at the best validation; None without a mixture.

    Every token counts equally, as for the yardsticks, whereas `val/loss` is a weighted mean.

    Args:
        history: as for `verdict`.
    """
    best = min(history, key=lambda point: point["val/loss"], default={})
    return best.get("val/loss_all")


def print_outcome(
    terminal: Terminal,
    summary: dict[str, Any],
    history: list[dict[str, float]],
    sample: str,
    yardsticks: list[Yardstick],
    run_dir: Path,
    settings: Mapping[str, Any],
    report: Path | None = None,
) -> None:
    """Print the last sample, the metrics, where report and checkpoint are, and what to do next.

    Args:
        settings: of the run, flat.
    """
    if sample:  # empty if a finished run was resumed and had no step left
        terminal.print("\nA sample:", style="bold")
        terminal.print(Text(printable(sample)), soft_wrap=True)

    figures = _figures(summary, history, yardsticks, settings)
    table = terminal.table(("", ""), figures)
    table.columns[0].style = "bold"
    terminal.print()
    terminal.print(table)
    width = max(len(name) for name, _ in figures)
    places = {"report": report, "checkpoint": summary["checkpoint"]}
    for name, place in places.items():  # on one line, to be copied
        if place is not None:
            line = Text(f"{name:<{width}}  ", "bold").append(_shortest(Path(place)), "not bold")
            terminal.print(line, soft_wrap=True)

    if summary["checkpoint"] is None:
        return
    checkpoint = _shortest(Path(summary["checkpoint"]))
    terminal.print("\nNext:", style="bold")
    terminal.say(f"  python scripts/generate.py checkpoint={shlex.quote(checkpoint)}")
    terminal.say(f"  python scripts/evaluate.py checkpoint={shlex.quote(checkpoint)}")
    if (run_dir / "tensorboard").is_dir():  # not with a logger of one's own alone
        terminal.say(f"  tensorboard --logdir {shlex.quote(_shortest(run_dir))}")


def _figures(
    summary: dict[str, Any],
    history: list[dict[str, float]],
    yardsticks: list[Yardstick],
    settings: Mapping[str, Any],
) -> list[tuple[str, str]]:
    rows = []
    unit = summary["unit"]

    def in_bits(name: str) -> str:  # bits first, as in the yardsticks below
        per_character, per_byte = summary[f"{name}_bpc"], summary[f"{name}_bpb"]
        bits = f"{per_character:.3f} bits per character, {per_byte:.3f} per byte"
        return f"{bits}; {summary[f'{name}_loss']:.4f} nats"

    if summary["train_loss"] is not None:
        rows.append(("train loss", f"{summary['train_loss']:.4f} nats per {unit}"))
    if summary["val_loss"] is not None:
        rows.append(("val loss", f"{summary['val_loss']:.4f} nats per {unit}"))
    if summary["best_val_loss"] is not None:  # None if no best checkpoint was saved
        best = f"{in_bits('best_val')} at step {summary['best_step']:,}"
        rows.append(("best val loss", best))
        if part := validated_on(settings):
            rows.append(("validated", part))
    if summary["test_loss"] is not None:
        rows.append(("test loss", in_bits("test")))
    loss = together(history)
    if yardsticks:
        name = "bits_per_byte" if unit == "byte" else "bits_per_character"
        figures = ", ".join(f"{row.name} {getattr(row, name):.3f}" for row in yardsticks)
        beside = ""
        if loss is not None:
            beside = f", over all texts together; this model {loss / math.log(2):.3f}"
        rows.append(("yardsticks", f"{figures} {name.replace('_', ' ')}{beside}"))
    if summary["seconds_to_target"] is not None:
        rows.append(("target", f"reached after {summary['seconds_to_target']:.1f} s of steps"))
    comparable = yardsticks if loss is None else ()
    return [
        *rows,
        ("the curve", verdict(history, summary["best_val_bpc"], comparable, settings)),
        (
            "speed",
            f"{summary['characters_per_second']:,.0f} {unit}s per second; "
            f"{summary['train_seconds']:.1f} s of steps, {summary['total_seconds']:.1f} s in all",
        ),
    ]


def _shortest(path: Path) -> str:
    """Return `path` relative to the working directory, if it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
