import pytest
import torch
from torch import nn

from litchar.models import Bigram, Transformer
from litchar.training.optimizers import adamw, muon, orthogonalize


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


def test_an_embedding_that_two_layers_share_is_stepped_once():
    first, second = nn.Embedding(5, 4), nn.Embedding(5, 4)
    second.weight = first.weight
    [group] = muon(nn.Sequential(first, second), lr=1e-3).param_groups
    assert len(group["params"]) == 1


def test_an_unknown_kind_of_decay_is_refused(model):
    with pytest.raises(ValueError, match="decay=some is not one of matrices, all"):
        adamw(model, lr=1e-3, decay="some")


@pytest.mark.parametrize("weight_decay", [-1, None, "x"])
def test_a_decay_without_meaning_is_refused(model, weight_decay):
    with pytest.raises(ValueError, match=f"weight_decay={weight_decay} is not a number of at"):
        adamw(model, lr=1e-3, weight_decay=weight_decay)


SHAPES = [(16, 16), (48, 16), (16, 64), (24, 32)]


def test_orthogonalize_finds_the_orthogonal_factor_of_each_matrix():
    generator = torch.Generator().manual_seed(0)
    alike = [torch.randn(3, *shape, generator=generator) for shape in SHAPES]
    after_nine, after_five = orthogonalize(alike, steps=9), orthogonalize(alike, steps=5)
    of_small = orthogonalize([1e-9 * matrices for matrices in alike], 5)
    for i, matrices in enumerate(alike):
        u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
        torch.testing.assert_close(after_nine[i], u @ vh, rtol=0, atol=1e-5)
        values = torch.linalg.svdvals(after_five[i])
        assert 0.35 < values.min() < values.max() < 1.2
        torch.testing.assert_close(of_small[i].norm(), values.norm(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("steps", [5, 6, 12, 30])
def test_orthogonalize_bears_matrices_of_low_rank(steps):
    """Zero eigenvalues of X X^T come out slightly negative, and a quintic amplifies that."""
    generator = torch.Generator().manual_seed(0)
    short, long = (torch.randn(4, 64, n, generator=generator) for n in (3, 192))
    [factors] = orthogonalize([short @ short.mT @ long], steps)
    values = torch.linalg.svdvals(factors)
    assert values.max() < 1.2
    assert (values[:, :3] > 0.6).all()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert not orthogonalize([torch.zeros(1, 8, 16, dtype=dtype)], steps)[0].any()


@pytest.mark.parametrize("shape", [(32, 32), (32, 96), (64, 64)])
def test_orthogonalize_stays_near_the_factor_in_bfloat16(shape):
    matrices = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))
    [factors] = orthogonalize([matrices.bfloat16()], steps=5)
    assert factors.dtype == torch.bfloat16
    assert torch.linalg.svdvals(factors.float()).max() < 1.2


def test_muon_steps_matrices_along_the_orthogonal_factor_of_their_momentum(model):
    optimizer = muon(model, lr=0.1, weight_decay=0.5, momentum=0.8, polar_steps=12)
    expected = {n: p.detach().clone() for n, p in model.blocks.named_parameters() if p.ndim == 2}
    momentum = {name: torch.zeros_like(p) for name, p in expected.items()}
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for name, weight in expected.items():
            gradient = model.blocks.get_parameter(name).grad
            momentum[name] = 0.8 * momentum[name] + 0.2 * gradient
            u, _, vh = torch.linalg.svd(0.8 * momentum[name] + 0.2 * gradient, full_matrices=False)
            weight *= 1 - 0.1 * 0.5
            weight -= 0.1 * 0.2 * max(weight.shape) ** 0.5 * (u @ vh)
        optimizer.step()
    assert len(expected) == 8
    for name, weight in expected.items():
        torch.testing.assert_close(model.blocks.get_parameter(name).data, weight, rtol=0, atol=1e-5)


def test_muon_leaves_embeddings_head_and_vectors_to_adamw(model):
    matrices = {id(p) for p in model.blocks.parameters() if p.ndim == 2}
    optimizer = muon(model, lr=0.1, embedding_lr_factor=3.0, eps=1e-6)
    others = [p for p in model.parameters() if id(p) not in matrices]
    copies = [p.detach().clone().requires_grad_() for p in others]
    embedding = next(i for i, p in enumerate(others) if p is model.token_embedding.weight)
    groups = [{"params": [c], "lr": 0.3 if i == embedding else 0.1} for i, c in enumerate(copies)]
    torchs = torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.0, fused=True)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        for parameter, copy in zip(others, copies, strict=True):
            copy.grad = parameter.grad.clone()
        optimizer.step()
        torchs.step()
    torch.testing.assert_close(others, copies, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"polar_steps": 0}, "polar_steps=0"),
        ({"polar_steps": True}, "polar_steps=True is not a whole number"),
        ({"momentum": 1}, "momentum=1 does not"),
        ({"lr": -1.0}, "lr=-1.0 is not a number of at least 0"),
        ({"weight_decay": float("nan")}, "weight_decay=nan is not a number of at least 0"),
        ({"betas": [0.9, 1.0]}, r"betas=\[0.9, 1.0\] are not two numbers in"),
        ({"betas": [0.9]}, r"betas=\[0.9\] are not two numbers"),
        ({"eps": -1}, "eps=-1 is not a number of at least 0"),
    ],
)
def test_muon_refuses_settings_without_meaning(model, settings, message):
    with pytest.raises(ValueError, match=message):
        muon(model, **{"lr": 1e-3} | settings)


def test_muon_leaves_a_model_without_matrices_to_adamw():
    groups = muon(Bigram(11, 8), lr=1e-3).param_groups
    assert [(group["kind"], len(group["params"])) for group in groups] == [("adamw", 1)]


def test_a_head_may_be_a_parameter_or_no_part_at_all(model):
    model.head = nn.Parameter(torch.ones(4, 4))
    assert model.head in muon(model, lr=1e-3).param_groups[2]["params"]

    class Headed(nn.Linear):
        def head(self) -> None:
            pass

    assert len(muon(Headed(4, 4, bias=False), lr=1e-3).param_groups[0]["params"]) == 1


def test_a_state_of_muon_is_loaded_where_the_parameters_are_with_its_steps_in_float32():
    """The fused step on GPUs refuses step counts on the CPU or in 16 bits."""

    def stepped(device: str) -> torch.optim.Optimizer:
        model = Transformer(5, 4, 1, 1, 8).to(device, torch.bfloat16)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer = muon(model, lr=1e-3)
        if device == "cpu":
            optimizer.step()
        return optimizer

    elsewhere = stepped("meta")
    elsewhere.load_state_dict(stepped("cpu").state_dict())
    steps = [state["step"] for state in elsewhere.state.values() if "step" in state]
    assert steps
    assert all(step.device.type == "meta" and step.dtype == torch.float32 for step in steps)
