"""The README of an exported model: what it is, how to use it, how it was trained, its results."""

import html
from pathlib import Path
from typing import Any

from torch import nn

from litchar.checkpoints.checkpoint import Checkpoint
from litchar.models import block_size_of
from litchar.text.mixture import mixture_weights
from litchar.text.vocabulary import printable

LOSSES = {  # by their names in a checkpoint
    "val/loss": "validation loss, nats per {unit}",
    "val/bpc": "validation, bits per character",
    "val/bpb": "validation, bits per byte",
    "train/eval_loss": "training loss, nats per {unit}",
}


def model_card(checkpoint: Checkpoint, model: nn.Module) -> str:
    """Return the README as Markdown, with the front matter that model hubs read."""
    from huggingface_hub import EvalResult, ModelCardData

    text, unit = text_of(checkpoint), checkpoint.vocabulary.unit
    figures = {
        label.format(unit=unit): f"{checkpoint.losses[name]:.4f}"
        for name, label in LOSSES.items()
        if name in checkpoint.losses
    }
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="text",
            dataset_name=text,
            dataset_split="validation",
            metric_type=metric,
            metric_name=metric.replace("_", " "),
            metric_value=round(checkpoint.losses[name], 6),
        )
        for metric, name in (("loss", "val/loss"), ("bits_per_character", "val/bpc"))
        if name in checkpoint.losses
    ]
    front = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["litchar", f"{unit}-level"],
        model_name=f"litchar, {text}" if results else None,  # needed only with results
        eval_results=results or None,
    )
    figures |= _facts(checkpoint, model)
    rows = "\n".join(f"| {name} | {value} |" for name, value in figures.items())
    length = 200 if model.rotary is not None else min(200, block_size_of(model) - 1)
    return f"""---
{front.to_yaml()}
---

# A {unit}-level language model of {text}

It predicts a text {unit} by {unit}. {_maker(checkpoint)} It loads in `transformers` without
custom code:

```python
from transformers import pipeline

generator = pipeline("text-generation", "DIRECTORY")
print(generator({_prompt(checkpoint)!r}, max_new_tokens={length})[0]["generated_text"])
```

| | |
|---|---|
{rows}

{_reading(checkpoint, model)}
"""


def _maker(checkpoint: Checkpoint) -> str:
    """Return a sentence that names the program the model was trained with."""
    provenance = checkpoint.provenance
    version = provenance.get("litchar", "")
    maker = provenance.get("imported_from", f"litchar {version}".strip())
    return f"It was trained with {_inline(str(maker))}."


def text_of(checkpoint: Checkpoint) -> str:
    """Return the name of the text that the model was trained on, without directories."""
    data = checkpoint.config.get("data", {})
    source = data.get("source") or {}
    if mixture := data.get("mixture"):
        names = list(mixture_weights(mixture))
    elif paths := data.get("path"):
        names = [Path(path).name for path in ([paths] if isinstance(paths, str) else paths)]
    elif name := data.get("name"):  # of a data set, or its directory's path
        names = [Path(name).name if Path(name).is_absolute() else name]
    else:
        names = [source.get("name") or str(source.get("url") or "a text").rpartition("/")[2]]
    return _inline(", ".join(map(str, names)))


def _facts(checkpoint: Checkpoint, model: nn.Module) -> dict[str, str]:
    """Return the model's sizes and training settings, as far as the checkpoint records them."""
    config, settings = checkpoint.config, checkpoint.model_settings
    sizes = ("n_layer", "n_head", "n_embd")
    optimizer, data = config.get("optimizer", {}), config.get("data", {})
    facts: dict[str, Any] = {
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "layers, heads, width": ", ".join(str(settings[name]) for name in sizes),
        "context": f"{block_size_of(model):,} {checkpoint.vocabulary.unit}s",
        "vocabulary": f"{len(checkpoint.vocabulary):,} {checkpoint.vocabulary.unit}s",
        "training steps": f"{checkpoint.step:,}",
        "batch size, in windows": data.get("batch_size"),
        "optimizer": str(optimizer.get("_target_", "")).rpartition(".")[2],
        "learning rate": optimizer.get("lr"),
        "weight decay": optimizer.get("weight_decay"),
        "dropout": settings.get("dropout"),
        "noise": settings.get("noise"),
        "seed": config.get("seed"),
        "torch": checkpoint.provenance.get("torch"),
    }
    return {name: _inline(str(fact)) for name, fact in facts.items() if fact not in (None, "")}


def _prompt(checkpoint: Checkpoint) -> str:
    symbols = checkpoint.vocabulary.symbols
    return "\n" if "\n" in symbols else next(symbol for symbol in symbols if symbol)


def _reading(checkpoint: Checkpoint, model: nn.Module) -> str:
    """Return what a user needs to know about the texts that the model reads."""
    vocabulary, context = checkpoint.vocabulary, block_size_of(model)
    lines = ["A character outside its vocabulary is an error; none is ever left out."]
    if vocabulary.unit == "byte":
        lines = ["Its tokens are the bytes of UTF-8."]
    elif vocabulary.replaces:
        lines = ["A character outside its vocabulary is read as U+FFFD."]
    if checkpoint.cleaning.normalize or checkpoint.cleaning.lowercase:
        lines.append("The tokenizer normalises text as the training text was normalised.")
    if vocabulary.document == "line":
        lines.append(
            "Each line is a document: begin a prompt with a newline; the next newline ends it."
        )
    if vocabulary.document == "file":
        lines.append("Each file was a document: id 0 stands before and after it.")
    if model.rotary is None:
        lines.append(f"It reads at most {context:,} ids, including those that it writes.")
    else:
        lines.append(f"Beyond its context, it writes on with a sliding window of {context:,} ids.")
    return "\n".join(lines)


def _inline(text: str) -> str:
    """Return `text` escaped for a line of Markdown or a table cell."""
    return html.escape(printable(text)).replace("|", "&#124;").replace("\n", " ").replace("`", "'")
