import numpy as np
import pytest
import torch

from litchar.analysis import attention
from litchar.analysis.attention import CELL, FUTURE, LINE, attention_maps, draw_maps, fixed_line
from litchar.models import Bigram, Transformer
from litchar.text import Vocabulary


@pytest.mark.parametrize(
    "form", [{}, {"position": "learned", "qk_norm": False, "norm": "layer", "bias": True}]
)
def test_the_maps_are_the_weights_that_attention_uses(form):
    torch.manual_seed(0)
    model = Transformer(11, 16, 2, 3, 24, dropout=0.5, init="gpt2", **form)
    idx = torch.randint(11, (1, 9))
    maps = attention_maps(model, idx)
    assert list(maps) == ["blocks.0", "blocks.1"]
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())

    seen = {}
    for i, block in enumerate(model.blocks):
        block.attention.register_forward_hook(
            lambda module, inputs, output, i=i: seen.update({i: (module, inputs[0], output)})
        )
    model.eval()(idx)
    for i, weights in enumerate(maps.values()):
        module, x, output = seen[i]
        values = module.project(x)[2][0].transpose(0, 1)  # (H, T, D)
        gathered = (weights @ values).transpose(0, 1).reshape(1, 9, -1)
        torch.testing.assert_close(module.output(gathered), output)
        assert weights.shape == (3, 9, 9)
        assert weights.triu(1).count_nonzero() == 0


def test_a_model_without_heads_has_no_maps():
    assert attention_maps(Bigram(5, 8), torch.zeros(1, 4, dtype=torch.long)) == {}


def cell(image, head, row, column):
    """Return the colours of one cell of a map."""
    side = image.width
    top = LINE + head * (LINE + side) + LINE + (row + 1) * CELL
    left = (column + 1) * CELL
    return np.asarray(image)[top : top + CELL, left : left + CELL]


def test_a_picture_has_each_weight_where_it_belongs():
    maps = np.zeros((2, 24, 24))
    maps[0, 5, 3], maps[1, 23, 23], maps[1, 23, 0] = 1.0, 0.5, 0.25
    image = draw_maps(maps, list("abcdefghijklmnopqrstuvwx"))
    assert image.width == 350  # a card of TensorBoard's
    assert (cell(image, 0, 5, 3) == FUTURE - 1).all()
    assert (cell(image, 1, 5, 3) == 0).all()
    assert (cell(image, 1, 23, 23) == 127).all()
    assert (cell(image, 1, 23, 0) == 64).all()
    assert (cell(image, 0, 3, 5) == FUTURE).all()
    colours = np.asarray(image.convert("RGB"))
    assert colours[np.asarray(image) == 0].min() == 255
    dark = colours[np.asarray(image) == FUTURE - 1]
    assert (dark == dark[0]).all()
    assert dark[0].sum() < 200


def test_labels_stand_above_and_beside_each_map():
    image = draw_maps(np.ones((2, 24, 24)), list("ab" * 12))
    for head in range(2):
        above = [cell(image, head, -1, column) for column in range(4)]
        beside = [cell(image, head, row, -1) for row in range(4)]
        for labels in (above, beside):
            assert (labels[0] == above[0]).all()
            assert (labels[1] == above[1]).all()
            assert (labels[0] != labels[1]).any()


def test_a_character_that_no_font_has_is_shown_by_its_number(monkeypatch):
    monkeypatch.setattr(attention, "_fonts", list)
    attention._tile.cache_clear()
    labels = ("中", "国", "U+200B", "0x9F", "\\n", "U+1F600", "◌\u0301", "a", "end", "🙂")
    tiles = [attention._tile(label) for label in labels]
    attention._tile.cache_clear()
    assert all(tile.any() for tile in tiles)
    assert len({tile.tobytes() for tile in tiles}) == len(labels)


def test_the_line_is_the_first_whole_one_that_is_long_enough():
    text = "of a line\nshort\na line of 17 chars\nand another one that is longer\n"
    vocabulary = Vocabulary(text)
    tokens = vocabulary.encode(text)

    def line(most):
        return vocabulary.decode(fixed_line(vocabulary, tokens, most))

    assert line(24) == "a line of 17 chars\n"
    assert line(8) == "short\n"
    assert line(4) == "shor"
    assert line(50) == "and another one that is longer\n"
    assert line(1000) == text
    one_line = Vocabulary("ab")
    assert one_line.decode(fixed_line(one_line, one_line.encode("ab" * 50), 6)) == "ababab"
