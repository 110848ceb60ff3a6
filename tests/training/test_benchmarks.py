"""The standard benchmarks, offline: their configurations on small stand-ins from a local server."""

import hashlib
import http.server
import io
import math
import threading
import zipfile

import numpy as np
import pytest

from conftest import summary
from litchar.errors import UserError
from litchar.text import Text, open_store

CONTENT = {
    "enwik8": "".join(f"<page>{i * i % 89} é€</page>\r\n" for i in range(800)).encode(),
    "text8": "".join(f" anarchism originated {chr(97 + i % 26)}" for i in range(900)).encode(),
}


@pytest.fixture
def stand_in(monkeypatch):
    """Serve a zip of a small stand-in; return the overrides that download it in place of the real
    data set, and the list of requested paths."""
    servers = []
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def stand_in(name: str, content: bytes | None = None) -> tuple[list[str], list[str]]:
        with zipfile.ZipFile(packed := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, CONTENT[name])
        whole = packed.getvalue()
        requests: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                requests.append(self.path)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(whole if content is None else content)

            def log_message(self, *_) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        servers.append(server)
        return [
            f"data={name}",
            "data.path=null",
            f"data.source.url=http://127.0.0.1:{server.server_port}/dc/{name}.zip",
            f"data.source.sha256={hashlib.sha256(whole).hexdigest()}",
        ], requests

    yield stand_in
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("name", ["enwik8", "text8"])
def test_a_benchmark_is_fetched_split_and_scored_as_papers_do(
    train, loss_of, stand_in, capsys, name
):
    overrides, requests = stand_in(name)
    run_dir = train(*overrides, "trainer.max_steps=4")
    assert requests == [f"/dc/{name}.zip"]
    figures = summary(run_dir)
    n = len(CONTENT[name])
    assert figures["unit"] == {"enwik8": "byte", "text8": "character"}[name]
    assert figures["vocab_size"] == {"enwik8": 256, "text8": 27}[name]
    said = " ".join(capsys.readouterr().out.split())
    assert f"{n:,} {figures['unit']}s" in said
    assert f"{figures['test_bpc']:.3f} bits per character, {figures['test_bpb']:.3f} per" in said
    tested = loss_of(f"checkpoint={run_dir}", "split=test")
    assert tested == pytest.approx(figures["test_loss"], rel=1e-5)
    assert figures["test_bpb"] == pytest.approx(tested / math.log(2), rel=1e-5)
    assert requests == [f"/dc/{name}.zip"]  # fetched once


@pytest.mark.parametrize("name", ["enwik8", "text8"])
def test_the_usual_split_is_of_90_5_and_5_million(compose, name):
    text = Text.of(compose(f"data={name}").data)
    tokens = np.broadcast_to(np.uint8(0), (100_000_000,))  # takes no memory
    assert text.bounds(tokens) == {
        "train": (0, 90_000_000),
        "val": (90_000_000, 95_000_000),
        "test": (95_000_000, 100_000_000),
    }
    assert text.source.keywords["url"].startswith("https://")
    assert len(text.source.keywords["sha256"]) == 64


def test_the_bytes_of_enwik8_are_taken_as_they_are(compose, stand_in):
    overrides, _ = stand_in("enwik8")
    store = Text.of(compose(*overrides).data).open()
    assert bytes(store.tokens) == CONTENT["enwik8"]  # line ends too


def test_an_unpacked_copy_serves_as_well(compose, stand_in, tmp_path):
    (tmp_path / "enwik8").write_bytes(CONTENT["enwik8"])
    text = Text.of(compose("data=enwik8", f"data.path={tmp_path / 'enwik8'}").data)
    assert bytes(text.open().tokens) == CONTENT["enwik8"]


def test_another_file_than_the_published_one_is_refused(compose, stand_in):
    overrides, _ = stand_in("text8", b"an error page")
    with pytest.raises(UserError, match=r"the SHA-256 is .* nothing was kept"):
        open_store(Text.of(compose(*overrides).data).corpus)


@pytest.mark.parametrize("name", ["enwik8_t12", "text8_t12"])
def test_the_configurations_are_of_the_size_they_say(compose, name):
    config = compose(f"experiment={name}")
    assert config.data.source.url.endswith(f"{name.split('_')[0]}.zip")
    from hydra.utils import instantiate

    model = instantiate(config.model, vocab_size=256, block_size=config.data.block_size)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert 35e6 < parameters < 44e6


# Overlapping windows


def test_a_bigram_model_has_one_loss_whatever_the_stride(train, loss_of, text_file):
    run_dir = train(
        "model=bigram",
        f"data.path={text_file}",
        "data.block_size=16",
        "trainer.accelerator=cpu",
        "trainer.max_steps=5",
        only=True,
    )
    losses = [loss_of(f"checkpoint={run_dir}", f"stride={stride}") for stride in ("null", 16, 7, 1)]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)  # float32 sums


def test_more_context_changes_the_loss_of_a_transformer(train, loss_of, capsys):
    run_dir = train("trainer.max_steps=60")
    loss_at = {
        stride: loss_of(f"checkpoint={run_dir}", f"stride={stride}") for stride in ("null", 16, 4)
    }
    assert loss_at[16] == loss_at["null"]
    assert abs(loss_at[4] - loss_at["null"]) > 1e-4
    assert "each but the first 16 predicted from 13 or more" in capsys.readouterr().out


def test_a_stride_or_a_size_that_means_nothing_is_refused(train, loss_of):
    run_dir = train("trainer.max_steps=2")
    for stride in ("0", "17", "-1", "2.5", "all", "true"):
        with pytest.raises(UserError, match=r"stride=.*: must be a whole number from 1 to 16"):
            loss_of(f"checkpoint={run_dir}", f"stride={stride}")
    for size in ("0", "true", "many"):
        with pytest.raises(UserError, match=r"batch_size=.*: must be a whole number of at least 1"):
            loss_of(f"checkpoint={run_dir}", f"batch_size={size}")
