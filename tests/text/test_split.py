"""Splitting a text."""

import os

import numpy as np
import pytest

from litchar.errors import UserError
from litchar.text import Corpus, Text


@pytest.mark.parametrize(
    ("val", "test"),
    [(0.1, 0.0), (0.1, 0.2), (0.05, 0.05), (0.3, 0.69), (0.001, 0.0), (0.25, 0.5)],
)
def test_splits_follow_each_other_in_the_text_and_share_nothing(val, test):
    bounds = Text(val_fraction=val, test_fraction=test).bounds(np.ones(1000))
    assert list(bounds) == ["train", "val", *(["test"] if test else [])]
    starts, stops = zip(*bounds.values(), strict=True)
    assert (starts[0], *stops) == (*starts, 1000)
    for name, fraction in {"train": 1 - val - test, "val": val, "test": test}.items():
        if name in bounds:
            start, stop = bounds[name]
            assert abs(stop - start - 1000 * fraction) <= 1


@pytest.mark.parametrize(("most", "size"), [(30, 30), (100, 100), (1000, 100), (None, 100)])
@pytest.mark.parametrize("test", [0.0, 0.2])
def test_of_a_long_text_no_more_than_so_many_characters_validate(most, size, test):
    text = Text(val_fraction=0.1, test_fraction=test, max_val_characters=most)
    bounds = text.bounds(np.ones(1000))
    end = round(1000 * (1 - test))
    assert bounds["val"] == (end - size, end)
    assert bounds["train"] == (0, end - size)


def test_of_documents_nearly_so_many_validate():
    text = Text(document="line", max_val_characters=44)
    start, stop = text.bounds(tokens_of(*[10] * 100))["val"]
    assert stop - start == 1 + 4 * 11  # documents and their boundaries


def tokens_of(*lengths: int) -> np.ndarray:
    """Return tokens of documents with these lengths, each with an id of its own."""
    pieces = [np.zeros(1, np.int64)]
    for i, length in enumerate(lengths, 1):
        pieces += [np.full(length, i), np.zeros(1, np.int64)]
    return np.concatenate(pieces)


@pytest.mark.parametrize(("val", "test"), [(0.1, 0.0), (0.2, 0.1), (0.01, 0.01), (0.5, 0.4)])
@pytest.mark.parametrize("seed", range(5))
def test_no_document_lies_in_two_splits_and_none_is_lost(val, test, seed):
    lengths = np.random.default_rng(seed).integers(1, 30, 100)
    tokens = tokens_of(*lengths)
    bounds = Text(document="line", val_fraction=val, test_fraction=test).bounds(tokens)
    splits = [tokens[start:stop] for start, stop in bounds.values()]
    assert all(ids[0] == 0 == ids[-1] for ids in splits)
    assert np.concatenate([ids[1:] for ids in splits]).tolist() == tokens[1:].tolist()
    share = len(splits[0]) / len(tokens)
    assert abs(share - (1 - val - test)) < 31 / len(tokens)
    for ids in splits:
        assert len(np.unique(ids)) > 1


@pytest.mark.parametrize(
    ("lengths", "val", "test", "counts"),
    [
        ((5, 5), 0.1, 0.0, [1, 1]),  # one at least in each
        ((5, 5), 0.9, 0.0, [1, 1]),
        ((5, 5, 5), 0.05, 0.05, [1, 1, 1]),
        ((1, 1, 1, 1, 30, 5), 0.1, 0.0, [5, 1]),
        ((40, 10, 1, 1), 0.1, 0.0, [2, 2]),  # the nearer of the edges around
    ],
)
def test_few_documents_are_split_as_near_to_the_fractions_as_can_be(lengths, val, test, counts):
    tokens = tokens_of(*lengths)
    bounds = Text(document="file", val_fraction=val, test_fraction=test).bounds(tokens)
    assert [(tokens[a:b] == 0).sum() - 1 for a, b in bounds.values()] == counts


def test_one_document_cannot_be_split():
    with pytest.raises(UserError, match="the text has 1 document, too few for 2 splits"):
        Text(document="line").bounds(tokens_of(50))
    with pytest.raises(UserError, match="the text has 2 documents, too few for 3 splits"):
        Text(document="line", test_fraction=0.1).bounds(tokens_of(50, 50))


def test_a_document_longer_than_the_largest_split_is_refused():
    reason = "a document of 95 characters is longer than the largest split, 90% of the text's 101"
    with pytest.raises(UserError, match=reason):
        Text(document="line").bounds(tokens_of(4, 95))
    assert Text(document="line", val_fraction=0.02).bounds(tokens_of(95, 4))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_val_characters": 0}, "data.max_val_characters=0: must be a whole number"),
        ({"max_val_characters": True}, "data.max_val_characters=True: must be a whole number"),
        ({"document": "page"}, "data.document=page: must be line, file or null"),
        ({"shuffle": True}, "data.shuffle=true shuffles documents, but"),
        ({"shuffle": "yes", "document": "line"}, "data.shuffle=yes: must be true or false"),
        ({"unit": "word"}, "data.unit=word: must be character or byte"),
        ({"path": "a.txt", "name": "b"}, "data.path=a.txt and data.name=b: both name a text"),
        ({"path": "a.jsonl", "field": ["text"]}, "data.field=.*: must be text"),
        ({"path": "a", "pattern": 5}, "data.pattern=5: must be text"),
        ({"path": "a", "split": "train[:10%]"}, "data.split=.*: needs data.name, which"),
        ({"path": "a", "subset": "x"}, "data.subset=x: needs data.name, which is not set"),
        ({"name": "a", "field": "x"}, "data.field=x: needs data.path or data.mixture, which"),
        ({"source": str, "column": "x"}, "data.column=x: needs data.path or data.name or"),
    ],
)
def test_settings_without_meaning_are_refused(settings, reason):
    with pytest.raises(UserError, match=reason):
        Text(**settings)


def test_what_can_be_read_once_is_no_text(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"pipe: neither a file nor a directory"):
        Text(path=str(tmp_path / "pipe")).open()


def test_a_corpus_is_looked_for_once():
    looked = []

    def source() -> Corpus:
        looked.append(1)
        return Corpus([])

    text = Text(source=source)
    assert text.corpus is text.corpus
    assert len(looked) == 1
