"""Windows and splits of documents, under a real Trainer."""

import lightning as L
import numpy as np
import pytest
import torch

from litchar.data import TextDataModule
from litchar.data.windows import IGNORED, document_starts, random_words
from litchar.errors import UserError

BLOCK = 8


@pytest.fixture
def path(tmp_path):
    """300 lines of 1 to 30 characters, the longest much longer than a window."""
    draw = np.random.default_rng(2)
    lines = ["".join(map(chr, draw.integers(97, 123, draw.integers(1, 31)))) for _ in range(300)]
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def make_data(path):
    def make_data(kind=TextDataModule, **changes) -> TextDataModule:
        defaults = {
            "path": str(path),
            "document": "line",
            "start_at_document": True,
            "block_size": BLOCK,
            "batch_size": 6,
            "val_batch_size": 5,
            "seed": 3,
        }
        data = kind(**(defaults | changes))
        data.setup()
        data.trainer = L.Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            use_distributed_sampler=False,
        )
        return data

    return make_data


def first_batches(data: TextDataModule, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    windows = data.train_dataloader().dataset
    return [windows[batch] for batch in range(count)]


def test_windows_start_where_documents_do_and_every_block_in_longer_ones(make_data):
    data = make_data()
    tokens = data.splits["train"].numpy()
    expected, length = [], 0
    for place, token in enumerate(tokens[:-1]):
        length = 0 if token == 0 else length + 1
        if length % BLOCK == 0:
            expected.append(place)
    assert document_starts(tokens, BLOCK).tolist() == expected
    seen = np.zeros(len(tokens), bool)
    for start in expected:
        seen[start + 1 : start + 1 + BLOCK] = True
    assert seen[1:].all()


def test_a_window_that_starts_at_a_document_is_a_function_of_seed_and_index(make_data):
    data = make_data()
    tokens = data.splits["train"]
    places = document_starts(tokens.numpy(), BLOCK)
    starts = places[random_words(3, 0, 5 * 6) % np.uint64(len(places))]
    rows = [row for batch in first_batches(data, 5) for row in zip(*batch, strict=True)]
    for start, (idx, targets) in zip(starts, rows, strict=True):
        behind = tokens[start + 1 : start + 1 + BLOCK].long()
        assert targets[: len(behind)].tolist() == behind.tolist()
        assert (targets[len(behind) :] == IGNORED).all()
        assert idx[: len(behind)].tolist() == tokens[start : start + BLOCK].tolist()[: len(behind)]


class OnDevice(TextDataModule):
    def _has_room(self, name: str) -> bool:
        return True


def test_gathering_on_the_device_changes_no_window(make_data):
    by_loader, on_device = make_data(), make_data(OnDevice)
    for batch, other in zip(first_batches(by_loader, 3), first_batches(on_device, 3), strict=True):
        assert all(map(torch.equal, batch, other))


def test_without_being_asked_windows_of_documents_begin_anywhere(make_data):
    data = make_data(start_at_document=False)
    idx, _ = first_batches(data, 1)[0]
    offsets = random_words(3, 0, 6) % np.uint64(len(data.splits["train"]) - BLOCK)
    assert idx.tolist() == [data.splits["train"][int(i) :][:BLOCK].tolist() for i in offsets]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"document": None}, "data.start_at_document=true, but data.document is not set"),
        ({"start_at_document": 1}, "data.start_at_document=1: must be true or false"),
        ({"document": "file"}, "the text has 1 document, too few for 2 splits"),
    ],
)
def test_what_cannot_be_is_refused(make_data, settings, reason):
    with pytest.raises(UserError, match=reason):
        make_data(**settings)
