import pytest
import torch

from litchar.models import Transformer
from litchar.training.optimizers import adamw


@pytest.fixture
def model():
    return Transformer(11, 8, 2, 2, 16, norm="layer", bias=True, head_bias=True)


def test_matrices_decay_and_vectors_do_not(model):
    optimizer = adamw(model, lr=0.1, weight_decay=0.5)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if parameter.ndim > 1 else 1
        torch.testing.assert_close(parameter.data, before[name] * factor)


def test_decay_all_is_torchs_default(model):
    group = adamw(model, lr=1e-3, weight_decay=0.01, betas=[0.9, 0.999], decay="all").param_groups
    torchs = torch.optim.AdamW(model.parameters(), lr=1e-3).param_groups
    assert len(group) == 1
    for key in ("lr", "weight_decay", "betas", "eps", "amsgrad"):
        assert group[0][key] == torchs[0][key]
    assert len(group[0]["params"]) == len(torchs[0]["params"])


def test_a_tied_weight_is_stepped_once():
    model = Transformer(11, 8, 1, 2, 16, tie_head=True, init="gpt2")
    parameters = [p for group in adamw(model, lr=1e-3).param_groups for p in group["params"]]
    assert len(parameters) == len({id(p) for p in parameters}) == len(list(model.parameters()))


def test_an_unknown_kind_of_decay_is_refused(model):
    with pytest.raises(ValueError, match="decay=some is not one of matrices, all"):
        adamw(model, lr=1e-3, decay="some")
