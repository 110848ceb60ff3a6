"""Named text sources: bundled, generated and downloaded."""

import hashlib
import http.server
import json
import socket
import sys
import sysconfig
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from litchar.errors import UserError
from litchar.text import Text
from litchar.text.corpus import Corpus
from litchar.text.sources import HuggingFace, bundled, download, python_stdlib
from litchar.text.store import cache_dir

# The bundled primer


@pytest.fixture(scope="module")
def primer() -> str:
    return "".join(bundled("ml.txt").read())


def test_the_bundled_primer_is_long_enough_and_plain_ascii(primer):
    assert len(primer) >= 100_000
    assert primer.isascii()
    assert not set(primer) - set(map(chr, range(32, 127))) - {"\n"}


def test_the_bundled_primer_says_nothing_twice(primer):
    passages = [primer[i : i + 80] for i in range(len(primer) - 79)]
    assert len(set(passages)) == len(passages)


# The standard library


def test_the_standard_library_is_read_whole_in_sorted_order_and_without_its_tests():
    root = Path(sysconfig.get_path("stdlib"))
    corpus = python_stdlib()
    names = [path.relative_to(root) for path in corpus.paths]
    assert names == sorted(names)
    assert {Path("ast.py"), Path("json/decoder.py"), Path("email/message.py")} <= set(names)
    assert not {"test", "tests", "idle_test", "site-packages"} & {p for n in names for p in n.parts}

    n_bytes = sum(path.stat().st_size for path in corpus.paths)
    n_characters = sum(map(len, corpus.read()))  # every file decodes
    assert 0.9 * n_bytes < n_characters < n_bytes
    assert n_characters > 5_000_000


# Downloads


