import pytest

from litchar.analysis.characters import (
    count_line_ends,
    foreign_letters,
    kind_of,
    label_of,
    mixed_words,
    name_of,
    oddity,
)
from litchar.text import Corpus, Encoding, open_store


@pytest.mark.parametrize(
    ("character", "what"),
    [
        *((plain, None) for plain in "aZ9 \n\té你ж`'-"),
        ("\x07", "control code"),
        ("\r", "control code"),
        ("\u200b", "invisible"),
        ("\ufeff", "invisible"),
        ("\u202e", "invisible"),
        ("\u00a0", "unusual space"),
        ("\u2028", "unusual line end"),
        ("\ue000", "private use"),
        ("\u0378", "not assigned"),
        ("\u0301", "combines with the previous one; data.normalize=NFC may compose them"),
        ("\ufffd", "stands for what could not be read, or was rare (data.min_count)"),
        ("\u2019", "looks like '"),
        ("\u2212", "looks like -"),
        ("\u037e", "looks like ;"),
        ("\u212b", "data.normalize=NFC replaces it"),
        ("\ufb01", "data.normalize=NFKC replaces it"),
    ],
)
def test_what_is_odd_about_a_character(character, what):
    assert oddity(character) == what


def test_every_character_has_a_name():
    assert name_of("é") == "LATIN SMALL LETTER E WITH ACUTE"
    assert name_of("\n") == "LINE FEED"
    assert name_of("\x01") == "U+0001"
    assert name_of("\xe9", "byte") == "byte 0xE9"


def test_a_byte_that_is_no_character_is_of_no_characters_kind():
    assert [kind_of(c) for c in "aÉ1"] == ["small letter", "capital letter", "digit"]
    assert [kind_of(c, "byte") for c in "aÉ1"] == ["small letter", "byte", "digit"]


@pytest.mark.parametrize("chunk", [1, 2, 3, 1000])
def test_words_of_several_scripts_are_found_in_any_piece(tmp_path, chunk):
    path = tmp_path / "text.txt"
    path.write_text(
        "The p\u0430ssw\u043erd, not \u041c\u043e\u0441\u043a\u0432\u0430; p\u0430ss 日本go"
    )
    words = mixed_words(open_store(Corpus([path])), chunk)
    assert words == {"p\u0430ssw\u043erd": 1, "p\u0430ss": 1}
    assert foreign_letters("p\u0430ssw\u043erd") == "\u0430\u043e"
    assert foreign_letters("\u03bcs") == "\u03bc"  # as many of each: Latin counts as the main one


def test_letters_without_a_break_are_taken_apart(tmp_path):
    """Otherwise every script boundary would be searched from the start of the text."""
    path = tmp_path / "text.txt"
    path.write_text("a\u0430" * 300)
    words = mixed_words(open_store(Corpus([path])))
    assert words.total() == 6
    assert "".join(words.elements()) == "a\u0430" * 300


@pytest.mark.parametrize("document", ["line", "file"])
def test_words_of_several_scripts_are_found_in_documents(tmp_path, document):
    for name in "ab":
        (tmp_path / name).write_text("p\u0430ss\nword\n\u044f\n")  # the last letter there is
    store = open_store(Corpus([tmp_path / "a", tmp_path / "b"]), Encoding(document=document))
    assert mixed_words(store) == {"p\u0430ss": 2}


def test_line_ends_are_counted_across_pieces():
    text = b"a\r\nb\nc\rd\r\n\r\r\n"
    whole = {"\\n": 1, "\\r\\n": 3, "\\r": 2}
    assert count_line_ends([text]) == whole
    for size in range(1, 5):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        assert count_line_ends(pieces) == whole


def test_every_label_can_be_seen():
    shown = {
        "a": "a",
        "中": "中",
        '"': '"',
        " ": "␣",
        "\n": "\\n",
        "\t": "\\t",
        "\x1b": "U+001B",
        "\u200b": "U+200B",
        "\u00a0": "U+00A0",
        "\u0301": "◌\u0301",
        "\udc80": "U+DC80",
        "": "end",
    }
    assert {character: label_of(character) for character in shown} == shown
    assert [label_of(c, "byte") for c in "a\n\x00\x9f"] == ["a", "\\n", "0x00", "0x9F"]
