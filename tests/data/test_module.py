"""The data module, under a real Trainer."""

import inspect
import logging
import warnings

import lightning as L
import numpy as np
import pytest
import torch

from litchar.data import TextDataModule
from litchar.data.windows import IGNORED, random_words
from litchar.errors import UserError
from litchar.text.split import BATCHED_BY

LENGTH = 1003  # 902 characters to train on and 101 to validate


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def path(tmp_path):
    """A text whose windows are all distinct."""
    characters = np.random.default_rng(0).integers(ord("A"), ord("z"), LENGTH, dtype=np.uint8)
    path = tmp_path / "text.txt"
    path.write_bytes(characters.tobytes())
    return path


@pytest.fixture
def make_data(path):
    def make_data(kind=TextDataModule, **changes) -> TextDataModule:
        defaults = {
            "path": str(path),
            "block_size": 8,
            "batch_size": 6,
            "val_batch_size": 5,
            "train_sample": 100,
            "seed": 3,
        }
        return kind(**(defaults | changes))

    return make_data


class Recorder(L.LightningModule):
    """Records every batch that it receives."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {"train": [], "val": [], "train_sample": [], "test": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch)
        return self.weight.square()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.seen[("val", "train_sample")[dataloader_idx]].append(batch)

    def test_step(self, batch, batch_idx):
        self.seen["test"].append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def make_trainer(tmp_path):
    def make_trainer(**changes) -> L.Trainer:
        quiet = {
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "default_root_dir": tmp_path,
        }
        return L.Trainer(**(quiet | {"max_steps": 4, "val_check_interval": 4} | changes))

    return make_trainer


@pytest.fixture
def record(make_trainer):
    """Fit, and test if there is a test split; return the batches by name."""

    def record(data: TextDataModule, **trainer_changes) -> dict[str, list]:
        recorder, trainer = Recorder(), make_trainer(**trainer_changes)
        trainer.fit(recorder, data)
        if data.text.test_fraction:
            trainer.test(recorder, data, verbose=False)
        return recorder.seen

    return record


def equal(batches, others) -> bool:
    return len(batches) == len(others) and all(
        torch.equal(a, b)
        for batch, other in zip(batches, others, strict=True)
        for a, b in zip(batch, other, strict=True)
    )


def texts_of(data: TextDataModule, batches) -> tuple[list[str], list[str]]:
    """Return batches' inputs and non-ignored targets as texts, without windows past the end."""
    decode = data.splits.store.vocabulary.decode
    pairs = [pair for batch in batches for pair in zip(*batch, strict=True)]
    rows = [(x, y[y != IGNORED]) for x, y in pairs]
    rows = [(x[: len(y)], y) for x, y in rows if len(y)]
    return [decode(x) for x, _ in rows], [decode(y) for _, y in rows]


# Batches


def test_training_batches_are_the_windows_of_seed_and_index(make_data, record, path):
    data = make_data()
    inputs, targets = texts_of(data, record(data)["train"])
    text = path.read_text()
    offsets = (random_words(3, 0, 4 * 6) % np.uint64(902 - 8)).tolist()
    assert inputs == [text[i : i + 8] for i in offsets]
    assert targets == [text[i + 1 : i + 9] for i in offsets]


def test_validation_and_test_predict_each_character_of_their_split_once(make_data, record, path):
    data = make_data(val_fraction=0.1, test_fraction=0.05)
    seen = record(data)
    text = path.read_text()
    train_end, val_end = int(LENGTH * 0.85), int(LENGTH * 0.95)
    for name, part in (("val", text[train_end:val_end]), ("test", text[val_end:])):
        inputs, targets = texts_of(data, seen[name])
        assert "".join(targets) == part[1:]
        assert "".join(inputs) == part[:-1]
        assert {x.shape for batch in seen[name] for x in batch} == {(5, 8)}


def test_validation_also_scores_an_even_sample_of_the_training_split(make_data, record, path):
    data = make_data(train_sample=100)
    inputs, targets = texts_of(data, record(data)["train_sample"])
    text = path.read_text()[:902]
    starts = range(0, 901, 8 * 9)  # 902 // 100 = 9: every ninth window
    assert inputs == [text[:-1][i : i + 8] for i in starts]
    assert targets == [text[i + 1 : i + 9] for i in starts]


