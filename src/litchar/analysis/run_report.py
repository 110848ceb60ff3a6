"""The report of a run: the contents of its directory and what its model does, on one page."""

import base64
import io
import json
import math
import shlex
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from litchar.analysis.characters import label_of
from litchar.analysis.curves import loss_figure, small_figure
from litchar.analysis.page import (
    drawing,
    duration,
    escape,
    paragraph,
    section,
    table,
    text_block,
    tiles,
)
from litchar.analysis.probe import Overlap, Probed, probe
from litchar.analysis.runs import Run
from litchar.analysis.surprise_sections import STYLE as SURPRISE_STYLE
from litchar.analysis.surprise_sections import (
    confusion_section,
    passages_section,
    surprise_section,
)
from litchar.checkpoints.checkpoint import best_of
from litchar.data.splits import Splits
from litchar.device import choose_device
from litchar.errors import UserError
from litchar.generation.scoring import characters
from litchar.losses import perplexity
from litchar.overrides import without_passwords
from litchar.run_dir import ROOT
from litchar.settings import flatten
from litchar.text.vocabulary import printable
from litchar.text.yardsticks import Yardstick
from litchar.training.outcome import together, verdict
from litchar.training.validated import validated_on

COPIED_FROM = 16  # tokens of the shortest passage that is marked as copied
SAMPLES = 6  # shown of those along training
MOST_MAPS = 64

Figure = tuple[str, str, str]  # its name, its value, and its meaning in words

STYLE = (
    SURPRISE_STYLE
    + """
.top { display: grid; grid-template-columns: minmax(0, 3fr) minmax(11rem, 1fr); gap: 1.2rem;
  align-items: center; margin: 1rem 0; }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 45%), 1fr));
  gap: .8rem; }
.maps svg text { font: 7.4px ui-monospace, monospace; fill: currentColor; }
.maps image { image-rendering: pixelated; }
.sample { display: grid; grid-template-columns: 5.5rem minmax(0, 1fr); gap: .2rem .6rem;
  margin: .6rem 0; align-items: start; }
.sample > :first-child { color: var(--soft); font-variant-numeric: tabular-nums;
  padding-top: .6rem; }
mark { background: rgba(var(--mark), .35); color: inherit; border-radius: 2px; }
.facts td:nth-child(-n+2) { min-width: 9rem; } .facts td:nth-child(3) { color: var(--soft); }
@media (max-width: 44rem) {
  .top { grid-template-columns: minmax(0, 1fr); }
  .top svg text { font-size: 11.5px !important; }
  .top svg [id^=legend] text { font-size: 9.5px !important; }
  .facts tr { display: grid; grid-template-columns: 9rem minmax(0, 1fr); margin: .3rem 0; }
  .facts td { padding: 0 .5rem 0 0; } .facts td:nth-child(3) { grid-column: 1 / -1; }
  .sample { grid-template-columns: minmax(0, 1fr); } .sample > :first-child { padding: 0; } }
"""
)


def run_report(run: Run, splits: Splits | None, device: str | None) -> str:
    """Return the report of a run as the body of a page.

    Args:
        splits: of the run's text, if it is open already.
        device: to run the model on; None: the best available.

    Raises:
        UserError: there is no such device.
    """
    chosen = choose_device(device)
    probed, lack = None, "This run has no checkpoint, so there is no model to look at."
    if (checkpoint := best_of(run.path)) is not None:
        try:
            probed = probe(checkpoint, splits, chosen)
            lack = probed.lack
        except (UserError, PermissionError) as error:
            lack = str(error)
    return "".join(_sections(run, probed, lack))


def _sections(run: Run, probed: Probed | None, lack: str) -> Iterator[str]:
    # A mixture's loss is a weighted mean; yardsticks know no weights.
    yardsticks = probed.yardsticks if probed and not probed.mixed else ()
    yield _top(run, probed, yardsticks)
    yield _writing(run, probed)
    yield _curves(run)
    figures = table(("", "", ""), _figures(run, probed))
    yield section("Figures", f'<div class="facts">{figures}</div>')
    if probed is None or probed.surprise is None:
        yield section("Where the model is surprised", note=f"Not shown. {lack}")
    else:
        yield surprise_section(probed.surprise, probed.vocabulary)
        yield passages_section(probed.surprise, probed.vocabulary)
        yield confusion_section(probed.surprise, probed.vocabulary)
    yield _copying(run, probed, lack)
    if probed is not None:
        yield _attention(probed)
    yield _settings(run)
    yield _environment(run)
    yield _again(run)


