"""Dropout."""

import math

import pytest
import torch

from litchar.models.dropout import Dropout, _by_hash, dropout, noised

forms = pytest.mark.parametrize("dropout", [dropout, _by_hash])


@forms
@pytest.mark.parametrize("p", [0.003, 0.1, 0.5, 0.9])
def test_a_share_is_dropped_and_the_rest_scaled_so_that_the_mean_stays(p, dropout):
    torch.manual_seed(0)
    n = 100_003
    x = torch.ones(n)
    y = dropout(x, p)
    dropped = (y == 0).sum().item()
    assert abs(dropped - n * p) < 5 * math.sqrt(n * p * (1 - p))
    kept = y[y != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)), rtol=1e-4, atol=0)


@forms
def test_numbers_are_dropped_independently_of_their_neighbours(dropout):
    """Four numbers share a 64-bit word of random bits."""
    torch.manual_seed(0)
    n, p = 400_000, 0.3
    fates = (dropout(torch.ones(n), p) == 0).double() - p
    for distance in (1, 2, 3, 4, 5, 8):
        covariance = (fates[distance:] * fates[:-distance]).mean().item()
        assert abs(covariance) < 5 * p * (1 - p) / math.sqrt(n)
    for place in range(4):
        assert abs(fates[place::4].mean().item()) < 5 * math.sqrt(p * (1 - p) / (n / 4))


@forms
def test_the_gradient_passes_where_the_numbers_did(dropout):
    torch.manual_seed(0)
    x = torch.randn(7, 11, 3, requires_grad=True)
    y = dropout(x, 0.4)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient * x, y)
    assert 0 < (gradient == 0).sum() < gradient.numel()


@forms
def test_a_seed_drops_the_same_and_another_call_does_not(dropout):
    x = torch.ones(1000)
    torch.manual_seed(5)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(5)
    assert torch.equal(dropout(x, 0.5), first)
    assert not torch.equal(first, second)


@forms
@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 0), (3, 1, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_shape_and_type_stay(shape, dtype, dropout):
    y = dropout(torch.ones(shape, dtype=dtype), 0.5)
    assert (y.shape, y.dtype) == (shape, dtype)


@forms
@pytest.mark.parametrize("p", [1e-9, 1 - 1e-9])
def test_the_smallest_and_the_largest_share_leave_finite_numbers(p, dropout):
    x = torch.randn(100)
    assert dropout(x, p).isfinite().all()
    assert torch.equal(dropout(x, 0.0), x)


def test_masks_of_one_hash_have_nothing_to_do_with_each_other():
    """Neither at equal positions nor at shifted ones."""
    torch.manual_seed(0)
    n, p = 400_000, 0.3
    fates = [(_by_hash(torch.ones(n), p) == 0).double() - p for _ in range(4)]
    for i, one in enumerate(fates):
        for other in fates[:i]:
            for distance in (0, 1, 2, 64):
                covariance = (one[distance:] * other[: n - distance]).mean().item()
                assert abs(covariance) < 5 * p * (1 - p) / math.sqrt(n)


def test_noise_replaces_a_share_by_characters_that_are_all_as_likely():
    torch.manual_seed(0)
    n, p, vocab_size = 200_000, 0.2, 5
    idx = torch.full((2, n // 2), 3)
    counts = noised(idx, p, vocab_size).flatten().bincount(minlength=vocab_size)
    each = p / vocab_size
    for i, count in enumerate(counts.tolist()):
        share = each + (1 - p) * (i == 3)
        assert abs(count - n * share) < 5 * math.sqrt(n * share * (1 - share))


def test_the_module_drops_in_training_alone():
    torch.manual_seed(0)
    module, x = Dropout(0.5), torch.ones(100)
    assert (module(x) == 0).any()
    assert torch.equal(module.eval()(x), x)
