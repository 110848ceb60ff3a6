"""Several corpora, mixed by weight."""

import csv

import numpy as np
import pytest

from conftest import summary
from litchar.data import TextDataModule
from litchar.data.windows import RandomWindows, Span, document_starts, random_places
from litchar.errors import UserError
from litchar.text import Text
from litchar.text.store import boundaries

LOWER, UPPER = "abcdefghij", "ABCDEFGHIJ€"


@pytest.fixture
def texts(tmp_path):
    """One of 6,000 lower-case letters, one of 2,000 upper-case ones and a wider character."""
    draw = np.random.default_rng(0)
    paths = []
    for name, letters, length in (("lower.txt", LOWER, 6000), ("upper.txt", UPPER, 2000)):
        text = "".join(draw.choice(list(letters), length))
        paths.append(tmp_path / name)
        paths[-1].write_text(text)
    return paths


def mixture_of(paths, *weights):
    return [
        {"path": str(path), "weight": weight} for path, weight in zip(paths, weights, strict=True)
    ]


def module(paths, *weights, **changes) -> TextDataModule:
    settings = {"block_size": 8, "batch_size": 4, "val_batch_size": 5} | changes
    data = TextDataModule(mixture=mixture_of(paths, *weights), seed=3, **settings)
    data.setup()
    return data


def windows(
    data: TextDataModule, batch_size: int = 4, starts: np.ndarray | None = None
) -> RandomWindows:
    parts = zip(data.text.weights.values(), data.splits.parts("train"), strict=True)
    return RandomWindows(
        Span(data.splits.store.tokens, 0, len(data.splits["train"])),
        data.block_size,
        batch_size,
        3,
        starts=starts,
        mixture=[(weight, *part) for weight, part in parts],
    )


def test_each_corpus_is_split_by_itself_with_one_vocabulary(texts):
    data = module(texts, 2, 1, val_fraction=0.1, test_fraction=0.05)
    lower, upper = (path.read_text() for path in texts)
    assert data.splits.store.vocabulary.characters == "".join(sorted(LOWER + UPPER))
    decode = data.splits.store.vocabulary.decode
    assert decode(data.splits["train"].numpy()) == lower[:5100] + upper[:1700]
    assert decode(data.splits["val"].numpy()) == lower[5100:5700] + upper[1700:1900]
    assert decode(data.splits["test"].numpy()) == lower[5700:] + upper[1900:]
    assert data.splits.parts("val") == [(0, 600), (600, 800)]