def test_a_training_split_shorter_than_the_sample_is_scored_whole(make_data, record, path):
    data = make_data(train_sample=65_536)
    _, targets = texts_of(data, record(data)["train_sample"])
    assert "".join(targets) == path.read_text()[1:902]


def test_workers_change_no_batch(make_data, record):
    alone, helped = (record(make_data(num_workers=n, test_fraction=0.1)) for n in (0, 2))
    for name, batches in alone.items():
        assert batches
        assert equal(batches, helped[name])


class OnDevice(TextDataModule):
    """Keeps every split on the device, as on a GPU with room for it."""

    def _has_room(self, name: str) -> bool:
        return True


def test_gathering_on_the_device_changes_no_batch(make_data, record):
    by_loader = record(make_data(test_fraction=0.1))
    on_device = record(make_data(OnDevice, test_fraction=0.1))
    for name, batches in by_loader.items():
        assert equal(batches, on_device[name])


def test_workers_gather_training_batches_and_idle_where_the_device_does(make_data, make_trainer):
    for kind, workers in ((TextDataModule, 2), (OnDevice, 0)):
        data = make_data(kind, num_workers=2)
        data.setup()
        data.trainer = make_trainer()
        assert data.train_dataloader().num_workers == workers
        for loader in data.val_dataloader():  # each validation would start them anew
            assert loader.num_workers == 0


@pytest.mark.gpu
def test_an_accelerator_sees_the_batches_that_the_cpu_sees(make_data, record):
    by_loader = record(make_data(test_fraction=0.1, num_workers=2))
    on_device = record(make_data(test_fraction=0.1, num_workers=2), accelerator="gpu", devices=1)
    for name, batches in on_device.items():
        assert all(x.is_cuda for batch in batches for x in batch)
        assert equal([[x.cpu() for x in batch] for batch in batches], by_loader[name])


def test_another_seed_sees_other_training_windows_and_validates_on_the_same(make_data, record):
    one, other = record(make_data(seed=1)), record(make_data(seed=2))
    assert not any(equal([a], [b]) for a in one["train"] for b in other["train"])
    assert equal(one["val"], other["val"])
    assert equal(one["train_sample"], other["train_sample"])


class SaveAt(L.Callback):
    def __init__(self, step: int, path) -> None:
        self.step = step
        self.path = path

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_goes_on_with_the_batch_after_the_last(
    make_data, make_trainer, tmp_path, workers
):
    whole, resumed = Recorder(), Recorder()
    save = SaveAt(3, tmp_path / "at3.ckpt")
    trainer = make_trainer(max_steps=7, val_check_interval=2, callbacks=[save])
    trainer.fit(whole, make_data(num_workers=workers))
    make_trainer(max_steps=7, val_check_interval=2).fit(
        resumed, make_data(num_workers=workers), ckpt_path=save.path, weights_only=True
    )
    assert len(whole.seen["train"]) == 7
    assert equal(resumed.seen["train"], whole.seen["train"][3:])


def test_overfitting_trains_on_the_same_few_batches_and_scores_those(make_data, record):
    seen = record(make_data(), overfit_batches=2, max_steps=6, val_check_interval=1.0)
    first_two = seen["train"][:2]
    assert not equal(first_two[:1], first_two[1:])
    assert equal(seen["train"], first_two * 3)
    assert equal(seen["train_sample"][:2], first_two)


# Splits


