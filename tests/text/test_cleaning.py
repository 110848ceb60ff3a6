"""Cleaning a text piece by piece."""

import itertools
import json
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litchar.errors import UserError
from litchar.text import Corpus, Encoding, Text, TokenStore, Vocabulary, open_store
from litchar.text.cleaning import Changes, Cleaning, _stands_alone, whole_characters

# Composing letters, marks of several classes, Hangul jamo, variants that NFKC replaces, the sigma
# and what its rule skips, capitals that become two characters in lower case.
ALPHABET = (
    "aAe\u0301\u0323\u0307\u0345 \n.'’-1İßſΣσΟ\u1112\u1161\u11ab가한ㅏｶﾞﬁ①Ａ\u09c7\u09be"
    "\u0344\u2126\u212b\u1e9b\u0f71\u0f72\u0300😀한\u200d\u00ad\u0378\U0001d15e"
)
texts = st.text(st.sampled_from(ALPHABET), max_size=40)
laws = settings(deadline=None, max_examples=400, derandomize=True, database=None)


def in_pieces(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
@given(text=texts, cuts=st.lists(st.integers(0, 40), max_size=12))
@laws
def test_normalised_in_pieces_is_normalised_as_a_whole(form, text, cuts):
    read = Cleaning(normalize=form).read(in_pieces(text, cuts))
    assert "".join(read) == unicodedata.normalize(form, text)


@given(text=texts, cuts=st.lists(st.integers(0, 40), max_size=12))
@laws
def test_lowercase_in_pieces_is_lowercase_as_a_whole(text, cuts):
    read = Cleaning(lowercase=True).read(in_pieces(text, cuts))
    assert "".join(read) == text.lower()


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
@given(text=texts, cuts=st.lists(st.integers(0, 40), max_size=12))
@laws
def test_with_both_settings_the_text_is_normal_and_pieces_do_not_matter(form, text, cuts):
    cleaning = Cleaning(normalize=form, lowercase=True)
    whole = cleaning(text)
    assert whole == unicodedata.normalize(form, unicodedata.normalize(form, text).lower())
    assert unicodedata.is_normalized(form, whole)
    assert "".join(cleaning.read(in_pieces(text, cuts))) == whole


def test_no_character_of_unicode_that_stands_alone_depends_on_what_is_before_it():
    """Checked against the Unicode data of the running Python."""
    characters = [chr(i) for i in range(sys.maxunicode + 1) if not 0xD800 <= i < 0xE000]
    decomposed = (unicodedata.decomposition(c).split() for c in characters)
    second = {chr(int(d[1], 16)) for d in decomposed if len(d) == 2 and d[0][0] != "<"}
    second |= {chr(i) for i in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))}
    alone = [c for c in characters if _stands_alone(c)]
    assert len(alone) > 900_000  # nearly all of Unicode
    for c in alone:
        first = unicodedata.normalize("NFKD", c)[0]
        assert unicodedata.combining(first) == 0, c
        # Precomposed characters decompose to a second part, but do not begin with one.
        assert first not in second, c
        passed_over = (f"aΣ{c}a".lower()[1], f"aΣ{c} ".lower()[1]) == ("σ", "ς")
        assert not passed_over, c


def test_pieces_stay_small_where_a_text_offers_few_places_to_cut():
    for line in ("....\n", "ACGT", "天地玄黄，", "e\u0301", "😀", "ΟΔΟΣ ", "'' "):
        pieces = list(whole_characters([line * 100] * 50))
        assert "".join(pieces) == line * 5000
        assert max(map(len, pieces)) <= 100 * len(line) + 10, line


def test_nothing_is_done_unless_asked_for():
    pieces = ["e", "\u0301ABC", "\ufb01"]
    for cleaning in (Cleaning(), Cleaning(normalize=False, lowercase=False, min_count=1)):
        assert list(cleaning.read(pieces)) == pieces
        assert cleaning.name == ""


