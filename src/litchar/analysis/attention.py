"""Attention maps: the weights of a transformer's heads on one line of text, and their picture."""

import math
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from litchar.analysis.layers import layer_of, run_hooked
from litchar.models.transformer import CausalSelfAttention
from litchar.text import Vocabulary

# In pixels: the side of a cell, the height of a line of text. TensorBoard's cards are 350 wide, and
# it scales wider images without smoothing: 24 characters and their labels just fit.
CELL, LINE = 14, 20
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
FUTURE = 255  # the palette index of masked (future) positions; lower ones are weights and ink
# Fallbacks, tried in this order, for characters that Pillow's own font lacks.
FONTS = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "msyh.ttc", "arial.ttf")


@torch.no_grad()
def attention_maps(model: nn.Module, idx: Tensor) -> dict[str, Tensor]:
    """Return the attention weights of each layer: (H, T, T) float32, rows sum to 1.

    Only `CausalSelfAttention` is supported; a model without it has no maps. The model is run once,
    in evaluation mode and uncompiled.

    Args:
        idx: (1, T) int64
    """
    maps: dict[str, Tensor] = {}

    def note(layer: str, module: CausalSelfAttention, inputs: tuple[Any, Any]) -> None:
        x, rotary = inputs
        q, k = module.project(x)[:2]  # (1, T, H, D)
        if rotary is not None:
            q, k = rotary(q), rotary(k)
        scores = torch.einsum("bqhd,bkhd->bhqk", q.float(), k.float())[0]
        scores = scores / math.sqrt(q.shape[-1])  # (H, T, T)
        future = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
        maps[layer] = scores.masked_fill(future, -math.inf).softmax(-1)

    hooks = [
        module.register_forward_pre_hook(partial(note, layer_of(f"{name}.")))
        for name, module in model.named_modules()
        if isinstance(module, CausalSelfAttention)
    ]
    if hooks:
        run_hooked(model, idx, hooks)
    return maps


def fixed_line(vocabulary: Vocabulary, tokens: np.ndarray, most: int) -> np.ndarray:
    """Return the first complete line of `tokens` that has at least `most / 2` ids, cut to `most`.

    Its line end counts. If the first 100,000 tokens have no such line, return the first `most`.

    Args:
        tokens: (N,)
    """
    tokens = tokens[:100_000]
    ends = np.flatnonzero(np.isin(tokens, vocabulary.encode("\n", "skip")))
    for start, end in zip(ends[:-1] + 1, ends[1:] + 1, strict=True):
        if 2 * (end - start) >= most:
            return tokens[start : min(end, start + most)]
    return tokens[:most]


def draw_maps(maps: np.ndarray, labels: list[str]) -> Image.Image:
    """Return an image of a layer's attention maps, one head below the other, with the characters of
    the line along rows and columns.

    Args:
        maps: (H, T, T), from 0 to 1
        labels: of the T characters; one that no font has a glyph for is shown as its hex code.
    """
    n_head, length = maps.shape[:2]
    side = (length + 1) * CELL  # of a map including its labels
    canvas = np.zeros((LINE + n_head * (LINE + side), max(side, 250)), np.uint8)
    weights = np.clip(np.rint(maps * (FUTURE - 1)), 0, FUTURE - 1).astype(np.uint8)
    weights[:, ~np.tri(length, dtype=bool)] = FUTURE
    tiles = [_tile(label) for label in labels]
    for head, cells in enumerate(weights):
        y = (head + 1) * (LINE + side) - side + LINE
        canvas[y : y + CELL, CELL:side] = np.hstack(tiles)
        canvas[y + CELL : y + side, :CELL] = np.vstack(tiles)
        canvas[y + CELL : y + side, CELL:side] = cells.repeat(CELL, 0).repeat(CELL, 1)
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    titles = ["row: a character; dark: where it looks", *(f"head {head}" for head in range(n_head))]
    for place, title in enumerate(titles):
        middle = max(0, place - 1) * (LINE + side) + (LINE if place else 0) + LINE // 2
        draw.text((CELL, middle), title, FUTURE - 1, ImageFont.load_default(13), anchor="lm")
    image.putpalette(_palette())  # its greys become indices
    return image


def _palette() -> bytes:
    """Return the palette: white to dark blue, then light grey for `FUTURE`."""
    colours = np.linspace((255, 255, 255), (8, 40, 104), FUTURE)
    return np.rint(colours).astype(np.uint8).tobytes() + bytes([236, 236, 236])


@lru_cache(4096)
def _tile(label: str) -> np.ndarray:
    """Return a label drawn in one cell: (CELL, CELL) uint8, 0 where there is no ink."""
    image = Image.new("L", (CELL, CELL))
    draw = ImageDraw.Draw(image)
    font = _font_for(label) if len(label.lstrip("◌")) == 1 else None
    if font is not None:
        draw.text((CELL / 2, CELL * 0.75), label, FUTURE - 1, font, anchor="ms")
    else:
        digits = label.removeprefix("U+").removeprefix("0x")
        if not digits.isascii():
            digits = f"{ord(label[-1]):04X}"
        lines = [digits[i : i + 2] for i in range(0, len(digits), 2)]
        size = min(10, CELL // len(lines) + 1)
        for i, line in enumerate(lines):
            middle = (CELL / 2, CELL * (i + 0.5) / len(lines))
            draw.text(middle, line, FUTURE - 1, ImageFont.load_default(size), anchor="mm")
    return np.asarray(image)


def _font_for(label: str) -> Font | None:
    """Return the first font that has every glyph of `label`."""
    default = ImageFont.load_default(12)
    return next((font for font in (default, *_fonts()) if _has(font, label)), None)


def _has(font: Font, label: str) -> bool:
    """Return whether `font` has every glyph of `label`; FreeType draws all missing ones alike."""
    lacking = font.getmask("\uffff")
    drawn = (font.getmask(character) for character in label)
    return all((d.size, bytes(d)) != (lacking.size, bytes(lacking)) for d in drawn)


@cache
def _fonts() -> list[ImageFont.FreeTypeFont]:
    fonts = []
    for name in FONTS:
        try:
            fonts.append(ImageFont.truetype(name, 12))
        except OSError:
            continue  # this system has no such font
    return fonts
