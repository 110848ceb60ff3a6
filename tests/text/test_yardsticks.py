import math

import pytest

from litchar.errors import UserError
from litchar.text import Text, yardsticks
from litchar.text.sources import bundled
from litchar.text.yardsticks import count_yardsticks, quick_yardsticks


@pytest.fixture
def text(text_file):
    return Text(path=str(text_file))


def test_the_more_of_the_text_a_yardstick_sees_the_better_it_is():
    text = Text(source=lambda: bundled("ml.txt"))
    found = count_yardsticks(text, text.open())
    assert [row.name for row in found] == ["uniform", "unigram", "bigram", "8-gram"]
    bits = [row.bits_per_character for row in found]
    assert bits[0] == pytest.approx(math.log2(len(text.open().vocabulary)))
    assert bits == sorted(bits, reverse=True)
    assert bits[-1] < bits[0] / 2


def test_bits_per_byte_count_the_bytes_of_characters(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("éa" * 500)
    text = Text(path=str(path), val_fraction=0.5)
    for row in count_yardsticks(text, text.open()):
        scored = "éa" * 250  # without its first
        ratio = (len(scored) - 1) / (len(scored.encode()) - 2)
        assert row.bits_per_byte == pytest.approx(row.bits_per_character * ratio)


def test_bytes_that_are_no_text_are_counted_as_bytes(tmp_path):
    path = tmp_path / "text.bin"
    path.write_bytes(b"\x80\x81" * 500)  # the middle of characters that never begin
    text = Text(path=str(path), unit="byte")
    uniform = count_yardsticks(text, text.open())[0]
    assert (uniform.bits_per_character, uniform.bits_per_byte) == (math.inf, 8)


def test_what_was_counted_is_kept_until_it_is_damaged(text, monkeypatch, tmp_path):
    store = text.open()
    found = quick_yardsticks(text, store)
    assert found == count_yardsticks(text, store)
    monkeypatch.setattr(yardsticks, "QUICK", 0)
    assert quick_yardsticks(text, store) == found
    other = Text(path=text.path, val_fraction=0.2)
    assert quick_yardsticks(other, store) == []
    (kept,) = (tmp_path / "cache/yardsticks").iterdir()
    kept.write_text('[{"name": "uni')
    assert quick_yardsticks(text, store) == []


def test_what_little_memory_cut_short_is_not_kept(text, tmp_path):
    store = text.open()
    assert count_yardsticks(text, store, memory_bytes=64 * 100)[-1].name == "2-gram"
    assert not (tmp_path / "cache/yardsticks").exists()
    assert quick_yardsticks(text, store)[-1].name == "8-gram"


def test_any_memory_is_enough(text):
    store = text.open()
    assert count_yardsticks(text, store, 3, math.inf) == count_yardsticks(text, store, 3)


def test_a_lowered_order_is_said(text):
    last = count_yardsticks(text, text.open(), 8, memory_bytes=64 * 100)[-1]
    assert last.name == "2-gram"
    assert "order 3 does not fit memory_gb=6.4e-06" in last.note
    last = count_yardsticks(text, text.open(), 40)[-1]
    assert last.name == "16-gram"  # 15 characters take 4 bits each
    assert "order 40 does not fit" in last.note


def test_both_ways_in_which_n_grams_are_coarser_are_said(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abca" * 15_000 + "ba" * 100 + "".join(map(chr, range(0x4E00, 0x4E00 + 300))))
    text = Text(path=str(path), val_fraction=0.2)
    last = count_yardsticks(text, text.open(), 8, memory_bytes=64 * 3)[-1]
    assert "does not fit memory_gb=1.92e-07" in last.note
    assert "contexts distinguish the 127 most frequent" in last.note


def test_a_text_too_short_to_count_is_refused(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abcd")
    text = Text(path=str(path))
    with pytest.raises(
        UserError, match="3 characters for training and 1 for validation are too few"
    ):
        count_yardsticks(text, text.open())
