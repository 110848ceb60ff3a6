"""The token store."""

import errno
import gzip
import itertools
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from litchar.errors import UserError
from litchar.text import ByteVocabulary, Corpus, Encoding, open_store
from litchar.text.mixture import Splitting
from litchar.text.store import boundaries, cache_dir, find_store, has_document


class CountingCorpus(Corpus):
    """Counts how many times the text is read."""

    reads = 0

    def read(self) -> Iterator[str]:
        self.reads += 1
        return super().read()


def corpus_of(path: Path, text: str | bytes) -> CountingCorpus:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return CountingCorpus([path])


def in_the_cache() -> list[Path]:
    """Return all entries of the token cache, without its (empty) locks."""
    entries = (cache_dir() / "tokens").glob("*")
    return [entry for entry in entries if entry.suffix != ".lock" or entry.stat().st_size]


def test_tokens_decode_to_the_text_and_ids_follow_the_vocabulary(tmp_path):
    text = "Ünïcödé €😀\n" * 50 + "\0 end"
    store = open_store(corpus_of(tmp_path / "a.txt", text.replace("\n", "\r\n")))
    assert store.vocabulary.characters == "".join(sorted(set(text)))
    assert store.vocabulary.decode(store.tokens) == text
    assert store.tokens.tolist() == store.vocabulary.encode(text).tolist()


def test_a_text_of_several_files_and_chunks_is_encoded_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("litchar.text.corpus.CHUNK_BYTES", 5)
    (tmp_path / "a.txt").write_bytes("first é\r".encode())
    (tmp_path / "b.txt").write_bytes("\nsecond 😀".encode())
    store = open_store(Corpus([tmp_path / "a.txt", tmp_path / "b.txt"]))
    assert store.vocabulary.decode(store.tokens) == "first é\n\nsecond 😀"


@pytest.mark.parametrize(("distinct", "dtype"), [(2, "u1"), (256, "u1"), (257, "u2")])
def test_tokens_have_the_smallest_dtype_on_disk_too(tmp_path, distinct, dtype):
    text = "".join(map(chr, range(0x4E00, 0x4E00 + distinct)))
    store = open_store(corpus_of(tmp_path / "a.txt", text))
    assert store.tokens.dtype == store.vocabulary.dtype == np.dtype(dtype)
    assert store.tokens.tolist() == list(range(distinct))
    file = Path(store.tokens.filename)
    assert file.stat().st_size < 200 + distinct * np.dtype(dtype).itemsize


def test_tokens_are_memory_mapped_and_read_only(tmp_path):
    store = open_store(corpus_of(tmp_path / "a.txt", "abab"))
    assert isinstance(store.tokens, np.memmap)
    assert Path(store.tokens.filename).is_relative_to(cache_dir())
    with pytest.raises(ValueError, match="read-only"):
        store.tokens[0] = 1


def test_a_second_open_reads_the_text_no_more_and_leaves_the_files_as_they_are(tmp_path):
    corpus = corpus_of(tmp_path / "a.txt", "some text")
    first = open_store(corpus)

    def files() -> dict[Path, tuple[int, int]]:  # but for locks, which an older filelock touches
        paths = (path for path in cache_dir().rglob("*.*") if path.suffix != ".lock")
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}

    before = files()
    reads = corpus.reads

    elsewhere = corpus_of(tmp_path / "renamed.md", "some text")
    for again in (open_store(corpus), open_store(elsewhere)):
        assert again.vocabulary == first.vocabulary
        assert again.fingerprint == first.fingerprint
        assert again.tokens.tolist() == first.tokens.tolist()
    assert (reads, corpus.reads, elsewhere.reads) == (2, 2, 0)
    assert files() == before


def test_changed_content_gives_another_store_beside_the_first(tmp_path):
    path = tmp_path / "a.txt"
    first = open_store(corpus_of(path, "some text"))
    second = open_store(corpus_of(path, "some_text"))
    assert second.fingerprint != first.fingerprint
    assert second.vocabulary.decode(second.tokens) == "some_text"
    assert first.vocabulary.decode(first.tokens) == "some text"
    back = open_store(corpus_of(path, "some text"))
    assert back.vocabulary.decode(back.tokens) == "some text"
    assert len(in_the_cache()) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "the text is empty"),
        (b"\xef\xbb\xbf", "the text is empty"),
        (b"aaaa", "one distinct character, 'a'"),
        (b"\r\n\n\r", "one distinct character, '\\\\n'"),
    ],
)
def test_a_text_with_nothing_to_predict_is_refused_and_leaves_nothing(tmp_path, text, reason):
    with pytest.raises(UserError, match=reason) as error:
        open_store(corpus_of(tmp_path / "a.txt", text))
    assert str(tmp_path / "a.txt") in str(error.value)
    assert in_the_cache() == []


