"""Reading compressed files, JSON Lines and Parquet as texts."""

import gzip
import io
import json
import lzma
import sys
import tracemalloc
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd

from litchar.errors import UserError
from litchar.text import Corpus, Encoding, Text, open_store

TEXT = "\ufeffÜnïcödé €😀\r\nsecond line\rthird\n" * 3000  # several pieces, two kinds of line ends
READ = TEXT[1:].replace("\r\n", "\n").replace("\r", "\n")


def zipped(content: bytes) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("folder")
        archive.writestr("folder/member", content)
    return file.getvalue()


COMPRESS = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: zstd.compress(
        content, options={zstd.CompressionParameter.checksum_flag: 1}
    ),
    ".zip": zipped,
}


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def read(*paths: Path, **settings: str) -> str:
    return "".join(Corpus(paths, **settings).read())


def refusal(*paths: Path, **settings: str) -> str:
    with pytest.raises(UserError) as error:
        read(*paths, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


# Compressed files


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("n_bytes", [3, 1 << 18])
def test_a_compressed_text_is_read_as_the_text(tmp_path, monkeypatch, suffix, n_bytes):
    monkeypatch.setattr("litchar.text.corpus.CHUNK_BYTES", n_bytes)
    path = put(tmp_path / f"a.TXT{suffix.upper()}", COMPRESS[suffix](TEXT[:400].encode()))
    assert read(path) == READ[: len(read(path))]
    assert len(read(path)) > 350


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_archives_put_one_after_the_other_are_one_text(tmp_path, suffix):
    half = COMPRESS[suffix](TEXT.encode())
    assert read(put(tmp_path / f"a{suffix}", half + half)) == READ + "\ufeff" + READ


def test_compressed_and_plain_files_of_a_directory_are_read_in_order(tmp_path):
    put(tmp_path / "a.txt.gz", gzip.compress(b"one "))
    put(tmp_path / "b.txt", b"two ")
    put(tmp_path / "c.txt.zst", zstd.compress(b"three"))
    assert "".join(Corpus.find(str(tmp_path), "*.txt*").read()) == "one two three"


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, "all but 1"])
def test_a_truncated_archive_is_refused_with_its_offset(tmp_path, suffix, share):
    whole = COMPRESS[suffix](TEXT.encode())
    length = len(whole) - 1 if share == "all but 1" else int(share * len(whole))
    path = put(tmp_path / f"a.txt{suffix}", whole[:length])
    if length == 0 and suffix in (".gz", ".zst"):
        return  # no archives one after the other: an empty text
    message = refusal(path)
    assert f"{path}: damaged at or before offset {length:,} " in message


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_changed_byte_is_found_and_the_offset_is_not_before_it(tmp_path, suffix):
    whole = bytearray(COMPRESS[suffix](TEXT.encode()))
    changed = len(whole) // 2
    whole[changed] ^= 0xFF
    path = put(tmp_path / f"a.txt{suffix}", bytes(whole))
    message = refusal(path)
    offset = int(message.partition("at or before offset ")[2].partition(" (")[0].replace(",", ""))
    assert changed < offset <= len(whole)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_name_that_promises_another_format_is_refused(tmp_path, suffix):
    path = put(tmp_path / f"a.txt{suffix}", b"plain text" * 9)
    assert "damaged at or before offset" in refusal(path)


def test_a_wrong_byte_in_an_archive_is_named_by_its_offset_in_the_text(tmp_path):
    path = put(tmp_path / "a.gz", gzip.compress(b"a" * 300_000 + b"\xff"))
    assert "0xff at offset 300000;" in refusal(path)