CONTENT = "published text é\n".encode() * 40_000  # more than one chunk
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.path == "/texts/missing.txt":
            self.send_error(404)
        elif self.path == "/texts/cut.txt":  # announces more than it sends
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[: len(CONTENT) // 2])
            self.close_connection = True
        elif self.path == "/texts/cut_chunks.txt":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"400\r\n" + CONTENT[:100])
            self.close_connection = True
        elif self.path == "/texts/not_http.txt":
            self.wfile.write(b"220 this is a mail server\r\n")
            self.close_connection = True
        elif self.path == "/texts/moved.txt":
            self.send_response(302)
            self.send_header("Location", self.server.moved_to)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path == "/texts/no_length.txt":
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(CONTENT)
            self.close_connection = True
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests = []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}/texts"
    server.stop = lambda: (server.shutdown(), thread.join(), server.server_close())
    yield server
    if thread.is_alive():
        server.stop()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def closed_url() -> Iterator[str]:
    """A URL with no server behind it."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and nobody else can
        yield f"http://127.0.0.1:{unused.getsockname()[1]}/texts/a.txt"


def kept() -> list[Path]:
    """Return the files in the cache, without its (empty) locks."""
    files = [path for path in cache_dir().rglob("*") if path.is_file()]
    return [path for path in files if path.suffix != ".lock" or path.stat().st_size]


@pytest.mark.parametrize("name", ["a.txt", "no_length.txt"])
def test_a_download_is_fetched_once_and_kept(server, name, monkeypatch):
    first = download(f"{server.url}/{name}", SHA256)
    assert "".join(first.read()) == CONTENT.decode()
    assert kept() == first.paths
    assert first.paths[0].name == name

    server.stop()
    monkeypatch.setattr("os.access", lambda *_: False)  # nor may the cache be written any more
    again = download(f"{server.url}/{name}", SHA256)
    assert "".join(again.read()) == CONTENT.decode()
    assert server.requests == [f"/texts/{name}"]


@pytest.mark.parametrize("name", ["a.txt", "cut.txt"])
def test_another_file_than_the_published_one_is_refused_and_not_kept(server, name):
    content = CONTENT if name == "a.txt" else CONTENT[: len(CONTENT) // 2]
    published = "0" * 64 if name == "a.txt" else SHA256
    with pytest.raises(UserError, match="nothing was kept") as error:
        download(f"{server.url}/{name}", published)
    assert hashlib.sha256(content).hexdigest() in str(error.value)
    assert published in str(error.value)
    assert kept() == []


def test_a_checksum_that_is_none_is_refused_before_anything_is_made(server, tmp_path):
    with pytest.raises(UserError, match=r"sha256=\.\./\.\.: must be 64 hexadecimal digits"):
        download(f"{server.url}/a.txt", "../..")
    assert server.requests == [] == [*tmp_path.iterdir()]


def test_a_kept_file_that_was_changed_is_refused_by_its_path(server):
    (place,) = download(f"{server.url}/a.txt", SHA256).paths
    place.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match=f"SHA-256 is not {SHA256}; delete it") as error:
        download(f"{server.url}/a.txt", SHA256)
    assert str(place) in str(error.value)
    place.unlink()
    assert "".join(download(f"{server.url}/a.txt", SHA256).read()) == CONTENT.decode()


def place_named_in(message: str) -> Path:
    words = message.replace(",", " ").split()
    (place,) = {Path(word) for word in words if word.startswith(str(cache_dir()))}
    return place


def test_without_a_network_the_message_names_a_place_where_a_copy_serves(closed_url):
    with pytest.raises(UserError, match="Connection refused") as error:
        download(closed_url, SHA256)
    assert closed_url in str(error.value)
    assert kept() == []
    place_named_in(str(error.value)).write_bytes(CONTENT)
    assert "".join(download(closed_url, SHA256).read()) == CONTENT.decode()


@pytest.mark.parametrize("name", ["missing.txt", "cut_chunks.txt", "not_http.txt"])
def test_whatever_the_server_does_the_message_names_the_place_for_a_copy(server, name):
    with pytest.raises(UserError, match="cannot be fetched") as error:
        download(f"{server.url}/{name}", SHA256)
    assert place_named_in(str(error.value)).name == name
    assert kept() == []


@pytest.mark.parametrize("scheme", ["http", "file", "ftp"])
def test_only_https_is_fetched(tmp_path, scheme):
    (tmp_path / "a.txt").write_bytes(CONTENT)
    url = {"file": f"{tmp_path.as_uri()}/a.txt"}.get(scheme, f"{scheme}://localhost:9/a.txt")
    with pytest.raises(UserError, match="only https is supported") as error:
        download(url, SHA256)
    assert place_named_in(str(error.value)).name == "a.txt"
    assert kept() == []


@pytest.mark.parametrize("scheme", ["http", "file", "ftp"])
def test_a_redirect_leads_to_https_only(server, tmp_path, scheme):
    (tmp_path / "b.txt").write_bytes(CONTENT)
    port = server.server_port
    server.moved_to = {
        "http": f"{server.url}/b.txt",
        "file": f"{tmp_path.as_uri()}/b.txt",
        "ftp": f"ftp://127.0.0.1:{port}/b.txt",
    }[scheme]
    with pytest.raises(UserError, match="cannot be fetched"):
        download(f"{server.url}/moved.txt", SHA256)
    assert server.requests == ["/texts/moved.txt"]
    assert kept() == []


@pytest.mark.parametrize("name", ["a.txt", "no_length.txt"])
def test_a_file_larger_than_any_text_is_not_fetched_whole(server, monkeypatch, name):
    monkeypatch.setattr("litchar.text.remote.MOST_BYTES", len(CONTENT) - 1)
    with pytest.raises(UserError, match="larger than"):
        download(f"{server.url}/{name}", SHA256)
    assert kept() == []
    monkeypatch.setattr("litchar.text.remote.MOST_BYTES", len(CONTENT))
    assert "".join(download(f"{server.url}/{name}", SHA256).read()) == CONTENT.decode()


def test_of_two_downloads_at_once_one_fetches_and_both_have_it(server):
    with ThreadPoolExecutor(2) as threads:
        corpora = list(threads.map(lambda _: download(f"{server.url}/a.txt", SHA256), range(2)))
    assert ["".join(corpus.read()) for corpus in corpora] == [CONTENT.decode()] * 2
    assert server.requests == ["/texts/a.txt"]


def test_downloads_of_other_content_under_the_same_name_do_not_meet(server):
    (first,) = download(f"{server.url}/a.txt", SHA256).paths
    with pytest.raises(UserError, match="nothing was kept"):
        download(f"{server.url}/a.txt", "1" * 64)
    assert kept() == [first]


# Data sets


@pytest.fixture
def data_set(tmp_path, monkeypatch) -> Path:
    """A directory for the `datasets` library: two splits, rows with and without text."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hf" / "datasets"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    directory = tmp_path / "stories"
    directory.mkdir()
    rows = [{"id": 1, "text": "one\r\né"}, {"id": 2, "text": None}, {"id": 3, "text": "three"}]
    (directory / "train.jsonl").write_text("\n".join(map(json.dumps, rows * 200 + [rows[1]])))
    (directory / "test.jsonl").write_text('{"id": 4, "text": "four"}')
    return directory


