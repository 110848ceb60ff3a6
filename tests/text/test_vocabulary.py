"""Vocabularies: characters <-> ids."""

import json
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from litchar.errors import UserError
from litchar.text import ByteVocabulary, Vocabulary
from litchar.text.vocabulary import BOUNDARY, codepoints, count_into, no_counts

# All of Unicode: NUL, the astral planes, and lone surrogates as command lines may contain them.
any_text = st.text(alphabet=st.characters(codec=None, categories=None), min_size=1, max_size=60)
laws = settings(deadline=None, max_examples=200, derandomize=True, database=None)

awkward = (
    "\0",
    "\U0010ffff\0\ud800",
    "\udfff\ud83d\ude00😀",
    "\ud83d\ude00",  # two lone surrogates, not the character that they would be in UTF-16
    "\r\n\x85\u2028\ufeff",
    "éa\u0301e\u0301",
)


def awkward_examples(test):
    for text in awkward:
        test = example(text)(test)
    return test


@awkward_examples
@given(any_text)
@laws
def test_decoding_the_ids_of_any_text_gives_the_text(text):
    vocabulary = Vocabulary(text)
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert vocabulary.decode(ids.tolist()) == text


@awkward_examples
@given(any_text)
@laws
def test_encoding_agrees_with_a_dictionary(text):
    place = {character: i for i, character in enumerate(sorted(set(text)))}
    assert Vocabulary(text).encode(text).tolist() == [place[character] for character in text]


@given(any_text, any_text)
@laws
def test_encoding_another_text_agrees_with_a_dictionary_that_skips(known, text):
    place = {character: i for i, character in enumerate(sorted(set(known)))}
    ids = Vocabulary(known).encode(text, unknown="skip")
    assert ids.tolist() == [place[character] for character in text if character in place]


@given(any_text)
@laws
def test_ids_are_the_sorted_order_whatever_the_order_and_repeats_of_the_input(text):
    vocabulary = Vocabulary(text)
    assert vocabulary.characters == "".join(sorted(set(text)))
    assert vocabulary == Vocabulary(text[::-1] * 2)
    assert hash(vocabulary) == hash(Vocabulary(text[::-1] * 2))
    assert len(vocabulary) == len(set(text))
    assert vocabulary.decode(range(len(vocabulary))) == vocabulary.characters


def test_vocabularies_of_other_characters_are_not_equal():
    assert Vocabulary("ab") != Vocabulary("abc")
    assert Vocabulary("ab") != Vocabulary("ac")
    assert Vocabulary("ab") != "ab"


@awkward_examples
@given(any_text)
@laws
def test_json_round_trip(text):
    vocabulary = Vocabulary(text)
    assert Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json()))) == vocabulary


