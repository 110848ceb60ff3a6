"""A store larger than memory."""

import json
import multiprocessing
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from conftest import summary
from litchar.data.windows import RandomWindows, Span
from litchar.text import Corpus, Encoding, Vocabulary, remembered
from litchar.text.store import _place, _seal

BIG = 20_000_000_000


class Sparse(Corpus):
    """A text of 20 GB that is never actually read."""

    def fingerprint(self) -> str:
        return "5" * 64


def sparse(name: str) -> Corpus:
    return Sparse([Path(name)])


def sparse_file(path: Path, length: int) -> None:
    """Write a store's array of `length` zeros as a sparse file, which takes no disk space."""
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(length,)).flush()


@pytest.fixture
def big_store(tmp_path, monkeypatch):
    """A store of `Sparse` with its checksum already remembered."""
    monkeypatch.setattr(remembered, "SETTLED_SECONDS", -1.0)
    place = _place("5" * 64, Encoding())
    place.mkdir(parents=True)
    sparse_file(place / "tokens.npy", BIG)
    found = remembered.remembered([place / "tokens.npy"], "", lambda: "known")
    meta = {"vocabulary": Vocabulary("ab").to_json(), "changes": [], "ranges": {}}
    (place / "meta.json").write_text(json.dumps(meta | {"sha256": _seal(found, meta)}))
    return place


def memory(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


@pytest.mark.linux
def test_a_store_of_20_gb_trains_in_the_memory_of_its_batches(train, big_store):
    train("trainer.max_steps=2", name="first")  # whatever a first run loads
    before = memory("VmRSS")
    run_dir = train(
        "data.path=null",
        "data.source._target_=test_big.sparse",
        "trainer.limit_val_batches=5",
        "data.num_workers=0",
    )
    figures = summary(run_dir)
    assert figures["status"] == "completed"
    assert figures["peak_memory_bytes"] - before < 100_000_000


def test_a_worker_is_sent_the_place_of_the_tokens_not_the_tokens(tmp_path):
    sparse_file(tmp_path / "tokens.npy", 1_000_000)
    tokens = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    windows = RandomWindows(Span(tokens, 10, 900_000), 8, 4, 0)
    sent = bytes(ForkingPickler.dumps(windows))
    assert len(sent) < 2_000
    assert b"rebuild_tensor" not in sent  # which would copy them to shared memory
    arrived = ForkingPickler.loads(sent)
    assert arrived.tokens.shape == (899_990,)
    assert arrived[3][0].tolist() == windows[3][0].tolist()


class Weighing(RandomWindows):
    """Returns the private and shared memory of the process instead of batches."""

    def __getitem__(self, batch: int):
        super().__getitem__(batch)
        return memory("RssAnon") + memory("RssShmem")


@pytest.mark.linux
@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_no_worker_has_a_copy_of_the_tokens(tmp_path, method):
    weighed = []
    for length in (1_000_000, 8_000_000_000):
        sparse_file(tmp_path / f"{length}.npy", length)
        tokens = np.load(tmp_path / f"{length}.npy", mmap_mode="r")
        windows = Weighing(Span(tokens, 0, length), 64, 64, 0)
        loader = DataLoader(
            windows,
            batch_size=None,
            sampler=range(40),
            num_workers=2,
            multiprocessing_context=multiprocessing.get_context(method),
        )
        weighed.append(max(int(batch) for batch in loader))
    assert weighed[1] - weighed[0] < 50_000_000