@pytest.mark.parametrize("weights", [(2, 1), (1, 9)])
def test_windows_come_from_the_corpora_by_weight_and_from_one_each(texts, weights):
    data = module(texts, *weights)
    decode = data.splits.store.vocabulary.decode
    inputs, targets = windows(data, 4000)[0]
    rows = [decode(row) + decode(target)[-1] for row, target in zip(inputs, targets, strict=True)]
    lower = [row for row in rows if set(row) <= set(LOWER)]
    assert all(set(row) <= set(UPPER) for row in rows if row not in set(lower))
    share = weights[0] / sum(weights)
    assert abs(len(lower) / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5
    assert min(texts[0].read_text().find(row) for row in lower) < 60  # from its whole length
    assert max(texts[0].read_text().find(row) for row in lower) > 5300


def test_a_window_of_a_mixture_is_a_function_of_seed_and_number(texts):
    data = module(texts, 2, 1)
    by_four = np.concatenate([windows(data, 4).offsets(k) for k in range(15)])
    by_ten = np.concatenate([windows(data, 10).offsets(k) for k in range(6)])
    assert by_four.tolist() == by_ten.tolist()
    other = random_places(4, 0, 60, [2 / 3, 1 / 3], np.array([0, 5400]), np.array([5392, 7192]))
    assert by_four.tolist() != other.tolist()


def test_a_loss_for_each_corpus_one_for_all_and_the_mean_by_weight(train, texts, loss_of, tmp_path):
    mixture = (
        f"data.mixture=[{{path:{texts[0]},weight:3}},{{path:{texts[1]},weight:1,name:capitals}}]"
    )
    run_dir = train("data.path=null", mixture, "data.test_fraction=0.05", dashboard=True)
    with open(run_dir / "metrics.csv", newline="") as file:
        row = [row for row in csv.DictReader(file) if row["val/loss"]][-1]
    lower, upper = (float(row[f"val/loss_{name}"]) for name in ("lower.txt", "capitals"))
    assert float(row["val/loss"]) == pytest.approx((3 * lower + upper) / 4, abs=1e-9)
    assert float(row["val/loss"]) == summary(run_dir)["val_loss"]
    assert float(row["val/loss_all"]) == pytest.approx((599 * lower + 199 * upper) / 798, abs=1e-9)
    assert {"train/eval_loss", "train/eval_loss_all"} <= set(row)
    for name, text, loss in (("a", texts[0], lower), ("b", texts[1], upper)):
        part = text.read_text()
        split = tmp_path / f"{name}-val.txt"
        split.write_text(part[int(len(part) * 0.85) : int(len(part) * 0.95)])
        scored = loss_of(f"checkpoint={run_dir}/checkpoints/last.ckpt", f"data.path={split}")
        assert scored == pytest.approx(loss, abs=1e-6)
    assert summary(run_dir)["test_loss"] is not None


def test_documents_of_a_mixture_stay_whole_with_one_boundary_between(tmp_path):
    for name, letter in (("a", "x"), ("b", "y")):
        (tmp_path / name).write_text("\n".join(letter * 5 for _ in range(20)))
    text = Text(
        mixture=mixture_of([tmp_path / "a", tmp_path / "b"], 1, 1), document="line", shuffle=True
    )
    store = text.open()
    assert set(np.diff(boundaries(store.tokens))) == {6}
    for name, (start, stop) in text.bounds_in(store).items():
        ids = store.tokens[start:stop]
        assert ids[0] == ids[-1] == 0
        each = {"train": 18, "val": 2}[name]
        assert store.vocabulary.decode(ids).split() == ["xxxxx"] * each + ["yyyyy"] * each
    again = Text(mixture=text.mixture, document="line", shuffle=True).cached(store.fingerprint)
    assert again.ranges == store.ranges


def test_windows_that_start_at_documents_start_at_those_of_their_own_corpus(tmp_path):
    for name, letter in (("a", "x"), ("b", "y")):
        (tmp_path / name).write_text("\n".join(letter * 12 for _ in range(20)))
    paths = [tmp_path / "a", tmp_path / "b"]
    data = module(paths, 1, 1, document="line", start_at_document=True)
    starts = document_starts(data.splits["train"].numpy(), data.block_size)
    drawn = windows(data, starts=starts)
    assert drawn.firsts.tolist() == [0, 36]  # 18 documents to train on, with two places each
    assert drawn.ends.tolist() == [36, 72]


@pytest.mark.parametrize(
    ("mixture", "reason"),
    [
        ([{"path": "a.txt"}], "needs at least two corpora"),
        (5, "data.mixture=5: must be a list"),
        ("a.txt", "data.mixture=a.txt: must be a list"),
        ([{"path": "a.txt"}, {"weight": 2}], r"data.mixture\[1\]: has no path"),
        ([{"path": "a.txt", "weight": 0}], r"data.mixture\[0\]: weight=0"),
        ([{"path": "a.txt", "field": 1}], r"data.mixture\[0\]: field=1 must be text"),
        ([{"path": "a.txt", "weihgt": 1}], r"data.mixture\[0\]: unknown key weihgt"),
        ([{"path": "x/a.txt"}, {"path": "y/a.txt"}], r"data.mixture\[1\]: the name a.txt is taken"),
        (
            [{"path": "a.txt"}, {"path": "all"}],
            r"data.mixture\[1\]: the name all means all texts together",
        ),
    ],
)
def test_a_malformed_mixture_is_refused_by_its_place(mixture, reason):
    with pytest.raises(UserError, match=reason):
        Text(mixture=mixture)


@pytest.mark.parametrize("key", ["path", "name"])
def test_another_text_beside_a_mixture_is_refused(key):
    with pytest.raises(UserError, match=rf"data\.{key}=other: .* leave data\.{key} out"):
        Text(mixture=[{"path": "a.txt"}, {"path": "b.txt"}], **{key: "other"})


def test_a_corpus_too_short_for_the_windows_is_named(texts):
    with pytest.raises(UserError, match=r"upper\.txt has 200 characters in its val split"):
        module(texts, 1, 1, block_size=250)


@pytest.mark.parametrize(
    ("document", "content", "reason"),
    [
        (None, "", "the text is empty"),
        ("line", "\n", "the text is empty"),
        ("line", "one", "the text has 1 document, too few for 2 splits"),
    ],
)
def test_a_corpus_that_cannot_be_split_is_named(texts, document, content, reason):
    texts[1].write_text(content)
    if document:
        texts[0].write_text("abc\n" * 20)
    with pytest.raises(UserError, match=rf"^\S*upper\.txt: {reason}"):
        module(texts, 1, 1, document=document)


def test_a_path_that_is_a_number_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1984").write_text("war is peace")
    paths = [{"path": 1984}, {"path": [1984, "1984"], "name": "again"}]
    assert len(Text(mixture=paths).corpus.paths) == 3
