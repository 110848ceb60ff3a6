"""`scripts/import_nanogpt.py`: convert a nanoGPT checkpoint to one of ours."""

import os
import pickle
import pickletools
import shlex
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from litchar import __version__
from litchar.checkpoints import gpt2
from litchar.checkpoints.checkpoint import Checkpoint, check_plain, make_card
from litchar.checkpoints.files import read, save
from litchar.errors import UserError
from litchar.terminal import Terminal
from litchar.text import Vocabulary

BPE_SIZES = (50257, 50304)  # GPT-2's vocabulary size, exact and padded
MOST_META_BYTES = 1 << 26  # all characters of Unicode would take a third of it
# A pickle of these opcodes alone builds numbers, strings, lists and dictionaries, and calls
# nothing. (No tuples: nested ones, as keys, overflow Python's stack.)
PLAIN = """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 UNICODE
    SHORT_BINUNICODE BINUNICODE EMPTY_DICT DICT SETITEM SETITEMS EMPTY_LIST LIST APPEND APPENDS
    PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
"""
OPTIONS = ("activation", "bias", "tie_head")  # of `model=gpt2`, which vary between checkpoints


def run(config: DictConfig) -> None:
    """Write nanoGPT's `ckpt.pt`, with the characters of its `meta.pkl`, as a checkpoint of ours.

    Raises:
        UserError: a file is missing, not nanoGPT's, or would execute code; its tokens are not
            characters; or `output` exists or cannot be written. Nothing is written then.
    """
    for key in ("checkpoint", "output"):
        if config[key] is None:
            raise UserError(f"{key}=null: give a file")
    place = Path(os.path.expanduser(config.checkpoint))
    output = Path(os.path.expanduser(config.output))
    if os.path.lexists(output):
        raise UserError(f"output={output}: already exists; name another file, or delete it")
    if not output.parent.is_dir():
        raise UserError(f"output={output}: there is no directory {output.parent}")
    theirs = read(place)
    try:
        args = dict(theirs["model_args"])
        if config.meta is None:
            raise UserError(_without_meta(place, args["vocab_size"]))
        characters = read_meta(Path(os.path.expanduser(config.meta)))
        if len(characters) != args["vocab_size"]:
            raise UserError(
                f"{config.meta} has {len(characters)} characters, but {place} is for "
                f"{args['vocab_size']} tokens: they do not belong together"
            )
        settings: Any = OmegaConf.to_container(config.model)
        data = convert(theirs, characters, settings)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{place}: not a checkpoint that nanoGPT wrote ({error})") from None
    checkpoint = Checkpoint.of(data, place)
    model = checkpoint.build_model()  # checks that weights and sizes fit
    try:
        save(data, output)
    except OSError as error:
        raise UserError(f"output={output}: cannot be written ({error.strerror})") from None
    parameters = sum(p.numel() for p in model.parameters())
    options = " ".join(f"model.{n}={checkpoint.model_settings[n]}".lower() for n in OPTIONS)
    begin = shlex.quote(f"init_from={output}")
    Terminal().say(
        f"{output}: {parameters:,} parameters, {len(characters)} characters, "
        f"step {checkpoint.step:,}\nTo train it further (with a new optimiser):\n"
        f"  python scripts/train.py {begin} model=gpt2 {options} data=text data.path=FILE"
    )