def test_the_splits_of_tiny_shakespeare_have_their_published_sizes(make_data, tmp_path):
    path = tmp_path / "long.txt"
    path.write_bytes(b"ab" * (1_115_394 // 2))
    data = make_data(path=str(path), val_fraction=0.1)
    data.setup()
    assert {name: len(ids) for name, ids in data.splits.items()} == {
        "train": 1_003_854,
        "val": 111_540,
    }
    assert data.splits["train"].dtype == torch.uint8


def test_splits_are_views_of_the_memory_map(make_data):
    data = make_data()
    data.setup()
    start = data.splits.store.tokens.ctypes.data
    assert data.splits["train"].data_ptr() == start
    assert data.splits["val"].data_ptr() == start + 902


def test_a_second_setup_keeps_the_store(make_data, path):
    data = make_data()
    data.setup("fit")
    store = data.splits.store
    path.write_text("something else")
    data.setup("test")
    assert data.splits.store is store


# What is refused


@pytest.mark.parametrize(
    ("fractions", "shortest", "largest"),
    [
        ({"val_fraction": 0.1}, "val", 100),
        ({"val_fraction": 0.95}, "train", 49),
        ({"val_fraction": 0.1, "test_fraction": 0.05}, "test", 50),
    ],
)
def test_a_block_size_too_long_names_the_largest_that_fits_and_that_one_works(
    make_data, record, fractions, shortest, largest
):
    with pytest.raises(UserError, match=f"data.block_size={largest}$") as error:
        make_data(block_size=largest + 1, **fractions).setup()
    message = str(error.value)
    assert f"data.block_size={largest + 1} needs at least {largest + 2} characters" in message
    assert f"{shortest} has {largest + 1};" in message

    seen = record(make_data(block_size=largest, **fractions))
    assert all(targets.max() >= 0 for batches in seen.values() for _, targets in batches)
    assert {x.shape for batch in seen["train"] for x in batch} == {(6, largest)}


def test_a_text_too_short_to_be_split_is_refused(make_data, path):
    path.write_text("abab")
    with pytest.raises(UserError, match="too short to be split"):
        make_data(block_size=1).setup()


def test_a_limit_that_leaves_nothing_to_validate_is_refused_by_name(make_data):
    with pytest.raises(UserError, match=r"raise data.max_val_characters"):
        make_data(block_size=1, max_val_characters=1).setup()


@pytest.mark.parametrize("fraction", [0, 0.0, 1, -0.1, 1.5, float("nan")])
def test_a_validation_fraction_that_leaves_nothing_is_refused(make_data, fraction):
    with pytest.raises(UserError, match=r"data\.val_fraction=.* between 0 and 1"):
        make_data(val_fraction=fraction).setup()


@pytest.mark.parametrize("fraction", [-0.1, 0.9, 1, float("nan")])
def test_a_test_fraction_that_leaves_nothing_is_refused(make_data, fraction):
    with pytest.raises(UserError, match=rf"data\.test_fraction={fraction}: must"):
        make_data(val_fraction=0.1, test_fraction=fraction).setup()


@pytest.mark.parametrize("name", ["block_size", "batch_size", "val_batch_size"])
@pytest.mark.parametrize("size", [0, -1, 1.5, True])
def test_a_size_that_is_no_whole_number_from_one_on_is_refused_by_name(make_data, name, size):
    reason = rf"data\.{name}={size}: must be a whole number of at least 1"
    with pytest.raises(UserError, match=reason):
        make_data(**{name: size}).setup()


def test_data_without_a_path_is_refused(make_data):
    with pytest.raises(UserError, match=r"data\.path is not set"):
        make_data(path=None).setup()


def test_the_pattern_says_which_files_of_a_directory_are_the_text(make_data, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.md").write_text("one two " * 20)
    (folder / "b.txt").write_text("not this")
    data = make_data(path=str(folder), pattern="*.md")
    data.setup()
    assert data.splits.store.vocabulary.decode(data.splits.store.tokens) == "one two " * 20


def test_a_path_goes_before_the_source(make_data, path):
    def never():
        raise AssertionError

    data = make_data(source=never)
    data.setup()
    assert data.splits.store.vocabulary.decode(data.splits.store.tokens) == path.read_text()


def test_a_batch_that_the_devices_cannot_share_is_refused(make_data, make_trainer):
    data = make_data(batch_size=7)
    data.setup()
    data.trainer = make_trainer(devices=2, strategy="ddp")
    with pytest.raises(UserError, match=r"data\.batch_size=7 cannot be shared by 2 devices"):
        data.train_dataloader()


def test_a_text_knows_which_keys_are_those_of_its_batches():
    taken = inspect.signature(TextDataModule).parameters
    assert {"_target_", *taken} == {*BATCHED_BY, "text"}