# What a reader wants to know first


def _top(run: Run, probed: Probed | None, yardsticks: Sequence[Yardstick]) -> str:
    steps, seen = run.known("steps", "characters_seen") or (0, 0)
    per_step = seen / steps if steps and seen else None
    counted = [(row.name, row.bits_per_character) for row in yardsticks if row.name != "uniform"]
    picture = paragraph("Nothing has been measured yet.")
    if run.rows:
        draw = loss_figure(run.rows, per_step, counted, run.unit)
        picture = drawing(draw, 7.4, 4.2)
    sentence = " ".join(_sentences(run, probed, yardsticks))
    return (
        f'<p class="verdict">{escape(sentence)}</p>'
        f'<div class="top">{picture}'
        f'<div class="tiles">{tiles(_tiles(run, yardsticks))}</div></div>\n'
    )


def _sentences(run: Run, probed: Probed | None, yardsticks: Sequence[Yardstick]) -> Iterator[str]:
    """Yield the verdict: what was trained, how good it is, its curve, whether it copies."""
    summary, status = run.summary, run.status
    model = str(run.config.get("model", {}).get("_target_", "A model")).rpartition(".")[2]
    size = f" of {summary['parameters']:,} parameters" if summary.get("parameters") else ""
    steps = summary.get("steps") or 0
    began = f"{model}{size}, trained for {steps:,} step{'s' * (steps != 1)}"
    best = summary.get("best_val_bpc")
    if best is None:
        yield f"{began}; it was never validated."
    elif part := validated_on(run.settings):
        yield f"{began}: {best:.3f} bits per character. It was validated {part}."
    else:
        yield f"{began}: {best:.3f} bits per character on text that it never saw."
        yield from _beside(best, yardsticks)
    if status != "completed":
        reason = f" ({summary['error']})" if summary.get("error") else ""
        yield {
            "running": "It is still training, or was killed.",
            "interrupted": f"It was interrupted{reason}; resume=auto continues it.",
            "diverged": f"It diverged: {summary.get('error')}.",
        }.get(status, f"It ended as {status}{reason}.")
    elif len(run.history) > 1:
        yield f"The curve: {verdict(run.history, best, yardsticks, run.settings)}."
    if probed and probed.written and probed.held_out:
        yield _copies(probed.written, probed.held_out, probed.vocabulary.unit)


def _beside(best: float, yardsticks: Sequence[Yardstick]) -> Iterator[str]:
    if not yardsticks:
        return
    strongest = min(yardsticks, key=lambda row: row.bits_per_character)
    share = best / strongest.bits_per_character - 1
    comparison = f"{abs(share):.0%} {'fewer' if share < 0 else 'more'} than"
    if abs(share) < 0.005:
        comparison = "as many as"
    elif share > 1:
        comparison = f"{1 + share:.1f} times what"
    needed = f"{strongest.bits_per_character:.3f}"
    yield f"That is {comparison} counting {strongest.name}s needs ({needed})."


def _tiles(run: Run, yardsticks: Sequence[Yardstick]) -> Iterator[tuple[str, str]]:
    unit = run.unit
    if best := run.known("best_val_bpc", "best_val_loss", "best_step"):
        bpc, loss, step = best
        counts = ", ".join(f"{y.name} {y.bits_per_character:.2f}" for y in yardsticks[-2:])
        beside = f"; counting: {counts}" if counts else ""
        yield (
            f"{bpc:.3f}",
            f"bits per character of validation text, at step {step:,}{beside}",
        )
        lowest = min(run.history, key=lambda row: row["val/loss"], default={})
        train = lowest.get("train/eval_loss")
        gap = f"; training text: {train:.3f}" if train is not None else ""
        yield f"{loss:.3f}", f"the same in nats per {unit}{gap}"
    seconds, per_second = run.known("train_seconds", "characters_per_second") or (0, 0)
    if seconds:
        speed = f"{per_second / 1e6:.1f} million" if per_second >= 1e6 else f"{per_second:,.0f}"
        yield duration(seconds), f"of steps, {speed} {unit}s per second"


