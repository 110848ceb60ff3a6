"""Remote texts: fsspec's memory file system, and a local web server."""

import errno
import functools
import http.server
import sys
import threading

import fsspec
import pytest

from litchar.errors import UserError
from litchar.text import Corpus, remote
from litchar.text.store import cache_dir

CONTENT = ("published text é\n" * 60_000).encode()  # a megabyte


@pytest.fixture
def memory():
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    return fs


def put(fs, path: str, content: bytes) -> str:
    with fs.open(path, "wb") as file:
        file.write(content)
    return f"memory://{path}"


def copies() -> list[bytes]:
    return sorted(
        path.read_bytes()
        for path in (cache_dir() / "remote").rglob("*")
        if path.is_file() and path.suffix != ".lock"
    )


def test_a_remote_file_is_read_from_its_copy(memory):
    url = put(memory, "/bucket/a.txt", CONTENT)
    corpus = Corpus.find(url)
    assert "".join(corpus.read()) == CONTENT.decode()
    assert corpus.paths[0].is_relative_to(cache_dir())
    assert corpus.paths[0].name == "a.txt"


def test_it_is_fetched_once_and_again_when_it_has_changed(memory, monkeypatch):
    url = put(memory, "/bucket/a.txt", CONTENT)
    opened = []
    original = type(memory)._open
    monkeypatch.setattr(
        type(memory), "_open", lambda self, *a, **k: opened.append(a) or original(self, *a, **k)
    )
    first = Corpus.find(url).paths
    with monkeypatch.context() as of_another:  # whose cache may only be read
        of_another.setattr("os.access", lambda *_: False)
        assert Corpus.find(url).paths == first
    assert len(opened) == 1
    memory.rm("/bucket/a.txt")
    put(memory, "/bucket/a.txt", CONTENT[::-1])  # as long
    second = Corpus.find(url).paths
    assert second != first
    assert second[0].read_bytes() == CONTENT[::-1]


def test_a_remote_directory_is_read_by_pattern_in_sorted_order(memory):
    for name in ("b.txt", "sub/c.txt", "a.txt", "d.md"):
        put(memory, f"/bucket/texts/{name}", name.encode())
    assert "".join(Corpus.find("memory://bucket/texts").read()) == "a.txtb.txtsub/c.txt"
    assert "".join(Corpus.find("memory://bucket/texts/", "*.md").read()) == "d.md"
    put(memory, "/bucket/b [x]/e.txt", b"e")
    assert "".join(Corpus.find("memory://bucket/b [x]").read()) == "e"
    with pytest.raises(UserError, match=r"data\.pattern=\*\.rst"):
        Corpus.find("memory://bucket/texts", "*.rst")


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT in ranges, with an ETag; the first `cuts` responses break off."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        server, first = self.server, 0
        if self.path != "/a.txt":
            status = {"/secret.txt": 403}.get(self.path, 404)
            self.send_error(status)
            return
        content = server.content
        if (asked := self.headers.get("Range")) and server.ranges:
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(int(end), len(content) - 1)
            content = content[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(server.content)}")
        else:
            self.send_response(200)
        if server.ranges is not None:  # None: it does not say
            self.send_header("Accept-Ranges", "bytes" if server.ranges else "none")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", server.tag)
        self.end_headers()
        if body:
            assert self.headers["Accept-Encoding"] == "identity"
            server.starts.append(first)
            if server.cuts and first + len(content) > 700_000:
                server.cuts -= 1
                self.wfile.write(content[: 700_000 - first])
                self.close_connection = True
            else:
                self.wfile.write(content)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(remote, "BLOCK_BYTES", 100_000)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.tag, server.ranges, server.cuts, server.starts = (
        CONTENT,
        '"1"',
        True,
        0,
        [],
    )
    thread = threading.Thread(target=functools.partial(server.serve_forever, 0.01))
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
    fsspec.filesystem("http").clear_instance_cache()


@pytest.mark.parametrize("ranges", [True, False, None])
def test_an_interrupted_copy_goes_on_where_it_stopped(server, ranges):
    server.ranges, server.cuts = ranges, 100
    with pytest.raises(UserError, match="run the same command again to resume"):
        Corpus.find(f"{server.url}/a.txt")
    (part,) = copies()
    assert 0 < len(part) < len(CONTENT)
    assert CONTENT.startswith(part)
    server.cuts, server.starts = 0, []
    assert Corpus.find(f"{server.url}/a.txt").paths[0].read_bytes() == CONTENT
    assert copies() == [CONTENT]
    if ranges:
        assert min(server.starts) >= len(part)


def test_a_full_disk_is_the_caches_and_not_the_servers(server, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(remote, "_blocks", full)
    with pytest.raises(UserError, match=r"cache cannot be written \(No space left.*LITCHAR_CACHE"):
        Corpus.find(f"{server.url}/a.txt")


def test_another_tag_is_another_text(server):
    assert Corpus.find(f"{server.url}/a.txt").paths[0].read_bytes() == CONTENT
    server.content, server.tag = CONTENT[::-1], '"2"'
    assert Corpus.find(f"{server.url}/a.txt").paths[0].read_bytes() == CONTENT[::-1]


def test_what_is_too_large_is_not_fetched(server, monkeypatch):
    monkeypatch.setattr(remote, "MOST_BYTES", len(CONTENT) - 1)
    with pytest.raises(UserError, match="larger than"):
        Corpus.find(f"{server.url}/a.txt")
    assert server.starts == []


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("memory://bucket/none.txt", "there is no such file"),
        ("SERVER/none.txt", "there is no such file"),
        ("SERVER/secret.txt", "no permission to read it .*403"),
        ("http://127.0.0.1:9/a.txt", "cannot be read .*run the same command again to resume"),
        ("http://example.org/a.txt", "not a supported kind of URL; choose from s3://"),
        ("file:///etc/passwd", "not a supported kind of URL"),
        ("zip://a.txt::s3://bucket/a.zip", "not a supported kind of URL"),
        ("ftp://example.org/a.txt", "not a supported kind of URL"),
        ("S3://bucket/a.txt", "not a supported kind of URL; choose from s3://"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(memory, server, url, reason):
    with pytest.raises(UserError, match=reason) as error:
        Corpus.find(url.replace("SERVER", server.url))
    assert "\n" not in str(error.value)
    assert copies() == []


@pytest.mark.parametrize(
    ("url", "package"), [("s3://bucket/a.txt", "s3fs"), ("gs://bucket/a.txt", "gcsfs")]
)
def test_a_protocol_without_its_package_says_what_to_install(monkeypatch, url, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"needs {package}: pip install {package}"):
        Corpus.find(url)


def test_a_run_trains_on_a_remote_text(train, memory, text_file):
    url = put(memory, "/bucket/a.txt", text_file.read_bytes())
    run_dir = train(f"data.path={url}", "trainer.max_steps=2")
    assert f"path: {url}" in (run_dir / "config.yaml").read_text()