def test_a_data_set_gives_the_rows_of_its_column_by_split(data_set):
    text = "one\né\nthree\n" * 200
    assert "".join(HuggingFace(str(data_set), "text").read()) == text
    assert "".join(HuggingFace(str(data_set), "text", split="test").read()) == "four\n"
    assert "".join(HuggingFace(str(data_set), "text", split="train+test").read()) == text + "four\n"
    documents = HuggingFace(str(data_set), "text", split="train[:3]").parts("file")
    assert ["".join(document.read()) for document in documents] == ["one\né", "three"]
    lines = HuggingFace(str(data_set), "text", split="train[:3]").parts("line")
    assert ["".join(part.read()) for part in lines] == ["one\né\nthree\n"]
    corpus = Text(name=str(data_set), column="text", split="test").corpus
    assert str(corpus) == f"{data_set}/test"
    assert "".join(corpus.read()) == "four\n"


def test_the_identity_of_a_data_set_is_its_rows(data_set, tmp_path):
    def fingerprint(split: str, place: Path = data_set) -> str:
        return HuggingFace(str(place), "text", split=split).fingerprint()

    whole = fingerprint("train")
    assert whole == fingerprint("train[:600]")  # the last row is null
    assert whole != fingerprint("train[:599]") != fingerprint("test")
    assert whole == fingerprint("train", data_set.rename(tmp_path / "moved"))
    (tmp_path / "four.txt").write_text("four")  # no row, which a newline follows
    assert fingerprint("test", tmp_path / "moved") != Corpus([tmp_path / "four.txt"]).fingerprint()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"column": "body"}, "data.column=body not found; columns with text: text"),
        ({"column": "id"}, "data.column=id holds int64, not text; columns with text: text"),
        ({"column": None}, "data.column is not set; columns with text: text"),
        ({"column": "text", "split": "valid"}, 'Unknown split "valid"'),
        ({"column": "text", "split": None}, "data.split is not set; choose from train, test"),
        ({"column": "text", "subset": "x"}, "'x' not found"),
        ({"column": "text", "name": "nobody/nothing"}, "cannot be loaded"),
    ],
)
def test_what_a_data_set_does_not_have_is_refused_and_what_it_has_named(data_set, settings, reason):
    with pytest.raises(UserError) as error:
        list(HuggingFace(**({"name": str(data_set)} | settings)).read())
    assert str(error.value).startswith("data.name=")
    assert reason in str(error.value)


def test_a_data_set_that_is_damaged_is_said_to_be(data_set):
    (data_set / "train.jsonl").write_text('{"text": "a"}\n{"text"')
    with pytest.raises(UserError, match=r"cannot be loaded: .*JSON"):
        list(HuggingFace(str(data_set), "text").read())


def test_without_the_library_one_line_says_what_to_install(data_set, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"data\.name needs the package datasets: .*\.\[datasets\]"):
        list(HuggingFace(str(data_set), "text").read())