def _writing(run: Run, probed: Probed | None) -> str:
    parts = []
    if probed is not None:
        for i, ids in enumerate(probed.texts[:2]):
            reach = probed.written.copied.reach[i] if probed.written else np.zeros(len(ids))
            parts.append(
                f'<div class="sample"><div>text {i + 1}</div>{_marked(probed, ids, reach)}</div>'
            )
    along = "".join(
        f'<div class="sample"><div>step {step:,}</div>{text_block(printable(text))}</div>'
        for step, text in _spread(run.samples)
    )
    if along:
        parts.append("<h3>Along training</h3>" + along)
    note = ""
    if probed is not None and probed.written:
        unit, kept = probed.vocabulary.unit, cast(Path, best_of(run.path)).stem  # best, or last
        note = (
            f"At temperature 1, from the {kept} checkpoint. Marked: passages of {COPIED_FROM} "
            f"{unit}s or more that occur word for word in the training text."
        )
    return section("What it writes", *parts, note=note if parts else "It has written nothing yet.")


def _spread(samples: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """Return at most `SAMPLES` samples, evenly spaced, including the first and the last."""
    if len(samples) <= SAMPLES:
        return list(samples)
    return [samples[round(i)] for i in np.linspace(0, len(samples) - 1, SAMPLES)]


def _marked(probed: Probed, ids: np.ndarray, reach: np.ndarray) -> str:
    """Return a text as HTML in which copied passages are marked."""
    pieces, inside = [], False
    for piece, start, stop in characters(probed.vocabulary, ids):
        copied = bool((reach[start:stop] >= COPIED_FROM).all())
        if copied != inside:
            pieces.append("<mark>" if copied else "</mark>")
            inside = copied
        pieces.append(escape(printable(piece)))
    return f'<pre class="text" dir="auto">\n{"".join(pieces)}{"</mark>" * inside}</pre>'


def _curves(run: Run) -> str:
    kinds = {
        "lr": "learning rate",
        "speed/chars_per_second": f"{run.unit}s per second",
        "grad_norm": "norm of the gradient",
    }
    draws = (small_figure(run.rows, name, label) for name, label in kinds.items())
    figures = "".join(drawing(draw, 4, 2.5) for draw in draws if draw)
    return section("Curves", f'<div class="row">{figures}</div>' if figures else "none")


def _figures(run: Run, probed: Probed | None) -> Iterator[Figure]:
    """Yield the figures of `summary.json`, and the yardsticks."""
    summary = run.summary
    yield from _losses(run)
    yield from _counted(run, probed)
    yield from _spent(run, probed)
    yield "device", str(summary.get("device")), f"precision {summary.get('precision')}"
    yield "seed", str(summary.get("seed")), ""
    yield "status", run.status, str(summary.get("error") or "")


def _losses(run: Run) -> Iterator[Figure]:
    summary, unit = run.summary, run.unit

    def losses(name: str, value: str, words: str) -> Iterator[Figure]:
        if (loss := summary.get(value)) is not None:
            yield name, f"{loss:.4f} nats per {unit}", words

    best, step = summary.get("best_val_loss"), summary.get("best_step")
    if best is not None:
        nats = f"{best:.4f} nats per {unit}" + ("" if step is None else f", step {step:,}")
        units = {"best_val_bpc": "bits per character", "best_val_bpb": "per byte"}
        known = ((summary.get(name), words) for name, words in units.items())
        bits = [f"{value:.3f} {words}" for value, words in known if value is not None]
        among = f"as unsure as among {perplexity(best):.1f} equally likely {unit}s"
        yield "best validation loss", nats, "; ".join(filter(None, [", ".join(bits), among]))
    if summary.get("val_loss") != best:
        words = "the further above the best, the more of the training text the model knows by heart"
        yield from losses("last validation loss", "val_loss", words)
    yield from losses(
        "last training loss",
        "train_loss",
        "on a fixed sample of the training text; if far below validation, more text would help",
    )
    yield from losses("test loss", "test_loss", "of the best checkpoint, on text kept for the end")


def _counted(run: Run, probed: Probed | None) -> Iterator[Figure]:
    """Yield the yardsticks, and the loss of a mixture that is comparable with them."""
    unit = run.unit
    if (loss := together(run.history)) is not None:
        bits = f"{loss / math.log(2):.3f} bits per {unit}"
        words = (
            f"every {unit} counts equally, as in the counts below; the losses above are weighted"
        )
        yield "all texts together", bits, words
    where = "all training texts together" if probed and probed.mixed else "the training text"
    for row in probed.yardsticks if probed else ():
        guess = row.name == "uniform"
        name = "an even guess" if guess else f"counting {row.name}s"
        words = f"every {unit} equally likely" if guess else f"in {where}; {row.note}"
        if unit == "byte" and loss is not None:  # all texts together, as above
            yield name, f"{row.bits_per_byte:.3f} bits per byte", words
        else:
            yield name, f"{row.bits_per_character:.3f} bits per character", words


def _spent(run: Run, probed: Probed | None) -> Iterator[Figure]:
    """Yield the steps, time and memory that the run took, and the size of the model."""
    summary, unit = run.summary, run.unit
    if summary.get("seconds_to_target") is not None:
        yield "target", f"reached after {summary['seconds_to_target']:.1f} s of steps", ""
    steps, seen = run.known("steps", "characters_seen") or (0, 0)
    if steps:
        words = f"{seen:,} {unit}s seen"
        if probed and probed.train is not None:
            words += f", {seen / len(probed.train):.1f} times the training text"
        yield "steps", f"{steps:,}", words
    known = run.known("train_seconds", "total_seconds", "characters_per_second")
    seconds, total, speed = known or (0, 0, 0)
    if seconds:
        words = f"{speed:,.0f} {unit}s per second; {duration(total)} from start to end"
        yield "time", f"{duration(seconds)} of steps", words
    if summary.get("peak_memory_bytes"):
        yield "memory", f"{summary['peak_memory_bytes'] / 1e6:,.0f} MB", "at its peak"
    if size := run.known("parameters", "vocab_size"):
        yield "model", f"{size[0]:,} parameters", f"with a vocabulary of {size[1]:,}"


# Copying


def _copying(run: Run, probed: Probed | None, lack: str) -> str:
    title = "Is it copying?"
    if probed is None or probed.surprise is None:
        return section(title, note=f"Not shown. {lack}")
    if probed.written is None or probed.held_out is None:
        command = f"python scripts/report.py {shlex.quote(str(run.path))}"
        return section(title, note=f"The training text is long; to search it: {command}")
    written, held_out = (o.copied.shares for o in (probed.written, probed.held_out))
    rows = [
        (f"{n}", f"{written[n]:.1%}", f"{held_out[n]:.1%}" if n in held_out else "")
        for n in written
    ]
    unit = probed.vocabulary.unit
    note = (
        f"The share of sequences of that many {unit}s that occur word for word in the training "
        f"text: in {sum(map(len, probed.texts)):,} {unit}s that the model wrote and, for "
        f"comparison, in {len(probed.surprise.ids):,} {unit}s of validation text, which shares "
        "with the training text what any two texts of its kind do."
    )
    parts = [f"<p>{escape(_copies(probed.written, probed.held_out, unit))}</p>"]
    parts.append(table((f"# {unit}s", "# written by the model", "# validation text"), rows))
    if (longest := probed.written.longest) is not None:
        passage = probed.texts[longest.text][longest.start : longest.start + longest.length]
        parts.append(f"<h3>The longest copied passage: {longest.length:,} {unit}s</h3>")
        parts.append(text_block(printable(probed.vocabulary.decode(passage))))
        if (yardstick := probed.held_out.longest) is not None:
            parts.append(
                paragraph(
                    f"It occurs at {longest.place:,} in the training text. The longest in that "
                    f"validation text has {yardstick.length:,} {unit}s."
                )
            )
    return section(title, *parts, note=note)


def _copies(written: Overlap, held_out: Overlap, unit: str) -> str:
    """Return in words whether the model copies: whether long sequences of its samples occur in the
    training text clearly more often than those of validation text."""
    n = 2 * COPIED_FROM
    share, usual = (overlap.copied.shares.get(n, 0.0) for overlap in (written, held_out))
    copies = share > 2 * usual + 0.01
    return (
        f"It {'copies' if copies else 'does not copy'}: {share:.1%} of its sequences of {n} "
        f"{unit}s occur in the training text, compared with {usual:.1%} of validation text's."
    )


# Attention


def _attention(probed: Probed) -> str:
    title = "Attention"
    if not probed.maps:
        return section(title, note="This model has no attention.")
    symbols, unit = probed.vocabulary.symbols, probed.vocabulary.unit
    labels = [label_of(symbols[token], unit) for token in probed.line]
    heads = [(layer, head, m) for layer, maps in probed.maps.items() for head, m in enumerate(maps)]
    drawn = "".join(
        _map(f"{layer.replace('blocks.', 'layer ')}, head {head}", weights, labels)
        for layer, head, weights in heads[:MOST_MAPS]
    )
    note = (
        f"Each row is a {unit} of a line of text, each column one that it looks back at; the "
        "stronger the colour, the more it takes from there."
    )
    if len(heads) > MOST_MAPS:
        note += f" The first {MOST_MAPS} of {len(heads)} heads."
    return section(title, f'<div class="maps">{drawn}</div>', note=note)


def _map(title: str, weights: Tensor, labels: Sequence[str]) -> str:
    """Return a head's weights, (T, T), as an SVG picture with labelled rows and columns."""
    side, cell, edge = len(labels), 8, 12
    pixels = np.zeros((side, side, 4), np.uint8)
    pixels[..., :3] = (37, 118, 214)
    pixels[..., 3] = np.rint(255 * weights.clamp(0, 1).sqrt().numpy())
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    source = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
    size = edge + side * cell
    texts = "".join(
        f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(label)}</text>'
        for i, label in enumerate(labels)
        for x, y, anchor in (
            (edge - 2, edge + i * cell + 6, "end"),
            (edge + i * cell + 4, edge - 3, "middle"),
        )
    )
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {size} {size}">{texts}'
        f'<image x="{edge}" y="{edge}" width="{side * cell}" height="{side * cell}" '
        f'href="{source}"/></svg></figure>'
    )