def test_an_archive_of_several_files_is_refused(tmp_path):
    for name in ("a.tar.gz", "a.tar.zst"):
        path = put(tmp_path / name, COMPRESS[Path(name).suffix](b"any"))
        assert f"{path}: an archive of files; unpack it" in refusal(path)
    path = put(tmp_path / "a.tar", b"any")
    assert f"{path}: an archive of files; unpack it" in refusal(path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("one.txt", "1")
        archive.writestr("two.txt", "2")
    assert "holds 2 files" in refusal(tmp_path / "a.zip")


def test_an_archive_of_a_version_to_come_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("one.txt", "1")
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[content.index(b"PK\1\2") + 6] = 193  # the version that it takes to unpack
    (tmp_path / "a.zip").write_bytes(content)
    assert "zip file version 19.3" in refusal(tmp_path / "a.zip")


def test_a_small_archive_of_a_huge_text_is_read_in_bounded_memory(tmp_path):
    for suffix, compress in COMPRESS.items():
        path = put(tmp_path / f"a{suffix}", compress(b"\0" * 30_000_000))
        tracemalloc.start()
        assert sum(map(len, Corpus([path]).read())) == 30_000_000
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 15_000_000, suffix  # 8 MB are the dictionary of .xz


def test_the_identity_is_of_the_file_and_of_how_it_is_read(tmp_path):
    content = gzip.compress(b"text", mtime=0)
    prints = [
        Corpus([put(tmp_path / name, content)], **settings).fingerprint()
        for name, settings in (
            ("a.gz", {}),
            ("renamed.txt.gz", {}),
            ("a.txt", {}),
            ("a.gz", {"field": "x"}),
            ("a.gz", {"field": "y"}),
            ("a.gz", {"column": "x"}),
        )
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 5


# JSON-lines

ROWS = [
    {"id": 1, "text": "first\r\nrow é", "meta": {"title": "A", "year": 1600}, "a.b": "whole"},
    {"id": 2, "text": None, "meta": None, "a.b": "name"},
    {"id": 3, "text": "", "meta": {"title": "😀", "year": 1}, "a.b": "!"},
    {"id": 4, "text": "last\n", "meta": {"title": None}, "a.b": "?"},
]


def jsonl(rows: list) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("text", "first\nrow é\n\nlast\n\n"),
        ("meta.title", "A\n😀\n"),
        ("a.b", "whole\nname\n!\n?\n"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.NDJSON", "a.json", "a.jsonl.gz", "a.jsonl.zst"])
def test_each_row_of_json_lines_gives_its_field_and_a_newline(tmp_path, name, field, text):
    compress = COMPRESS.get(Path(name).suffix, bytes)
    path = put(tmp_path / name, compress(b"\xef\xbb\xbf" + jsonl(ROWS) + b"\n\n"))
    assert read(path, field=field) == text


def test_json_lines_come_in_pieces_of_bounded_size(tmp_path, monkeypatch):
    path = put(tmp_path / "a.jsonl", jsonl([{"text": "x" * 9}] * 1000))
    monkeypatch.setattr("litchar.text.corpus.CHUNK_BYTES", 64)
    pieces = list(Corpus([path], field="text").read())
    assert set(map(len, pieces)) == {70, 60}  # 7 rows, and the 6 that are left
    assert "".join(pieces) == ("x" * 9 + "\n") * 1000


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("body", "data.field=body not found; fields with text: text, meta.title, a.b"),
        ("meta.body", "data.field=meta.body not found; fields with text: text, meta.title, a.b"),
        ("text.x", "data.field=text.x not found; fields with text: text, meta.title, a.b"),
        ("id", "data.field=id is int, not text"),
        ("meta", "data.field=meta is dict, not text"),
        (None, "data.field is not set; fields with text: text, meta.title, a.b"),
    ],
)
def test_a_field_that_is_not_there_is_refused_and_those_that_are_named(tmp_path, field, reason):
    path = put(tmp_path / "a.jsonl", jsonl(ROWS))
    assert f"{path}, line 1: {reason}" in refusal(path, field=field)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "x"', "not JSON"),
        (b"plain", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'["x"]', "is a list; each line is an object"),
        (b'{"text": "\\ud83d"}', r"'\ud83d', half a surrogate pair"),
        (b'{"other": "x"}', "data.field=text not found; fields with text: other"),
        (b'{"other": 1}', "data.field=text not found; fields with text: none"),
    ],
)
def test_a_line_that_is_unfit_is_refused_with_its_number(tmp_path, line, reason):
    path = put(tmp_path / "a.jsonl", b'{"text": "good"}\n\n' + line + b"\n")
    message = refusal(path, field="text")
    assert f"{path}, line 3" in message
    assert reason in message


def test_a_line_without_end_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("litchar.text.formats.LONGEST_LINE", 1000)
    path = put(tmp_path / "a.json", b'{"text": "' + b"x" * 1000)
    assert "line 1: longer than 1,000 bytes" in refusal(path, field="text")


# Parquet


@pytest.fixture
def table() -> pa.Table:
    texts = ["first\r\nrow é", None, "", "😀"] * 100
    return pa.table(
        {
            "id": range(400),
            "text": texts,
            "large": pa.array(texts, pa.large_string()),
            "a b.c": pa.array(texts).dictionary_encode(),
        }
    )


@pytest.mark.parametrize("column", ["text", "large", "a b.c"])
@pytest.mark.parametrize("name", ["a.parquet", "a.pq"])
def test_each_row_of_parquet_gives_its_column_and_a_newline(tmp_path, table, name, column):
    pq.write_table(table, tmp_path / name, row_group_size=90)
    assert read(tmp_path / name, column=column) == "first\nrow é\n\n😀\n" * 100


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ("body", "data.column=body not found; columns with text: text, large, a b.c"),
        ("id", "data.column=id holds int64, not text; columns with text: text, large, a b.c"),
        (None, "data.column is not set; columns with text: text, large, a b.c"),
    ],
)
def test_a_column_that_is_not_there_is_refused_and_those_that_are_named(
    tmp_path, table, column, reason
):
    pq.write_table(table, tmp_path / "a.parquet")
    assert f"a.parquet: {reason}" in refusal(tmp_path / "a.parquet", column=column)