def test_bytes_that_are_not_utf8_far_into_a_file_leave_nothing_and_can_be_mended(tmp_path):
    far = 600_000  # beyond the second chunk
    path = tmp_path / "a.txt"
    with pytest.raises(UserError, match=f"0xe9 at offset {far};"):
        open_store(corpus_of(path, b"ab" * (far // 2) + b"\xe9t\xe9"))
    assert in_the_cache() == []
    mended = open_store(corpus_of(path, "ab" * (far // 2) + "été"))
    assert len(mended.tokens) == far + 3


class ChangingCorpus(Corpus):
    """A file that changes between the two passes over it."""

    later: str

    def read(self) -> Iterator[str]:
        yield from super().read()
        self.paths[0].write_text(self.later)


# With a new character, shorter, longer, and of the same length.
@pytest.mark.parametrize("later", ["ababz", "ab", "babaab", "baba"])
def test_a_text_that_changes_while_it_is_encoded_is_never_stored_as_what_it_was(tmp_path, later):
    path = tmp_path / "a.txt"
    path.write_text("abab")
    corpus = ChangingCorpus([path])
    corpus.later = later
    try:
        store = open_store(corpus)
    except UserError:
        assert in_the_cache() == []
    else:
        assert store.vocabulary.decode(store.tokens) == "abab"  # what its fingerprint stands for


def flip_a_byte(store: Path) -> None:
    data = bytearray((store / "tokens.npy").read_bytes())
    data[-3] ^= 1
    (store / "tokens.npy").write_bytes(data)


def cut(store: Path) -> None:
    data = (store / "tokens.npy").read_bytes()
    (store / "tokens.npy").write_bytes(data[:-1])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_a_full_disk_is_named_with_the_cache_and_leaves_nothing(tmp_path, monkeypatch, number):
    def fail(*_):
        raise OSError(number, "No space left on device")

    (tmp_path / "text.txt").write_text("abc")
    monkeypatch.setattr("litchar.text.store._save", fail)
    words = r"the cache cannot be written \(No space left on device\); .*LITCHAR_CACHE=DIRECTORY"
    with pytest.raises(UserError, match=words):
        open_store(Corpus([tmp_path / "text.txt"]))
    assert not list(cache_dir().glob("tokens/*/"))


def replace(path: Path, old: str, new: str) -> None:
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new))


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_byte,
        cut,
        lambda store: (store / "tokens.npy").unlink(),
        lambda store: (store / "meta.json").unlink(),
        lambda store: (store / "meta.json").write_text(""),
        lambda store: (store / "meta.json").write_text("[]"),
        lambda store: (store / "meta.json").write_text("{}"),
        lambda store: (store / "meta.json").write_bytes(b"\xff"),
        lambda store: replace(store / "meta.json", '"ranges": {}', '"ranges": 5'),
        lambda store: replace(store / "meta.json", '"x"', '"y"'),
    ],
)
def test_a_damaged_store_is_built_again(tmp_path, damage):
    corpus = corpus_of(tmp_path / "a.txt", "some text")
    open_store(corpus)
    (place,) = in_the_cache()
    damage(place)
    again = open_store(corpus)
    assert again.vocabulary.decode(again.tokens) == "some text"
    assert corpus.reads == 4
    assert in_the_cache() == [place]


def test_what_a_killed_build_left_is_in_nobodys_way(tmp_path):
    corpus = corpus_of(tmp_path / "a.txt", "some text")
    open_store(corpus)
    (place,) = in_the_cache()
    place.rename(f"{place}.draft")
    (Path(f"{place}.draft") / "more").touch()
    again = open_store(corpus)
    assert again.vocabulary.decode(again.tokens) == "some text"
    assert in_the_cache() == [place]


class MeetingCorpus(CountingCorpus):
    """Waits at a barrier for all builders before it looks for a store."""

    def __init__(self, paths: list[Path], barrier) -> None:
        super().__init__(paths)
        self.barrier = barrier

    def fingerprint(self) -> str:
        fingerprint = super().fingerprint()
        if self.barrier is not None:
            self.barrier.wait(timeout=120)
            self.barrier = None
        return fingerprint


def _open_and_report(path: Path, barrier, results) -> None:
    corpus = MeetingCorpus([path], barrier)
    try:
        store = open_store(corpus)
        results.put((store.vocabulary.decode(store.tokens) == path.read_text(), corpus.reads))
    except BaseException as error:
        results.put((repr(error), corpus.reads))


def test_of_two_processes_that_want_a_store_at_once_one_builds_it_and_both_have_it(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("built once " * 100_000)  # takes longer than the way from barrier to lock
    processes = multiprocessing.get_context("spawn")
    barrier, results = processes.Barrier(2), processes.Queue()
    builders = [
        processes.Process(target=_open_and_report, args=(path, barrier, results), daemon=True)
        for _ in range(2)
    ]
    for builder in builders:
        builder.start()
    outcomes, reads = zip(*(results.get(timeout=240) for _ in builders), strict=True)
    for builder in builders:
        builder.join(timeout=60)
    assert outcomes == (True, True)
    assert sorted(reads) == [0, 2]
    (store,) = in_the_cache()
    assert sorted(file.name for file in store.iterdir()) == ["meta.json", "tokens.npy"]


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"LITCHAR_CACHE": "/l", "XDG_CACHE_HOME": "/x"}, "/l"),
        ({"LITCHAR_CACHE": "", "XDG_CACHE_HOME": "/x"}, "/x/litchar"),
        ({"LITCHAR_CACHE": None, "XDG_CACHE_HOME": "/x"}, "/x/litchar"),
        ({"LITCHAR_CACHE": None, "XDG_CACHE_HOME": ""}, "/h/.cache/litchar"),
        ({"LITCHAR_CACHE": None, "XDG_CACHE_HOME": None}, "/h/.cache/litchar"),
    ],
)
def test_the_cache_is_where_the_environment_says(monkeypatch, variables, place):
    monkeypatch.setenv("HOME", "/h")
    for name, value in variables.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert cache_dir() == Path(place)


