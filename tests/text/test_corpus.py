"""Several files read as one text."""

import bz2
import codecs
import errno
import gzip
import lzma
import os
from pathlib import Path
from unittest.mock import patch

import pytest
from backports import zstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from litchar.errors import UserError
from litchar.text import Corpus

BOM = codecs.BOM_UTF8
CHUNKS = [1, 2, 3, 5, 1 << 18]  # with the small ones every character and line end is cut somewhere

# Line ends, characters of one to four bytes, lookalikes of line ends, a BOM inside.
pieces = st.sampled_from(
    ["\r", "\r\n", "\n", "a", "é", "€", "😀", "\0", "\x85", "\u2028", "\ufeff"]
)
texts = st.lists(pieces, max_size=16).map("".join)
laws = settings(
    deadline=None,
    max_examples=80,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def chunks_of(n_bytes: int):
    return patch("litchar.text.corpus.CHUNK_BYTES", n_bytes)


def read(*paths: Path) -> str:
    return "".join(Corpus(paths).read())


def python_reads(path: Path) -> str:
    with open(path, newline=None, encoding="utf-8-sig") as file:
        return file.read()


@given(text=texts, bom=st.booleans())
@laws
def test_reads_what_python_text_mode_reads_wherever_the_chunks_are_cut(tmp_path, text, bom):
    path = tmp_path / "a.txt"
    path.write_bytes(BOM * bom + text.encode())
    for n_bytes in CHUNKS:
        with chunks_of(n_bytes):
            assert read(path) == python_reads(path)


@given(parts=st.lists(st.tuples(texts, st.booleans()), min_size=2, max_size=4))
@laws
def test_several_files_are_their_texts_one_after_the_other(tmp_path, parts):
    paths = []
    for i, (text, bom) in enumerate(parts):
        paths.append(tmp_path / f"{i}.txt")
        paths[-1].write_bytes(BOM * bom + text.encode())
    for n_bytes in (1, 3, 1 << 18):
        with chunks_of(n_bytes):
            assert read(*paths) == "".join(map(python_reads, paths))


def test_a_byte_order_mark_is_dropped_at_each_file_start_and_nowhere_else(tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    a.write_bytes(BOM + b"one" + BOM)
    b.write_bytes(BOM + BOM + b"two")
    c.write_bytes(BOM)
    assert read(a, b, c, a) == "one\ufeff" + "\ufefftwo" + "" + "one\ufeff"


def test_a_line_end_cut_by_a_file_border_stays_two(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"x\r")
    b.write_bytes(b"\ny")
    assert read(a, b) == "x\n\ny"


def test_a_text_comes_in_pieces_of_bounded_size(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("ab\ncd€f" * 40)
    with chunks_of(16):
        pieces_read = list(Corpus([path]).read())
    # A piece may begin with up to 3 bytes held back from the one before.
    assert max(len(piece.encode()) for piece in pieces_read) <= 16 + 3
    assert "" not in pieces_read


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read(path)
    return str(error.value)


@pytest.mark.parametrize("n_bytes", CHUNKS)
@pytest.mark.parametrize("bom", [b"", BOM], ids=["plain", "bom"])
def test_a_wrong_byte_is_named_with_its_exact_offset(tmp_path, n_bytes, bom):
    path = tmp_path / "a.txt"
    text = "aé\r\n€\r😀z"
    with chunks_of(n_bytes):
        for i in range(len(text) + 1):
            before = bom + text[:i].encode()
            path.write_bytes(before + b"\xff" + text[i:].encode())
            message = refusal(path)
            assert f"{path}: not UTF-8 text" in message
            assert f"0xff at offset {len(before)};" in message


@pytest.mark.parametrize("n_bytes", CHUNKS)
@pytest.mark.parametrize("bom", [b"", BOM], ids=["plain", "bom"])
@pytest.mark.parametrize("held", [b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98"])
@pytest.mark.parametrize("after", [b"", b"a", b"\n", "é".encode()])
def test_a_truncated_character_is_named_by_its_first_byte(tmp_path, n_bytes, bom, held, after):
    path = tmp_path / "a.txt"
    path.write_bytes(bom + b"ab\r" + held + after)
    with chunks_of(n_bytes):
        assert f"0x{held[0]:02x} at offset {len(bom) + 3};" in refusal(path)


@given(data=st.binary(max_size=12), before=texts, bom=st.booleans())
@laws
def test_refuses_exactly_what_python_refuses_and_at_the_same_byte(tmp_path, data, before, bom):
    data = BOM * bom + before.encode() + data
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    try:
        data.decode()
    except UnicodeDecodeError as error:
        expected = f"0x{data[error.start]:02x} at offset {error.start};"
        for n_bytes in CHUNKS:
            with chunks_of(n_bytes):
                assert expected in refusal(path)
    else:
        assert read(path) == python_reads(path)


def test_the_message_names_the_file_that_is_wrong_and_counts_from_its_start(tmp_path):
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_bytes(b"0123456789")
    bad.write_bytes(b"01\xe9")
    with pytest.raises(UserError, match=r"bad\.txt: not UTF-8 text.* 0xe9 at offset 2;"):
        read(good, bad)


# Finding files


def test_a_directory_gives_the_matching_files_in_sorted_order(tmp_path):
    root = tmp_path / "texts"
    for name in ("b.txt", "a.txt", "B.txt", "sub/c.txt", "a/z.txt", "sub/deep/d.txt", "notes.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "directory.txt").mkdir()

    def found(pattern: str) -> list[str]:
        return [str(path.relative_to(root)) for path in Corpus.find(str(root), pattern).paths]

    everything = ["B.txt", "a.txt", "b.txt", "a/z.txt", "sub/c.txt", "sub/deep/d.txt"]
    assert found("**/*.txt") == sorted(everything, key=lambda name: Path(name).parts)
    assert found("*.txt") == ["B.txt", "a.txt", "b.txt"]
    assert found("*.md") == ["notes.md"]
    assert [path.suffix for path in Corpus.find(root).paths] == [".txt"] * 6


def test_a_directory_that_must_not_be_read_is_not_called_empty(tmp_path, monkeypatch):
    def refused(place):
        raise PermissionError(errno.EACCES, "Permission denied", str(place))

    monkeypatch.setattr("litchar.text.corpus.os.scandir", refused)
    for pattern in ("*.txt", "**/*.txt", "sub/*.txt"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        with pytest.raises(PermissionError):
            Corpus.find(str(tmp_path), pattern)


def test_what_a_file_system_keeps_for_itself_is_no_text(tmp_path, monkeypatch):
    scandir = os.scandir

    def refused(place):
        if str(place).endswith("lost+found"):
            raise PermissionError(errno.EACCES, "Permission denied", str(place))
        return scandir(place)

    (tmp_path / "books").mkdir()
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "books" / "a.txt").write_text("text")
    monkeypatch.setattr("litchar.text.corpus.os.scandir", refused)
    assert [path.name for path in Corpus.find(str(tmp_path)).paths] == ["a.txt"]
    with pytest.raises(UserError, match=r"no file in this directory matches"):
        Corpus.find(str(tmp_path), "*.txt")
    with pytest.raises(UserError, match=r"no file in this directory matches"):
        Corpus.find(str(tmp_path), "none/**/*.txt")


def test_a_list_of_files_and_directories_keeps_its_order(tmp_path):
    root = tmp_path / "texts"
    root.mkdir()
    for name in "abc":
        (root / f"{name}.txt").write_text(name)
    single = tmp_path / "single.md"
    single.write_text("!")
    corpus = Corpus.find([str(root / "c.txt"), str(single), str(root)])
    assert "".join(corpus.read()) == "c!abc"


def test_a_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("at home")
    assert "".join(Corpus.find("~/a.txt").read()) == "at home"


@pytest.mark.parametrize("beside", [[], ["there.txt"]], ids=["alone", "in a list"])
def test_a_file_that_does_not_exist_is_refused_with_its_path(tmp_path, monkeypatch, beside):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.txt").write_text("here")
    with pytest.raises(UserError) as error:
        Corpus.find([*beside, "missing.txt"] if beside else "missing.txt")
    said = f"data.path=missing.txt: no such file or directory (looked in {tmp_path})"
    assert str(error.value) == said
    missing = tmp_path / "missing.txt"
    with pytest.raises(UserError, match=f"data.path={missing}: no such file or directory$"):
        Corpus.find(str(missing))


def test_a_text_in_place_of_its_file_is_refused():
    with pytest.raises(UserError, match=r"^data.path: File name too long: To be, or .*\.\.\.$"):
        Corpus.find("To be, or not to be, " * 20)


@pytest.mark.parametrize(
    ("mark", "code"), [(codecs.BOM_UTF16_LE, "UTF-16"), (b"\xe4", "WINDOWS-1252")]
)
def test_the_advice_for_a_file_in_another_code_fits_it(tmp_path, mark, code):
    (tmp_path / "a.txt").write_bytes(mark + "ab".encode("utf-16-le"))
    with pytest.raises(UserError, match=f"iconv -f {code} -t UTF-8$"):
        list(Corpus([tmp_path / "a.txt"]).read())


@pytest.mark.parametrize("form", ["UTF-16LE", "UTF-16BE"])
@pytest.mark.parametrize("text", ["To be, or\nnot to be", "Всё смешалось\n"])
def test_utf16_without_a_mark_is_no_text_of_control_characters(tmp_path, text, form):
    (tmp_path / "a.txt").write_bytes(text.encode(form))
    with pytest.raises(UserError, match=f"a.txt: {form}, not .*iconv -f {form} -t UTF-8$"):
        list(Corpus([tmp_path / "a.txt"]).read())


@pytest.mark.parametrize("text", ["", "\0", "a\0", "".join(map(chr, range(32))) * 9, "\0" * 50])
def test_control_characters_may_be_the_text(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert "".join(Corpus([tmp_path / "a.txt"]).read()) == text.replace("\r", "\n")


@pytest.mark.parametrize(
    ("packed", "advice"),
    [
        (gzip.compress, "name it FILE.gz"),
        (lzma.compress, "name it FILE.xz"),
        (zstd.compress, "name it FILE.zst"),
        (bz2.compress, "unpack it with bunzip2"),
    ],
)
def test_a_compressed_file_whose_name_does_not_say_so_is_not_to_be_converted(
    tmp_path, packed, advice
):
    (tmp_path / "a.txt").write_bytes(packed(b"To be, or not to be, that is the question."))
    with pytest.raises(UserError, match=f"a.txt: compressed, not text as it is; {advice}$"):
        list(Corpus([tmp_path / "a.txt"]).read())


def test_a_file_that_ends_within_a_character_may_be_cut(tmp_path):
    (tmp_path / "a.txt").write_bytes("é".encode()[:1])
    with pytest.raises(UserError, match="at offset 0; it may be cut; if it is whole, convert"):
        list(Corpus([tmp_path / "a.txt"]).read())


def test_a_home_directory_of_nobody_is_refused_like_a_missing_file():
    with pytest.raises(UserError, match=r"data.path=~nobody-here.txt: no such file or directory"):
        Corpus.find("~nobody-here.txt")


def test_a_directory_without_a_match_is_refused_with_path_and_pattern(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "a.md").write_text("a")
    with pytest.raises(UserError, match=r"data\.pattern=\*\*/\*\.txt") as error:
        Corpus.find(str(empty))
    assert f"data.path={empty}" in str(error.value)


def test_a_link_to_nothing_among_the_files_is_not_passed_over(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").symlink_to("gone.txt")
    with pytest.raises(UserError, match=r"b\.txt: is a link to gone\.txt, which does not exist"):
        Corpus.find(str(tmp_path))
    assert Corpus.find(str(tmp_path), "a*").paths == [tmp_path / "a.txt"]
    (tmp_path / "b.txt").rename(tmp_path / ".#a.txt")  # as Emacs marks a file that it is editing
    assert Corpus.find(str(tmp_path)).paths == [tmp_path / "a.txt"]


def test_an_empty_list_of_paths_is_refused():
    with pytest.raises(UserError, match="names no file"):
        Corpus.find([])


@pytest.mark.parametrize("pattern", ["**.txt", "/**/*.txt", ""])
def test_a_pattern_that_glob_cannot_read_is_the_users_error(tmp_path, pattern):
    (tmp_path / "a.md").write_text("a")
    with pytest.raises(UserError, match=r"data\.pattern="):
        Corpus.find(str(tmp_path), pattern)


def test_a_file_that_goes_away_is_refused_with_its_path(tmp_path):
    corpus = Corpus([tmp_path / "gone.txt"])
    for use in (corpus.fingerprint, lambda: list(corpus.read())):
        with pytest.raises(UserError, match=r"gone\.txt: cannot be read: No such file"):
            use()


# Identity


def fingerprint_of(directory: Path, *contents: bytes, names: str = "abcdef") -> str:
    directory.mkdir(exist_ok=True)
    paths = [directory / name for name, _ in zip(names, contents, strict=False)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return Corpus(paths).fingerprint()


def test_the_fingerprint_depends_on_content_and_on_nothing_of_the_names(tmp_path):
    first = fingerprint_of(tmp_path / "1", b"one", b"two")
    assert first == fingerprint_of(tmp_path / "2", b"one", b"two", names="zy")
    assert first != fingerprint_of(tmp_path / "3", b"one", b"twp")
    assert first != fingerprint_of(tmp_path / "4", b"two", b"one")


def test_the_fingerprint_depends_on_where_the_files_are_split(tmp_path):
    splits = [
        (b"abcd",),
        (b"", b"abcd"),
        (b"abcd", b""),
        (b"a", b"bcd"),
        (b"ab", b"cd"),
        (b"abc", b"d"),
        (b"a", b"b", b"cd"),
        (b"ab\0cd",),
        (b"ab\0002\0cd",),  # what a file of 2 bytes and its length would look like
        (b"ab\0002\0", b"cd"),
    ]
    prints = {fingerprint_of(tmp_path / str(i), *split) for i, split in enumerate(splits)}
    assert len(prints) == len(splits)


def test_the_fingerprint_does_not_depend_on_the_size_of_the_reads(tmp_path):
    whole = fingerprint_of(tmp_path / "a", b"some bytes \xff", b"and more")
    with chunks_of(3):
        assert fingerprint_of(tmp_path / "b", b"some bytes \xff", b"and more") == whole


def test_a_list_of_files_takes_a_number_for_a_name_and_no_null(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1984").touch()
    assert Corpus.find([1984, "1984"]).paths == Corpus.find(1984).paths * 2 == [Path("1984")] * 2
    with pytest.raises(UserError, match=r"data\.path is null, or has an entry that is"):
        Corpus.find(["1984", None])
    with pytest.raises(UserError, match=r"data\.path is empty"):
        Corpus.find([""])
    with pytest.raises(UserError, match=r"1\.5"):
        Corpus.find(1.5)