def test_a_parquet_file_with_a_damaged_name_is_refused(tmp_path):
    pq.write_table(pa.table({"né": ["a"]}), tmp_path / "a.parquet", store_schema=False)
    content = (tmp_path / "a.parquet").read_bytes().replace("né".encode(), b"n\x9d\x9d")
    assert "damaged after row 0" in refusal(put(tmp_path / "a.parquet", content), column="x")


def test_a_damaged_parquet_file_is_refused(tmp_path, table):
    pq.write_table(table.select(["text"]), tmp_path / "a.parquet", compression="none")
    whole = (tmp_path / "a.parquet").read_bytes()
    for content in (whole[:-9], b"", b"text", whole[:4] + b"\xff" * 300 + whole[304:]):
        assert "damaged after row 0, or not Parquet" in refusal(
            put(tmp_path / "a.parquet", content), column="text"
        )


def test_a_parquet_column_that_is_no_utf8_is_refused(tmp_path):
    wrong = pa.array([b"good", b"\xff"]).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"text": wrong}), tmp_path / "a.parquet")
    assert "can't decode byte 0xff" in refusal(tmp_path / "a.parquet", column="text")


def test_without_pyarrow_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = put(tmp_path / "a.parquet", b"")
    assert 'pyarrow: pip install -e ".[parquet]"' in refusal(path, column="text")


def test_a_field_and_a_column_are_refused_together(tmp_path):
    with pytest.raises(UserError, match=r"data\.field=a is for JSON-lines, data\.column=b"):
        Corpus([tmp_path / "a"], field="a", column="b")


def test_a_file_with_rows_makes_a_token_store(tmp_path):
    path = put(tmp_path / "a.jsonl.xz", lzma.compress(jsonl(ROWS)))
    store = open_store(Corpus([path], field="text"))
    assert store.vocabulary.decode(store.tokens) == "first\nrow é\n\nlast\n\n"


@pytest.mark.parametrize("document", [None, "line", "file"])
def test_a_row_is_a_document_as_a_file_is(tmp_path, document):
    rows = [{"text": "one\ntwo"}, {"text": ""}, {"text": None}, {"text": "one"}]
    put(tmp_path / "a.jsonl", jsonl(rows))
    put(tmp_path / "b.jsonl", jsonl(rows[3:]))
    store = open_store(Corpus.find(str(tmp_path), "*.jsonl", "text"), Encoding(document=document))
    assert (
        store.vocabulary.decode(store.tokens)
        == {
            None: "one\ntwo\n\none\none\n",
            "line": "\none\ntwo\none\none\n",
            "file": "\none\ntwo\none\none\n",
        }[document]
    )
    boundaries = (store.tokens == 0).sum()
    assert boundaries == {None: 5, "line": 5, "file": 4}[document]  # None: its newlines


def test_rows_that_are_documents_bring_no_newline_into_the_vocabulary(tmp_path):
    path = put(tmp_path / "a.jsonl", jsonl([{"text": "ab"}, {"text": "ba"}]))
    store = open_store(Corpus([path], field="text"), Encoding(document="file"))
    assert store.vocabulary.characters == "ab"


def test_of_rows_it_has_to_be_said_what_is_the_text_unless_bytes_are(tmp_path):
    path = put(tmp_path / "a.jsonl", b'{"title": "text"}\n')
    for name in ("a.txt", "a.jsonl"):  # of one content, and of one fingerprint
        put(tmp_path / name, path.read_bytes())
    assert Text(path=str(tmp_path / "a.txt")).open()
    with pytest.raises(UserError, match=r"data\.field is not set; fields with text: title"):
        Text(path=str(path)).open()
    assert bytes(Text(path=str(path), unit="byte").open().tokens) == path.read_bytes()


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_document_of_bytes_is_any_file_as_it_is(tmp_path, name):
    place = put(tmp_path / name, b"\xff{}\n")
    document = Text(path=[str(place)] * 2, unit="byte", document="file", val_fraction=0.5)
    tokens = document.open().tokens
    assert document.open().vocabulary.decode(tokens) == 2 * "\n\ufffd{}\n" + "\n"
    with pytest.raises(UserError, match=name):  # of characters, it is rows
        open_store(Corpus([place]), Encoding(document="file"))


def test_the_bytes_of_rows_are_those_of_their_text(tmp_path):
    path = put(tmp_path / "a.jsonl.gz", gzip.compress(jsonl([{"text": "é"}, {"text": "b"}])))
    assert b"".join(Corpus([path], field="text").read_bytes()) == "é\nb\n".encode()
    store = open_store(Corpus([path], field="text"), Encoding("byte", "file"))
    assert store.vocabulary.decode(store.tokens) == "\né\nb\n"