@pytest.mark.parametrize(
    ("distinct", "dtype"),
    [(1, "uint8"), (255, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16")],
)
@pytest.mark.parametrize("first", [0, 0x4E00, 0x20000])
def test_dtype_is_the_smallest_that_holds_every_id(distinct, dtype, first):
    text = "".join(map(chr, range(first, first + distinct)))
    vocabulary = Vocabulary(text)
    ids = vocabulary.encode(text)
    assert vocabulary.dtype == ids.dtype == np.dtype(dtype)
    assert ids.tolist() == list(range(distinct))
    for unknown in ("skip", text[-1]):
        assert vocabulary.encode(text + "\U0010ffff", unknown).dtype == np.dtype(dtype)


@pytest.mark.parametrize("distinct", [255, 256, 257])
def test_the_last_id_is_not_taken_for_an_unknown_character(distinct):
    text = "".join(map(chr, range(distinct)))
    assert Vocabulary(text).encode(text, unknown="skip").tolist() == list(range(distinct))
    with pytest.raises(UserError, match="U\\+10FFFF"):
        Vocabulary(text).encode("\U0010ffff")


def test_the_empty_text_has_no_ids_in_any_mode():
    vocabulary = Vocabulary("ab")
    for unknown in ("error", "skip", "a"):
        ids = vocabulary.encode("", unknown)
        assert (ids.shape, ids.dtype) == ((0,), vocabulary.dtype)
    assert vocabulary.decode([]) == ""


def test_no_characters_make_no_vocabulary():
    with pytest.raises(UserError, match="at least one character"):
        Vocabulary("")


def test_an_unknown_character_is_an_error_that_names_it():
    with pytest.raises(UserError) as error:
        Vocabulary("abc").encode("caféb\x07é")
    message = str(error.value)
    assert "'é' (LATIN SMALL LETTER E WITH ACUTE)" in message
    assert "'\\x07' (U+0007)" in message
    assert "'f' (LATIN SMALL LETTER F)" in message
    assert message.count("LATIN SMALL LETTER E WITH ACUTE") == 1  # each distinct one once
    assert "LATIN SMALL LETTER A)" not in message
    assert "unknown=skip" in message


def test_the_error_names_at_most_eight_unknown_characters_and_counts_the_rest():
    with pytest.raises(UserError) as error:
        Vocabulary("z").encode("abcdefghijk")
    message = str(error.value)
    assert "LATIN SMALL LETTER H" in message
    assert "LATIN SMALL LETTER I" not in message
    assert "and 3 more" in message


# Below, between and above the known characters, and beyond the end of the table.
@pytest.mark.parametrize("outside", ["\0", "b", "d", "é", "\U0010ffff", "\udc80"])
def test_unknown_skip_leaves_out_and_a_replacement_replaces(outside):
    vocabulary = Vocabulary("ac")
    text = f"a{outside}c{outside}"
    assert vocabulary.decode(vocabulary.encode(text, "skip")) == "ac"
    assert vocabulary.decode(vocabulary.encode(text, "a")) == "aaca"
    assert vocabulary.decode(vocabulary.encode(text, "c")) == "accc"
    assert vocabulary.unknown(text) == outside


@pytest.mark.parametrize("bad", ["b", "", "ac", "ca", "replace", "\U0010ffff"])
def test_a_replacement_that_is_no_known_character_is_refused_by_name(bad):
    with pytest.raises(UserError, match="one character that the model knows") as error:
        Vocabulary("ac").encode("axc", bad)
    assert f"unknown={bad}" in str(error.value)


def test_characters_named_like_the_modes_are_replacements_only_when_single():
    vocabulary = Vocabulary("skiperro")
    assert vocabulary.decode(vocabulary.encode("s?k", "skip")) == "sk"
    with pytest.raises(UserError, match="never saw"):
        vocabulary.encode("s?k", "error")


@pytest.mark.parametrize("bad_id", [3, 255, -1, -3])
def test_decoding_an_id_outside_the_vocabulary_is_an_index_error(bad_id):
    with pytest.raises(IndexError):
        Vocabulary("abc").decode([0, bad_id])


# Bytes

valid_text = st.text(min_size=1, max_size=60)


@given(valid_text)
@laws
def test_the_ids_of_bytes_are_the_utf8_bytes_and_decode_to_the_text(text):
    ids = ByteVocabulary().encode(text)
    assert ids.tolist() == list(text.encode())
    assert ids.dtype == np.uint8
    assert ByteVocabulary().decode(ids) == text
    assert Vocabulary(text).to_bytes(Vocabulary(text).encode(text)) == text.encode()


@pytest.mark.parametrize("kind", [Vocabulary, lambda _: ByteVocabulary()])
@given(text=valid_text)
@laws
def test_sizes_add_up_to_the_characters_and_bytes_of_any_text(kind, text):
    vocabulary = kind(text)
    sizes = vocabulary.sizes
    assert sizes.shape == (len(vocabulary), 2)
    assert sizes[vocabulary.encode(text)].sum(0).tolist() == [len(text), len(text.encode())]


@given(valid_text, st.integers(1, 5))
@laws
def test_a_stream_of_bytes_shows_each_character_when_it_is_complete(text, piece):
    ids = ByteVocabulary().encode(text)
    decode = ByteVocabulary().decoder()
    shown = ""
    for start in range(0, len(ids), piece):
        shown += decode(ids[start : start + piece])
        complete = bytes(ids[: start + piece].tolist()).decode(errors="ignore")
        assert shown == complete
    assert decode([], final=True) == ""


@given(st.binary(max_size=40))
@laws
def test_a_stream_of_any_bytes_ends_as_they_decode_at_once(data):
    decode = ByteVocabulary().decoder()
    pieces = [decode([byte]) for byte in data]
    assert "".join(pieces) + decode([], final=True) == data.decode(errors="replace")


@pytest.mark.parametrize("vocabulary", [Vocabulary("aé\ud800"), ByteVocabulary()])
def test_a_vocabulary_of_either_unit_comes_back_from_json(vocabulary):
    back = Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json())))
    assert back == vocabulary
    assert type(back) is type(vocabulary)


