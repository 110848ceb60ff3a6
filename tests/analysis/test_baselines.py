"""Baselines: the compressors and the table of results."""

import bz2
import gzip
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from conftest import composed
from litchar.analysis import baselines
from litchar.analysis.baselines import compress, run
from litchar.errors import Interrupted, UserError
from litchar.text import Text


@pytest.fixture
def compose_baselines(text_file):
    return partial(composed, "baselines", "data=text", f"data.path={text_file}")


def test_a_split_costs_what_its_compressed_bytes_are(text_file):
    split = text_file.read_bytes()[-800:]
    bits = {
        (row.name, row.note): row.bits_per_character
        for row in compress(Text(path=str(text_file)), Text(path=str(text_file)).open())
    }
    assert bits["gzip -9", "alone"] == 8 * len(gzip.compress(split, 9)) / 800
    assert bits["bzip2 -9", "alone"] == 8 * len(bz2.compress(split, 9)) / 800
    assert len(bits) == 8


def test_bytes_are_compressed_as_they_are(tmp_path):
    path = tmp_path / "data.bin"
    path.write_bytes(random.Random(0).randbytes(20_000))
    text = Text(path=str(path), unit="byte")
    for row in compress(text, text.open()):
        assert 7.9 < row.bits_per_byte < 10  # noise stays about as long as it is


def test_a_split_that_stands_in_training_is_nearly_free_within_a_compressors_reach(
    tmp_path, monkeypatch
):
    draw = random.Random(0)
    page = "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=50_000))
    path = tmp_path / "text.txt"
    path.write_text(page + page)
    text = Text(path=str(path), val_fraction=0.5)
    after = {row.name: row for row in compress(text, text.open()) if row.note != "alone"}
    assert {row.note for row in after.values()} == {"after the training text"}
    for name in ("xz -9e", "zstd --ultra -22"):
        assert after[name].bits_per_character < 0.05
    assert after["gzip -9"].bits_per_character > 4.7  # it looks back 32 KiB, and the page is longer

    other = "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=50_000))
    path.write_text(other + page + page)
    text = Text(path=str(path), val_fraction=1 / 3)
    for before, least, most in ((50_000, 0, 0.05), (25_000, 2.3, 2.6)):  # the page, or half of it
        monkeypatch.setattr(baselines, "BEFORE", before)
        found = {row.name: row for row in compress(text, text.open()) if row.note != "alone"}
        assert least < found["xz -9e"].bits_per_character < most
        assert "characters of the training text" in found["xz -9e"].note


def test_an_interrupt_waits_for_no_compressor_that_has_not_begun(text_file, monkeypatch):
    begun, interrupted = [], threading.Event()

    def slow(data):
        begun.append(data)
        interrupted.wait(60)
        return data

    quick = {"quick": lambda data: data}
    monkeypatch.setattr(baselines, "COMPRESSORS", quick | {f"slow {i}": slow for i in range(8)})
    found = compress(Text(path=str(text_file)), Text(path=str(text_file)).open())
    assert next(found).name == "quick"
    shutdown = ThreadPoolExecutor.shutdown

    def and_let_go(pool, wait=True, **options):
        if wait:  # for those that have begun; the queue is to be empty by now
            interrupted.set()
        shutdown(pool, wait, **options)

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", and_let_go)
    with pytest.raises(Interrupted):
        found.throw(Interrupted(signal.SIGINT))
    assert len(begun) <= 2  # of 24


def test_the_table_has_every_yardstick(compose_baselines, capsys):
    found = run(compose_baselines("order=3"))
    printed = capsys.readouterr().out
    assert [row.name for row in found[:4]] == ["uniform", "unigram", "bigram", "3-gram"]
    for row in found:
        assert f"{row.name} " in printed
        assert f"{row.bits_per_character:.3f}" in printed


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("order=0", "order=0: must be a whole number from 1 to 64"),
        ("order=1.5", "order=1.5: must"),
        ("order=65", "order=65: must be a whole number from 1 to 64"),
        ("order=true", "order=True: must be a whole number"),
        ("memory_gb=true", "memory_gb=True: must be a number above 0"),
        ("memory_gb=nan", "memory_gb=nan: must be a number above 0"),
        ("memory_gb=0", "memory_gb=0: must be a number above 0"),
        ("memory_gb=lots", "memory_gb=lots: must"),
        ("data.val_fraction=2", "data.val_fraction=2: must lie between 0 and 1"),
        ("data.path=nowhere.txt", "data.path=nowhere.txt: no such file"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(compose_baselines, override, words):
    with pytest.raises(UserError, match=words):
        run(compose_baselines(override))