def test_every_cleaning_has_a_name_of_its_own():
    every = [
        Cleaning(form, lower, count)
        for form in (None, "NFC", "NFKC")
        for lower in (None, True)
        for count in (None, 2, 3)
    ]
    assert len({cleaning.name for cleaning in every}) == len(every)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"normalize": "NFX"}, "data.normalize=NFX: must be NFC, NFKC or null"),
        ({"normalize": "NFD"}, "data.normalize=NFD: must be NFC, NFKC or null"),
        ({"normalize": True}, "data.normalize=True"),
        ({"normalize": ["NFC"]}, "data.normalize="),
        ({"lowercase": "yes"}, "data.lowercase=yes: must be true or false"),
        ({"min_count": -1}, "data.min_count=-1: must be a whole number"),
        ({"min_count": 2.5}, "data.min_count=2.5"),
        ({"min_count": True}, "data.min_count=True"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(setting, reason):
    with pytest.raises(UserError) as error:
        Cleaning(**setting)
    assert reason in str(error.value)


def test_what_changed_is_counted_and_the_most_frequent_named():
    changes = Changes()
    text = "Cafe\u0301 CAFE\u0301 \ufb01n\n" * 10
    cleaning = Cleaning(normalize="NFKC", lowercase=True)
    pieces = [text[i : i + 7] for i in range(0, len(text), 7)]
    assert "".join(cleaning.read(pieces, changes)) == "café café fin\n" * 10
    normalized, lowered = changes.lines()
    assert normalized == (
        "data.normalize=NFKC: 50 characters of 4 kinds changed: '\u0301' (COMBINING ACUTE ACCENT) "
        "20 times, 'E' (LATIN CAPITAL LETTER E) 10 times, 'e' (LATIN SMALL LETTER E) 10 times, "
        "'ﬁ' (LATIN SMALL LIGATURE FI) 10 times"
    )
    assert lowered.startswith("data.lowercase=true: 50 characters of 4 kinds changed: 'C' (")


def test_where_nothing_changes_that_is_said():
    changes = Changes()
    list(Cleaning(normalize="NFC").read(["plain"], changes))
    assert changes.lines() == ["data.normalize=NFC: no characters to change"]


def test_marks_in_another_order_are_a_change():
    changes = Changes()
    assert list(Cleaning(normalize="NFC").read(["xq\u0307\u0323x" * 5000], changes))
    assert changes.lines()[0].startswith("data.normalize=NFC: 10,000 characters of 2 kinds changed")


# In a token store


def store_of(path: Path, text: str, document: str | None = None, **settings) -> TokenStore:
    path.write_text(text)
    return open_store(Cleaning(**settings).of(Corpus([path])), Encoding(document=document))


def text_of(store: TokenStore) -> str:
    return store.vocabulary.decode(store.tokens)


def test_a_store_holds_the_cleaned_text_and_says_what_changed(tmp_path):
    text = "Cafe\u0301 CAFÉ\n" * 9 + "ß¿\n"
    store = store_of(tmp_path / "a.txt", text, normalize="NFC", lowercase=True, min_count=2)
    assert text_of(store) == "café café\n" * 9 + "\ufffd\ufffd\n"
    assert store.vocabulary.characters == "\n acfé\ufffd"
    assert [line.partition(" changed")[0].partition(" became")[0] for line in store.changes] == [
        "data.normalize=NFC: 18 characters of 2 kinds",
        "data.lowercase=true: 45 characters of 4 kinds",
        "data.min_count=2: 2 characters of 2 kinds",
    ]


def test_of_one_text_each_cleaning_has_a_store_of_its_own_that_is_kept(tmp_path):
    text = "Aa e\u0301 \ufb01 " * 3
    every = [{}, {"normalize": "NFC"}, {"normalize": "NFKC"}, {"lowercase": True}, {"min_count": 4}]
    for _ in range(2):
        stores = [store_of(tmp_path / "a.txt", text, **settings) for settings in every]
        assert [text_of(store) for store in stores] == [
            text,
            "Aa é \ufb01 " * 3,
            "Aa é fi " * 3,
            "aa e\u0301 \ufb01 " * 3,
            "\ufffd\ufffd \ufffd\ufffd \ufffd " * 3,
        ]
        assert [len(store.changes) for store in stores] == [0, 1, 1, 1, 1]
    assert len({store.fingerprint for store in stores}) == len(every)
    assert stores[0].fingerprint == Corpus([tmp_path / "a.txt"]).fingerprint()


def test_characters_that_are_too_rare_and_those_never_seen_are_one_symbol(tmp_path):
    store = store_of(tmp_path / "a.txt", "aabbcc x y", min_count=2)
    vocabulary = store.vocabulary
    assert text_of(store) == "aabbcc \ufffd \ufffd"
    assert vocabulary.decode(vocabulary.encode("abxé😀\ufffd")) == "ab\ufffd\ufffd\ufffd\ufffd"
    assert vocabulary.unknown("xé") == ""
    assert vocabulary.decode(vocabulary.encode("aé�b", "skip")) == "a�b"
    assert vocabulary.decode(vocabulary.encode("aé�b", "c")) == "ac�b"
    assert Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json()))) == vocabulary


def test_a_count_that_every_character_has_changes_nothing(tmp_path):
    store = store_of(tmp_path / "a.txt", "abcab\ufffdc\ufffd", min_count=2)
    assert text_of(store) == "abcab\ufffdc\ufffd"
    assert store.changes == ["data.min_count=2: no characters to change"]
    with pytest.raises(UserError, match="never saw"):
        store.vocabulary.encode("x")


def test_the_boundary_of_documents_is_never_too_rare(tmp_path):
    store = store_of(tmp_path / "a.txt", "aaaa\nbaaa", "line", min_count=3)
    assert text_of(store) == "\naaaa\n\ufffdaaa\n"


@pytest.mark.parametrize("document", ["line", "file"])
def test_documents_are_cleaned_each_by_itself(tmp_path, document):
    (tmp_path / "a.txt").write_text("Ae")
    (tmp_path / "b.txt").write_text("\u0301B\u0301")
    corpus = Cleaning(normalize="NFC", lowercase=True).of(Corpus.find(str(tmp_path)))
    store = open_store(corpus, Encoding(document=document))
    assert text_of(store) == "\nae\n\u0301b\u0301\n"


def test_a_text_of_bytes_is_not_cleaned():
    with pytest.raises(UserError, match=r"data\.unit=byte reads a text unchanged"):
        Text(path="a.txt", unit="byte", lowercase=True)
    Text(path="a.txt", unit="byte", lowercase=False, min_count=0)


def test_a_text_whose_rare_characters_alone_are_replaced_is_not_read_to_count_other_changes():
    unread = Corpus([Path("/nowhere.txt")])
    assert Cleaning(min_count=2).of(unread).changes(None) == []