def test_all_latin1_characters_are_another_vocabulary_than_all_bytes():
    assert Vocabulary(map(chr, range(256))) != ByteVocabulary()


def test_what_python_makes_of_a_command_lines_bytes_are_those_bytes_again():
    argument = b"a\xff\xc3"
    text = argument.decode("utf-8", "surrogateescape")
    assert bytes(ByteVocabulary().encode(text).tolist()) == argument


def test_a_surrogate_that_no_bytes_stand_for_is_refused():
    with pytest.raises(UserError, match="is not a character"):
        ByteVocabulary().encode("a\ud800")


# Documents


@awkward_examples
@given(any_text)
@laws
def test_with_lines_as_documents_the_boundary_takes_the_newlines_place(text):
    vocabulary = Vocabulary(text + "a\n", document="line")
    ids = vocabulary.encode(text + "\n")
    assert (ids == BOUNDARY).tolist() == [character == "\n" for character in text + "\n"]
    assert vocabulary.decode(ids) == text + "\n"
    assert len(vocabulary) == len(set(text) | {"a", "\n"})


def test_between_files_the_boundary_stands_for_no_character():
    vocabulary = Vocabulary("ab\n", document="file")
    assert vocabulary.encode("a\nb").tolist() == [2, 1, 3]
    assert vocabulary.decode([0, 2, 1, 3, 0]) == "\na\nb\n"
    assert vocabulary.symbols == ["", "\n", "a", "b"]
    with pytest.raises(UserError, match="never saw '\\\\n'"):
        Vocabulary("ab", document="file").encode("a\n")


@pytest.mark.parametrize(("document", "size", "dtype"), [("line", 256, "u1"), ("file", 257, "u2")])
def test_a_boundary_goes_before_the_bytes(document, size, dtype):
    vocabulary = ByteVocabulary(document)
    assert (len(vocabulary), vocabulary.dtype) == (size, np.dtype(dtype))
    ids = vocabulary.lookup(np.arange(256, dtype=np.uint8))
    assert sorted({*ids.tolist(), BOUNDARY}) == list(range(size))
    assert (ids[ord("\n")] == BOUNDARY) == (document == "line")
    assert vocabulary.decode(vocabulary.encode("né\n")) == "né\n"
    assert vocabulary.to_bytes(ids) == bytes(range(256))


@pytest.mark.parametrize("kind", [lambda d: Vocabulary("ab\n", d), ByteVocabulary])
def test_what_a_document_is_comes_back_from_json(kind):
    made = [kind(document) for document in (None, "line", "file")]
    for vocabulary in made:
        back = Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json())))
        assert [back == other for other in made] == [vocabulary is other for other in made]


def test_a_replacement_in_a_vocabulary_of_documents_is_that_character():
    vocabulary = Vocabulary("ab", document="line")
    assert vocabulary.encode("axb", unknown="b").tolist() == [1, 2, 2]


@pytest.mark.parametrize("length", [0, 5, 4095, 4096, 20_000])
def test_characters_of_short_and_of_long_texts_are_counted_alike(length):
    text = "".join(random.Random(length).choices("ab\0é😀\U0010ffff", k=length))
    counts = no_counts()
    count_into(counts, codepoints(text))
    assert {chr(code): counts[code] for code in np.flatnonzero(counts)} == Counter(text)
    count_into(counts, codepoints(text), -1)
    assert not counts.any()