# How to reproduce it


def _settings(run: Run) -> str:
    parts = []
    changed = changed_settings(run)
    if changed is not None:
        parts.append("<h3>Changed from the defaults</h3>")
        parts.append(
            table(("setting", "here", "default"), changed) if changed else "<p>Nothing.</p>"
        )
    rows = [(key, _value(value)) for key, value in run.settings.items()]
    if rows:
        title = f"<summary>All {len(rows)} settings, resolved</summary>"
        parts.append(f"<details>{title}{table(('', ''), rows)}</details>")
    return section("Settings", *(parts or [paragraph("The run has no config.yaml.")]))


def changed_settings(run: Run) -> list[tuple[str, str, str]] | None:
    """Return the settings in which the run differs from the defaults of `conf/`: keys, values and
    defaults; None if either configuration is missing."""
    conf = ROOT / "conf"
    if not run.composed or not (conf / "train.yaml").is_file():
        return None
    begun = GlobalHydra.instance().is_initialized()  # by the run that ends with this report
    begin = nullcontext() if begun else initialize_config_dir(str(conf), version_base="1.3")
    with begin:
        composed: Any = OmegaConf.to_container(compose("train"))
    defaults = flatten(composed)
    here = flatten(run.composed)
    device = str(run.summary.get("device")).partition(":")[0]
    elsewhere = {"cpu", "cuda", "mps"} - {device}
    places = ("run_dir", "outputs_dir", "resume", "name")
    left_out = (*places, *(f"by_device.{device}." for device in elsewhere))
    return [
        (
            key.removeprefix(f"by_device.{device}."),  # the key that it resolves
            _value(value),
            _value(defaults[key]) if key in defaults else "not set",
        )
        for key, value in here.items()
        if value != defaults.get(key, ...) and not key.startswith(left_out)
    ]


