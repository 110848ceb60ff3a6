import math

import pytest
import torch
from torch import nn

from litchar.analysis.layers import (
    activation_statistics,
    layer_of,
    parameters_by_layer,
    update_ratios,
)
from litchar.models import Bigram, Recurrent, Transformer


@pytest.mark.parametrize(
    ("parameter", "layer"),
    [
        ("blocks.0.attention.qkv.weight", "blocks.0"),
        ("blocks.11.norm.weight", "blocks.11"),
        ("transformer.h.3.mlp.0.weight", "transformer.h.3"),
        ("head.bias", "head"),
        ("next_logits.weight", "next_logits"),
        ("layers.weight_hh_l1", "layers.l1"),
        ("layers.bias_ih_l0_reverse", "layers.l0"),
        ("scale", "scale"),
    ],
)
def test_a_parameter_belongs_to_a_layer(parameter, layer):
    assert layer_of(parameter) == layer


def test_parameters_come_by_layer_and_frozen_ones_do_not():
    model = Transformer(7, 8, 2, 2, 8)
    model.head.weight.requires_grad_(False)
    layers = parameters_by_layer(model)
    assert list(layers) == ["token_embedding", "blocks.0", "blocks.1", "norm"]
    total = sum(p.numel() for p in model.parameters()) - model.head.weight.numel()
    assert sum(p.numel() for ps in layers.values() for p in ps) == total
    gru = Recurrent(7, 8, 2, 8)
    assert list(parameters_by_layer(gru)) == ["token_embedding", "layers.l0", "layers.l1", "head"]


def test_the_update_ratio_is_that_of_norms_over_a_layer():
    before = (torch.tensor([3.0, 0.0]), torch.tensor([[0.0]]))
    after = (torch.tensor([3.0, 0.4]), torch.tensor([[0.3]]))
    ratio = update_ratios({"a": [*zip(after, before, strict=True)]})["a"].item()
    assert ratio == pytest.approx(0.5 / math.sqrt(9 + 0.16 + 0.09))
    zeros = (torch.zeros(2), torch.zeros(2))
    assert update_ratios({"a": [zeros]})["a"].item() == 0


def test_activation_statistics_are_of_each_layers_output():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))
            self.embedding = nn.Embedding(2, 2)
            self.gru = nn.GRU(2, 2, batch_first=True)
            self.dropout = nn.Dropout(0.9)
            self.never_called = nn.Linear(2, 2)

        def forward(self, idx):
            return self.gru(self.dropout(self.embedding(idx)) * self.scale)[0]

    net = Net()
    with torch.no_grad():
        net.embedding.weight.copy_(torch.tensor([[1.0, -1.0], [5.0, 1.0]]))
    found = activation_statistics(net, torch.tensor([[0, 1, 1, 1]]))
    assert list(found) == ["embedding"]  # the GRU's layers are no modules of their own
    assert found["embedding"] == pytest.approx((math.sqrt((2 + 3 * 26) / 8), 5.0))
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())


def test_every_layer_of_the_own_models_that_is_a_module_has_statistics():
    idx = torch.zeros(1, 8, dtype=torch.long)
    layers = set(activation_statistics(Transformer(7, 8, 2, 2, 8, position="learned"), idx))
    assert layers == {"token_embedding", "blocks.0", "blocks.1", "norm", "head"}
    assert set(activation_statistics(Bigram(7, 8), idx)) == {"next_logits"}


def test_a_model_that_fails_is_left_as_it_was():
    model = Transformer(7, 8, 1, 2, 8)
    with pytest.raises(IndexError):
        activation_statistics(model, torch.full((1, 8), 99))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
