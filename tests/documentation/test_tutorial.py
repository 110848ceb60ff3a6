"""The tutorial's code, assembled as the page instructs, does what the page says."""

from types import SimpleNamespace

import pytest
import torch
from commands import ROOT, examples

from litchar.models import Transformer

STEPS = ("Positions", "OneHead", "SeveralHeads", "Thinking", "Deep", "Residual", "Whole")
V, T = 65, 32


@pytest.fixture(scope="module")
def lesson():
    code = [text for place, text, _ in examples(ROOT / "docs/tutorial.md") if place.endswith(".py")]
    assert len(code) == len(STEPS)
    names = {}
    exec("\n".join(code), names)
    return SimpleNamespace(**names)


@pytest.mark.parametrize("step", STEPS)
def test_each_step_looks_back_as_far_as_it_should_and_never_ahead(lesson, step):
    torch.manual_seed(0)
    model = getattr(lesson, step)(V, T)
    idx = torch.randint(V, (1, T))
    moved = idx.clone()
    moved[0, 10] = (idx[0, 10] + 1) % V
    with torch.no_grad():
        changed = (model(idx) != model(moved)).any(-1)[0]
    assert not changed[:10].any()
    assert changed[10]
    assert changed[11:].all() == (step != "Positions")


def test_the_last_step_is_the_teaching_transformer(lesson):
    torch.manual_seed(0)
    ours = lesson.Whole(V, T)
    package = Transformer(
        V,
        T,
        n_layer=4,
        n_head=4,
        n_embd=64,
        position="learned",
        norm="layer",
        norm_eps=1e-5,
        qk_norm=False,
        activation="relu",
        bias=True,
        qkv_bias=False,
        head_bias=True,
        init="torch",
    )
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in package.parameters())
    take = {
        package.token_embedding: ours.characters,
        package.position_embedding: ours.positions,
        package.norm: ours.between[4],
        package.head: ours.head,
    }
    for theirs, block in zip(package.blocks, ours.between, strict=False):
        (norm, heads), (feed_norm, feed) = block.attention, block.feed_forward
        take |= {theirs.attention_norm: norm, theirs.feed_forward_norm: feed_norm}
        take |= {theirs.attention.output: heads.output}
        take |= {theirs.feed_forward.input: feed[0], theirs.feed_forward.output: feed[2]}
        rows = [getattr(h, kind).weight for kind in ("query", "key", "value") for h in heads.heads]
        theirs.attention.qkv.weight.data = torch.cat(rows).data
    for theirs, module in take.items():
        theirs.load_state_dict(module.state_dict())
    idx = torch.randint(V, (3, T))
    torch.testing.assert_close(ours(idx), package(idx))