def test_without_a_home_directory_the_cache_has_to_be_named(monkeypatch, tmp_path):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("LITCHAR_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(UserError, match=r"no home directory .*variable LITCHAR_CACHE=DIRECTORY"):
        cache_dir()


# Bytes


def test_the_bytes_of_any_file_are_its_tokens_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr("litchar.text.corpus.CHUNK_BYTES", 5)
    data = b"\xef\xbb\xbfline\r\nline\r\xff\x00\xc3" + bytes(range(256))
    (tmp_path / "a.bin").write_bytes(data)
    (tmp_path / "b.bin").write_bytes(b"\xa9")
    store = open_store(Corpus([tmp_path / "a.bin", tmp_path / "b.bin"]), Encoding("byte"))
    assert bytes(store.tokens) == data + b"\xa9"
    assert store.vocabulary == ByteVocabulary()
    again = open_store(Corpus([tmp_path / "a.bin", tmp_path / "b.bin"]), Encoding("byte"))
    assert again.vocabulary == ByteVocabulary()


def test_bytes_are_those_of_what_a_compressed_file_holds_and_of_a_field_that_is_named(tmp_path):
    row = '{"text": "né"}\n'.encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(row * 2))
    path = tmp_path / "a.jsonl.gz"
    for corpus, content in (
        (Corpus([path]), row * 2),
        (Corpus([path], field="text"), "né\n".encode() * 2),
    ):
        assert bytes(open_store(corpus, Encoding("byte")).tokens) == content


def test_a_text_has_a_store_of_its_own_for_each_unit(tmp_path):
    corpus = corpus_of(tmp_path / "a.txt", "éa")
    for unit, length in (("character", 2), ("byte", 3), ("character", 2)):
        store = open_store(corpus, Encoding(unit))
        assert (store.vocabulary.unit, len(store.tokens)) == (unit, length)


@pytest.mark.parametrize(("data", "reason"), [(b"", "is empty"), (b"\0\0", "one distinct byte")])
def test_bytes_with_nothing_to_predict_are_refused(tmp_path, data, reason):
    with pytest.raises(UserError, match=reason):
        open_store(corpus_of(tmp_path / "a.bin", data), Encoding("byte"))
    assert in_the_cache() == []


# Documents


def documents_of(store) -> list[str]:
    edges = boundaries(store.tokens)
    assert edges[0] == 0
    assert edges[-1] == len(store.tokens) - 1
    pairs = itertools.pairwise(edges)
    return [store.vocabulary.decode(store.tokens[start + 1 : stop]) for start, stop in pairs]