def convert(
    theirs: dict[str, Any], characters: list[str], settings: dict[str, Any]
) -> dict[str, Any]:
    """Return the content of our checkpoint.

    nanoGPT's ids may be in any order and ours follow the order of characters, so the rows of the
    embedding and the head are permuted.

    Args:
        theirs: the content of nanoGPT's checkpoint.
        characters: the character of each of its ids.
        settings: of `conf/model/gpt2.yaml`.

    Raises:
        LookupError, TypeError, ValueError, AttributeError, OverflowError: `theirs` is not a
            nanoGPT checkpoint.
    """
    vocabulary = Vocabulary(characters)
    args = dict(theirs["model_args"])
    weights: dict[str, Tensor] = {
        gpt2.ours(name.replace("_orig_mod.", "")): tensor  # added by torch.compile
        for name, tensor in theirs["model"].items()
        if not name.endswith(".attn.bias")  # the causal mask
    }
    embedding = weights["token_embedding.weight"]
    head = weights.setdefault("head.weight", embedding)
    for name in ("token_embedding.weight", "head.weight"):
        check_plain(name, weights[name])  # before its numbers are read
    settings |= {
        name: args[name] for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
    }
    settings |= {
        "bias": args.get("bias", True),
        "dropout": args.get("dropout", 0.0),
        "tie_head": torch.equal(embedding, head),
        "n_hidden": len(weights["blocks.0.feed_forward.input.weight"]),
    }
    ids = {character: i for i, character in enumerate(characters)}
    order = torch.tensor([ids[character] for character in vocabulary.characters])
    for name in ("token_embedding.weight", "head.weight"):
        weights[name] = weights[name][order]
    return {
        "state_dict": {f"model.{name}": tensor for name, tensor in weights.items()},
        "global_step": int(theirs["iter_num"]),
        "litchar": _card(vocabulary, settings, dict(theirs.get("config", {}))),
    }


def _card(
    vocabulary: Vocabulary, settings: dict[str, Any], config: dict[str, Any]
) -> dict[str, Any]:
    """Return the metadata of our checkpoint.

    Args:
        settings: of our model.
        config: nanoGPT's.
    """
    plain = {key: value for key, value in config.items() if isinstance(value, str | int | float)}
    return make_card(
        vocabulary,
        settings,
        {
            "model": settings,
            "data": {
                "name": plain.get("dataset"),
                "unit": vocabulary.unit,
                "block_size": settings["block_size"],
                "batch_size": plain.get("batch_size"),
            },
            "optimizer": {
                "_target_": "torch.optim.AdamW",
                "lr": plain.get("learning_rate"),
                "weight_decay": plain.get("weight_decay"),
            },
        },
        fingerprint=None,
        imported_from="nanoGPT",
        litchar=__version__,
        torch=str(torch.__version__),
    )


def read_meta(path: Path) -> list[str]:
    """Return the character of each id from nanoGPT's `meta.pkl`, without running code in it.

    Raises:
        UserError: the file cannot be read, or is not a `meta.pkl` of plain data for characters.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_META_BYTES + 1)
    except OSError as error:
        raise UserError(f"meta={path}: cannot be read ({error.strerror})") from None
    try:
        if len(data) > MOST_META_BYTES:
            raise ValueError("it is too large")
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name not in PLAIN.split():
                raise ValueError(f"{opcode.name} in it would do more than build plain data")
            if opcode.name.endswith("PUT") and int(argument or 0) > len(data):
                raise ValueError("it would take too much memory")
        meta = pickle.loads(data)
        symbols = meta.get("itos") or {i: symbol for symbol, i in meta["stoi"].items()}
        characters = [symbols[i] for i in range(len(symbols))]
        if len(set(characters)) < len(characters):
            raise ValueError("two ids for one character")
        for character in characters:
            if not isinstance(character, str) or len(character) != 1:
                raise ValueError("its tokens are not characters")
    except Exception as error:  # a damaged pickle raises many kinds
        raise UserError(
            f"meta={path}: not a meta.pkl of nanoGPT for characters; nothing in it was run "
            f"({error})"
        ) from None
    return characters


def _without_meta(place: Path, vocab_size: object) -> str:
    if vocab_size in BPE_SIZES:
        return (
            f"{place}: its {vocab_size} tokens are GPT-2's word pieces (BPE), but litchar's "
            "models read characters or bytes"
        )
    return (
        f"{place} does not say which characters its {vocab_size} tokens are; give nanoGPT's "
        "meta=data/NAME/meta.pkl"
    )
