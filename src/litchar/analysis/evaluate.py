"""`scripts/evaluate.py`: the exact loss of a checkpoint on a text."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from litchar.analysis.documents import check_place, document_losses, print_documents
from litchar.checkpoints import Checkpoint, find
from litchar.checkpoints.checkpoint import trusted
from litchar.data.splits import Splits
from litchar.data.windows import SequentialWindows
from litchar.device import choose_device, set_matmul_precision
from litchar.errors import UserError, check_integer
from litchar.losses import bits, perplexity, size_table, summed_loss
from litchar.models import block_size_of
from litchar.terminal import Terminal
from litchar.text import Corpus, Text
from litchar.text.split import BATCHED_BY, stray
from litchar.text.store import count_codes, encode_corpus
from litchar.text.vocabulary import describe

SPLITS = ("train", "val", "test")


def run(config: DictConfig) -> float:
    """Print the loss of a checkpoint on a split of its own text, or on another text.

    Returns:
        the mean loss in nats per token.

    Raises:
        UserError: a setting is invalid, the checkpoint or the text cannot be read, or the model
            knows fewer than 2 tokens of it.
    """
    _check(config)
    device = choose_device(config.device)
    set_matmul_precision(None, device)
    checkpoint = Checkpoint.load(find(config.checkpoint, Path(config.outputs_dir)))
    unit = checkpoint.vocabulary.unit
    place = check_place(config.documents, checkpoint.vocabulary.document)
    terminal = Terminal()
    tokens, what = _text(config, checkpoint, terminal)
    if len(tokens) < 2:
        raise UserError(f"{what} has {len(tokens)} {unit}s that the model knows; it needs 2")
    model = checkpoint.build_model(device)
    block_size = block_size_of(model)
    if config.stride is not None:
        check_integer("stride", config.stride, 1, block_size)
    sizes = size_table(checkpoint.vocabulary)
    total = exact_loss(model, tokens, config.batch_size, device, sizes, config.stride)
    nats, count, characters, utf8_bytes = total.tolist()
    loss: float = nats / count
    in_bits = bits(nats, characters, utf8_bytes)
    terminal.say(f"{checkpoint.path}, step {checkpoint.step:,}, on {what}:")
    terminal.print(
        f"{loss:.6f} nats per {unit}, {in_bits['bpc']:.4f} bits per character, "
        f"{in_bits['bpb']:.4f} bits per byte, perplexity {perplexity(loss):.3f}, "
        f"over {count:,.0f} {unit}s" + _overlap(config.stride, block_size)
    )
    if checkpoint.vocabulary.document:
        losses = document_losses(model, tokens, config.batch_size, device)
        print_documents(losses, tokens, checkpoint.vocabulary, terminal, place)
    return loss


def _check(config: DictConfig) -> None:
    """Reject invalid settings, and settings of a text where none is named.

    Raises:
        UserError: `batch_size` or `split` is invalid, or a setting of `data` would be ignored.
    """
    check_integer("batch_size", config.batch_size, 1)
    if config.split not in (None, *SPLITS):
        raise UserError(f"split={config.split}: must be one of {', '.join(SPLITS)}")
    for key in stray(config.data):
        raise UserError(
            f"data.{key}={config.data[key]}: has no data.path to apply to; name one: data.path=FILE"
        )


def _text(config: DictConfig, checkpoint: Checkpoint, terminal: Terminal) -> tuple[Tensor, str]:
    """Return the ids to score, (N,), and their name; print what there is to know about them.

    Raises:
        UserError: the text cannot be read, or has no such split.
    """
    if config.data.path is None or config.split is not None:
        split = config.split or "val"
        splits = splits_of(checkpoint, config.data)
        if split not in splits:
            raise UserError(f"split={split}: this run only has {', '.join(splits)}")
        return splits[split], f"the {split} split"
    corpus = checkpoint.cleaning.of(Corpus.find(**config.data))
    tokens, unknown, count, share = encode_known(checkpoint, corpus)
    if corpus.fingerprint() == checkpoint.provenance["fingerprint"]:
        terminal.say(
            "This is the text that the model was trained on; split=val scores the part that "
            "it was not trained on"
        )
    if count:
        done, why = "Left out", "that the model never saw"
        if checkpoint.vocabulary.replaces:  # rare ones in training, too
            done, why = "Read as U+FFFD", "that are not in the vocabulary"
        terminal.say(f"{done}: {count:,} characters ({share:.2%}) {why}: {describe(unknown)}")
    return tokens, str(corpus)


def splits_of(checkpoint: Checkpoint, elsewhere: Mapping[str, Any] | None = None) -> Splits:
    """Return the splits of the text that `checkpoint` was trained on.

    Args:
        elsewhere: the settings that name a copy of the text, if `path` is among them.

    Raises:
        UserError: the text is gone or has changed, or the checkpoint does not say which it was.
    """
    moved = {}
    if elsewhere is not None and elsewhere["path"] is not None:
        moved = {key: at for key, at in elsewhere.items() if at not in (None, getattr(Text, key))}
        moved |= dict.fromkeys(("source", "name"))
    try:
        settings = dict(checkpoint.config["data"]) | moved
        if moved and settings.get("mixture"):
            raise UserError(
                "data.path: cannot name the texts of a mixture; to score one, leave split out"
            )
        if source := settings.pop("source", None):
            source = dict(source)
            try:
                function = trusted(source.pop("_target_"), "litchar.text.sources.", checkpoint.path)
            except UserError as error:  # a custom source
                raise UserError(f"{error}; name its text by path: data.path=FILE") from None
            source.pop("_partial_")
            settings["source"] = partial(function, **source)
        for name in (*stray(settings), *BATCHED_BY):  # older versions ignored what is stray
            settings.pop(name, None)
        text = Text(**settings)
        same = text.corpus.fingerprint() == checkpoint.provenance["fingerprint"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{checkpoint.path}: it does not say which text it was trained on ({error!r}); name "
            "one by path: data.path=FILE"
        ) from None
    if not same and moved:
        raise UserError(
            f"{text.corpus} is not, byte for byte, the text that {checkpoint.path} was trained on; "
            "leave split out to score all of it"
        )
    if not same:
        raise UserError(
            f"{text.corpus} has changed since {checkpoint.path} was trained on it; score it "
            "as a new text: data.path=FILE"
        )
    return Splits(text)


def encode_known(checkpoint: Checkpoint, corpus: Corpus) -> tuple[Tensor, str, int, float]:
    """Return the ids of the characters of `corpus` that the model knows, the distinct characters
    that it does not know, and how many occurrences of these were left out or, where the vocabulary
    `replaces` them, replaced; also as a share."""
    vocabulary = checkpoint.vocabulary
    counts = count_codes(corpus, vocabulary.unit, vocabulary.document)
    known = [ord(symbol) for symbol in vocabulary.symbols if symbol]
    unknown = np.setdiff1d(np.flatnonzero(counts), known)
    pieces = [np.zeros(0, vocabulary.dtype), *encode_corpus(corpus, vocabulary)]
    tokens = torch.from_numpy(np.concatenate(pieces))
    count = int(counts[unknown].sum())
    return tokens, "".join(map(chr, unknown)), count, count / max(1, int(counts.sum()))


def _overlap(stride: int | None, block_size: int) -> str:
    if stride is None or stride == block_size:
        return ""
    return f", each but the first {block_size:,} predicted from {block_size - stride + 1:,} or more"


@torch.inference_mode()
def exact_loss(
    model: nn.Module,
    tokens: Tensor,
    batch_size: int,
    device: torch.device,
    sizes: Tensor,
    stride: int | None,
) -> Tensor:
    """Return the summed loss over the windows of `tokens`, each token counted once.

    Args:
        sizes: from `size_table`
        stride: from one window to the next, see `SequentialWindows`.

    Returns:
        (4,) float64: sums of nats, tokens, characters and bytes
    """
    total, sizes = torch.zeros(4, dtype=torch.float64), sizes.to(device)
    for idx, targets in batches_of(model, tokens, batch_size, device, stride):
        total += summed_loss(model, idx, targets, sizes).cpu()
    return total


def batches_of(
    model: nn.Module, tokens: Tensor, batch_size: int, device: torch.device, stride: int | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the windows of `tokens` and their targets in the order of the text, (B, T) int64 each.
    Each token but the first is a target exactly once."""
    windows = SequentialWindows(tokens, block_size_of(model), batch_size, stride)
    for batch in Terminal().track(range(len(windows)), "Scoring"):
        idx, targets = windows[batch]
        yield idx.to(device), targets.to(device)
