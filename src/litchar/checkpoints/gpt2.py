"""GPT-2's names for a transformer's weights, which nanoGPT shares."""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

BLOCKS = "transformer.h"
NAMES = {
    "token_embedding": ["transformer.wte"],
    "position_embedding": ["transformer.wpe"],
    "attention_norm": ["ln_1"],
    "attention.qkv": ["attn.c_attn"],
    "attention.output": ["attn.c_proj"],
    "feed_forward_norm": ["ln_2"],
    "feed_forward.input": ["mlp.c_fc"],
    "feed_forward.output": ["mlp.c_proj"],
    "norm": ["transformer.ln_f"],
    "head": ["lm_head"],
}


def rename(
    weights: Mapping[str, Tensor], blocks: str, names: Mapping[str, Sequence[str]]
) -> dict[str, Tensor]:
    """Return our transformer's weights under another implementation's names.

    Args:
        blocks: its name for the list of blocks.
        names: its name for each layer, in a block or outside; a layer of ours that corresponds to
            several of its layers is split into as many equal parts.
    """
    renamed = {}
    for name, tensor in weights.items():
        where, _, kind = name.rpartition(".")
        block, layer = re.findall(r"^(blocks\.\d+\.|)(.+)", where)[0]
        parts = tensor.chunk(len(names[layer]))
        for theirs, part in zip(names[layer], parts, strict=True):
            renamed[f"{block.replace('blocks', blocks)}{theirs}.{kind}"] = part
    return renamed


def ours(name: str) -> str:
    """Return our name for the weight that GPT-2 calls `name`.

    Raises:
        ValueError: GPT-2 has no such weight.
    """
    found = re.fullmatch(rf"(?:{re.escape(BLOCKS)}\.(\d+)\.)?(.+)\.(weight|bias)", name)
    layers = {theirs: layer for layer, [theirs] in NAMES.items()}
    if not found or found[2] not in layers:
        raise ValueError(f"GPT-2 has no weight {name}")
    block = f"blocks.{found[1]}." if found[1] else ""
    return f"{block}{layers[found[2]]}.{found[3]}"
