"""The loss of each document, such as a name, a poem or a molecule, scored by itself."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litchar.atomic import atomic_write, write_csv
from litchar.data.windows import IGNORED, document_starts, gather
from litchar.errors import UserError
from litchar.models import block_size_of
from litchar.terminal import Terminal
from litchar.text import Vocabulary
from litchar.text.store import boundaries
from litchar.text.vocabulary import printable

MOST_SHOWN = 60  # characters of a document
WORST = 5


@torch.inference_mode()
def document_losses(
    model: nn.Module, tokens: Tensor, batch_size: int, device: torch.device
) -> np.ndarray:
    """Return the loss of each document by itself: -ln of its probability.

    The context starts at the boundary before the document; the boundary after it is predicted, too.
    A document longer than the model's block size is scored in contiguous windows.

    Args:
        tokens: a split of documents: (N,)

    Returns:
        nats: (D,) float64
    """
    edges, block_size = boundaries(tokens.numpy()), block_size_of(model)
    starts = document_starts(tokens.numpy(), block_size)
    documents = np.searchsorted(edges, starts, side="right") - 1
    lengths = np.minimum(edges[documents + 1] - starts, block_size)
    order = np.argsort(lengths, kind="stable")  # windows of one length share a batch
    losses = np.zeros(len(edges) - 1)
    for first in Terminal().track(range(0, len(order), batch_size), "Documents"):
        batch = order[first : first + batch_size]
        longest = int(lengths[batch].max())
        idx, targets = gather(tokens, torch.from_numpy(starts[batch]), longest)  # (B, T)
        beyond = torch.arange(longest) >= torch.from_numpy(lengths[batch])[:, None]
        targets = targets.masked_fill(beyond, IGNORED).to(device)
        logits = model(idx.to(device)).float()
        loss = F.cross_entropy(
            logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
        )
        np.add.at(losses, documents[batch], loss.sum(1).cpu().double().numpy())
    return losses


def check_place(place: str | None, document: str | None) -> Path | None:
    """Return the file to write the losses of documents to; None if `place` is None.

    Raises:
        UserError: the model was not trained on documents, `place` is not a .csv or .json file, or
            its directory does not exist.
    """
    if place is None:
        return None
    if document is None:
        raise UserError(f"documents={place}: this model was not trained on documents")
    path = Path(os.path.expanduser(place))
    if path.suffix not in (".csv", ".json"):
        raise UserError(f"documents={place}: name a .csv or a .json file")
    if not path.parent.is_dir():
        raise UserError(f"documents={place}: there is no directory {path.parent}")
    return path


def print_documents(
    losses: np.ndarray,
    tokens: Tensor,
    vocabulary: Vocabulary,
    terminal: Terminal,
    place: Path | None,
) -> None:
    """Print the mean, the spread and the worst documents; write all of them to `place`, if given.

    Raises:
        UserError: the file cannot be written.
    """
    edges = boundaries(tokens.numpy())
    counts = np.diff(edges)  # includes the boundary after each document
    least, middle, most = np.quantile(losses, (0, 0.5, 1))
    terminal.say(
        f"{len(losses):,} documents, each scored by itself: {losses.sum() / counts.sum():.4f} "
        f"nats per {vocabulary.unit}, {losses.mean():.4f} per document (standard deviation "
        f"{losses.std():.4f}, least {least:.4f}, median {middle:.4f}, most {most:.4f})"
    )
    rates = losses / counts
    worst = []
    for i in np.argsort(-rates, kind="stable")[:WORST]:
        shown = printable(" ".join(_text(i, edges, tokens, vocabulary).split()))
        worst.append((f"{losses[i]:.3f}", f"{rates[i]:.3f}", shown))
    terminal.print(terminal.table(("nats", f"per {vocabulary.unit}", "worst documents"), worst))
    if place is not None:
        rows = [
            {
                "document": i,
                f"{vocabulary.unit}s": int(counts[i]) - 1,
                "nats": float(losses[i]),
                "bits": float(losses[i]) / math.log(2),
                "begins": _text(i, edges, tokens, vocabulary),
            }
            for i in range(len(losses))
        ]
        _write(place, rows)


def _text(i: int, edges: np.ndarray, tokens: Tensor, vocabulary: Vocabulary) -> str:
    start, stop = edges[i] + 1, edges[i + 1]
    return vocabulary.decode(tokens[start : min(stop, start + MOST_SHOWN)].numpy())


def _write(place: Path, rows: list[dict[str, Any]]) -> None:
    try:
        if place.suffix == ".csv":
            write_csv(place, rows)
        else:
            with atomic_write(place) as draft:
                draft.write_text(json.dumps(rows, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"documents={place}: cannot be written ({error.strerror})") from None
