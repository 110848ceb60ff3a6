"""The bigram model."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from litchar.models import Bigram


def test_the_logits_are_the_last_characters_row_of_the_table():
    model = Bigram(vocab_size=7, block_size=4)
    idx = torch.tensor([[0, 6, 6, 3], [1, 2, 3, 4]])
    logits = model(idx)
    assert logits.shape == (2, 4, 7)
    table = model.next_logits.weight
    for b in range(2):
        for t in range(4):
            assert torch.equal(logits[b, t], table[idx[b, t]])


@pytest.mark.parametrize("block_size", [1, 256])
def test_the_block_size_changes_neither_logits_nor_parameters(block_size):
    torch.manual_seed(0)
    model = Bigram(vocab_size=7, block_size=block_size)
    torch.manual_seed(0)
    other = Bigram(vocab_size=7, block_size=8)
    assert model.block_size == block_size
    assert torch.equal(model(torch.arange(7)[None]), other(torch.arange(7)[None]))
    assert sum(p.numel() for p in model.parameters()) == 49


def test_training_approaches_the_counted_probabilities_and_their_entropy():
    text = "the cat sat on the mat and the dog sat on the cat and then " * 4
    characters = sorted(set(text))
    ids = torch.tensor([characters.index(c) for c in text])
    n = len(characters)
    counts = torch.zeros(n, n)
    for a, b in itertools.pairwise(ids.tolist()):
        counts[a, b] += 1
    counted = counts / counts.sum(1, keepdim=True)
    pairs = counts / counts.sum()
    optimum = -(pairs * counted.clamp(min=1e-12).log()).sum().item()
    assert 0.5 < optimum < math.log(n)

    torch.manual_seed(0)
    model = Bigram(n, block_size=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(400):
        loss = F.cross_entropy(model(ids[None, :-1])[0], ids[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    assert optimum <= loss.item() < optimum + 0.005
    learned = model(torch.arange(n)[None])[0].softmax(-1)
    assert (learned - counted).abs().max() < 0.01