@pytest.mark.parametrize("unit", ["character", "byte"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 1 << 18])
def test_each_line_that_is_not_empty_is_a_document(tmp_path, monkeypatch, unit, chunk):
    monkeypatch.setattr("litchar.text.corpus.CHUNK_BYTES", chunk)
    (tmp_path / "a.txt").write_text("\n\nab\n\n\n é \nb")
    (tmp_path / "b.txt").write_text("\n")
    (tmp_path / "c.txt").write_text("c\n")
    corpus = Corpus([tmp_path / name for name in ("a.txt", "b.txt", "c.txt")])
    store = open_store(corpus, Encoding(unit, "line"))
    assert documents_of(store) == ["ab", " é ", "b", "c"]
    assert store.tokens.dtype == np.uint8


@pytest.mark.parametrize("unit", ["character", "byte"])
def test_each_file_that_is_not_empty_is_a_document(tmp_path, unit):
    texts = {"a.txt": "one\n\ntwo\n", "b.txt": "", "c.txt": "é", "d.txt": "\n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    store = open_store(Corpus([tmp_path / name for name in texts]), Encoding(unit, "file"))
    assert documents_of(store) == ["one\n\ntwo\n", "é", "\n"]


@pytest.fixture
def lines(tmp_path):
    """A corpus of 200 lines of 1 to 20 characters."""
    lengths = np.random.default_rng(1).integers(1, 21, 200)
    names = ["".join(chr(97 + (i + j) % 26) for j in range(n)) for i, n in enumerate(lengths)]
    return corpus_of(tmp_path / "lines.txt", "\n".join(names)), names


def test_shuffled_documents_are_the_same_ones_in_one_random_order(lines):
    corpus, names = lines
    ordered = open_store(corpus, Encoding(document="line"))
    shuffled = open_store(corpus, Encoding(document="line", shuffle=True))
    assert documents_of(ordered) == names
    # The order must never change: it determines the validation split.
    words = np.random.Philox(key=0).random_raw(len(names))
    by_word = [name for _, name in sorted(zip(words.tolist(), names, strict=True))]
    assert documents_of(shuffled) == by_word
    assert len(list(Path(shuffled.tokens.filename).parent.iterdir())) == 2


def test_a_document_is_found_only_where_it_stands_whole(lines):
    corpus, names = lines
    store = open_store(corpus, Encoding(document="line"))
    edges = boundaries(store.tokens)

    def found(text: str) -> bool:
        return has_document(store.tokens, edges, store.vocabulary.encode(text).tolist())

    assert all(found(name) for name in names)
    parts = {name[:-1] for name in names if len(name) > 1} - set(names)
    assert parts
    assert not any(found(part) for part in parts)


def test_documents_may_have_one_distinct_character_and_not_none(tmp_path):
    store = open_store(corpus_of(tmp_path / "a.txt", "a\naa"), Encoding(document="line"))
    assert store.tokens.tolist() == [0, 1, 0, 1, 1, 0]
    with pytest.raises(UserError, match="is empty"):
        open_store(corpus_of(tmp_path / "b.txt", "\n\r\n\n"), Encoding(document="line"))


def test_a_store_is_found_by_fingerprint_without_its_text(tmp_path):
    corpus = corpus_of(tmp_path / "a.txt", "a\nb")
    fingerprint = corpus.fingerprint()
    assert find_store(fingerprint, Encoding("character", "line")) is None
    made = open_store(corpus, Encoding(document="line"))
    corpus.paths[0].unlink()
    assert find_store(fingerprint, Encoding("character", "line")).tokens.tolist() == [0, 1, 0, 2, 0]
    assert find_store(fingerprint, Encoding("character", None)) is None
    assert find_store(f"../tokens/{made.fingerprint[:21]}", Encoding("character", "line")) is None


def test_a_cache_of_an_earlier_version_is_found_again(tmp_path):
    store = open_store(corpus_of(tmp_path / "a.txt", "a\nb"))
    place = Path(store.tokens.filename).parent
    assert place.name == f"{store.fingerprint[:32]}-character-None-in-order-2"
    splitting = Splitting("0.1-0.0-None", lambda tokens: {})
    name = Encoding("byte", "line", True, splitting).name
    assert name == "byte-line-shuffled-0.1-0.0-None-2"


def test_a_store_in_a_cache_that_may_only_be_read_is_used(tmp_path, monkeypatch):
    """Such as a teacher's cache, or one in a container image."""
    text = corpus_of(tmp_path / "a.txt", "of a teacher")
    kept = open_store(text).tokens.tolist()
    monkeypatch.setattr("os.access", lambda *_: False)
    assert open_store(text).tokens.tolist() == kept
    with pytest.raises(UserError, match="the cache cannot be written"):
        open_store(corpus_of(tmp_path / "b.txt", "of a pupil"))