def _value(value: Any) -> str:
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return without_passwords(shown)


def _environment(run: Run) -> str:
    shown = {k: v for k, v in run.environment.items() if k not in ("command", "changes")}
    rows = [(key, _value(value)) for key, value in shown.items()]
    note = ""
    if (run.path / "code.diff").is_file():
        note = "The code differed from its revision; code.diff, beside this page, shows how."
    if not rows:
        note = "The run has no environment.json."
    return section("Environment", *([table(("", ""), rows)] if rows else []), note=note)


def _again(run: Run) -> str:
    """Return the commands that repeat the run, and those that use its results."""
    own = ("run_dir=", "resume=", "hydra.", "sweep.")
    typed = [without_passwords(str(o)) for o in run.overrides if not str(o).startswith(own)]
    cwd = run.environment.get("cwd", str(ROOT))
    checkout = [] if cwd == str(ROOT) else ["-C", str(ROOT)]
    script = ROOT / "scripts" / "train.py" if checkout else "scripts/train.py"
    lines = [shlex.join(["cd", cwd])]
    if (revision := run.environment.get("revision")) is not None:
        lines.append(shlex.join(["git", *checkout, "checkout", revision]))
    if (changes := run.path / "code.diff").is_file():
        lines.append(shlex.join(["git", *checkout, "apply", str(changes)]))
    lines.append(shlex.join(["python", str(script), *run.options, *typed]))
    place = shlex.quote(str(run.path))
    use = [f"python scripts/generate.py checkpoint={place}", f"tensorboard --logdir {place}"]
    return section(
        "Run it again",
        text_block("\n".join(lines)),
        "<h3>Use the result</h3>",
        text_block("\n".join(use)),
    )
