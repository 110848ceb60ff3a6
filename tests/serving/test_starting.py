"""Starting and stopping the server and the playground."""

import contextlib
import errno
import importlib
import json
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from servers import save, untrained

from conftest import ROOT, composed, hears_hangups
from litchar import serving
from litchar.errors import UserError
from litchar.overrides import quote
from litchar.serving import host, playground, serve
from litchar.text import Vocabulary

LETTERS = Vocabulary("abc")


@pytest.fixture
def start(tmp_path):
    """Start a script in this process as the command line does."""
    run_dir = tmp_path / "outputs/runs/r"
    checkpoint = save(run_dir / "checkpoints/best.ckpt", LETTERS, untrained(LETTERS))

    def start(script: str, *overrides: str) -> None:
        config = composed(script, "device=cpu", *map(quote, overrides))
        {"serve": serve, "playground": playground}[script].run(config)

    start.checkpoint = checkpoint
    return start


@pytest.mark.parametrize("script", ["serve", "playground"])
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["checkpoint=/nowhere.ckpt"], "/nowhere.ckpt: no such checkpoint"),
        (["outputs_dir=/nowhere"], "checkpoint=latest: no run under /nowhere"),
        (["port=http"], "port=http: must be a whole number from 0"),
        (["port=70000"], "port=70000: must be"),
        (["port=true"], "port=True: must be"),
        (["host=null"], "host=None: must be an address"),
        (["host=no.such.host.invalid"], "no.such.host.invalid: this machine has no such address"),
        (["host=192.0.2.1"], "is not available at 192.0.2.1"),
        (["at_once=0"], "at_once=0: must be a whole number of at least 1"),
        (["waiting=-1"], "waiting=-1: must be a whole number of at least 0"),
        (["max_prompt=many"], "max_prompt=many: must be"),
        (["device=nonsense"], "device=nonsense"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(start, script, overrides, message):
    with pytest.raises(UserError, match=re.escape(message)):
        start(script, "port=0", *overrides)


@pytest.mark.parametrize("script", ["serve", "playground"])
def test_a_port_in_use_is_named(start, script):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port={port}: is not available at 127.0.0.1 .*port=0"):
            start(script, f"port={port}")


@pytest.mark.parametrize("script", ["serve", "playground"])
def test_it_ends_where_its_address_cannot_be_told(start, script, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("builtins.print", full)
    with pytest.raises(OSError, match="No space left"):
        start(script, f"checkpoint={start.checkpoint}", "port=0")


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(
        UserError, match=r'litchar.serving needs the package fastapi: pip install -e "\.\[web\]"'
    ):
        importlib.reload(serving)


def test_settings_that_the_page_begins_with_are_checked(start):
    with pytest.raises(UserError, match="temperature=-1"):
        start("playground", "port=0", "temperature=-1")
    with pytest.raises(UserError, match="seed=-1"):
        start("playground", "port=0", "seed=-1")
    with pytest.raises(UserError, match=r"stop=\['a', 'b'\]: must be one text"):
        start("playground", "port=0", "stop=[a,b]")


def test_an_address_that_others_reach_is_said_to_be_one():
    from fastapi import FastAPI

    for place, is_open in (("127.0.0.1", False), ("0.0.0.0", True)):
        with host.bind(place, 0) as listening:
            assert host.is_loopback(listening) != is_open
            said = host.Server(FastAPI(), listening, "", 0, lambda: None).said
            assert ("no password" in said) == is_open


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ([signal.SIGTERM], 128 + signal.SIGTERM),
        pytest.param([signal.SIGHUP], 128 + signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param([signal.SIGINT] * 2, 128 + signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_it_serves_until_a_signal_and_ends_with_its_exit_code(start, signals, code):
    process = subprocess.Popen(
        [
            sys.executable,
            ROOT / "scripts/serve.py",
            f"checkpoint={start.checkpoint}",
            "port=0",
            "max_tokens=10000000",
            f"shutdown_seconds={0 if len(signals) == 1 else 100}",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hears_hangups,
    )
    try:
        assert "best.ckpt, step 7" in process.stdout.readline()
        name, url = re.match(r"model (\S+) at (\S+)/v1,", process.stdout.readline()).groups()
        assert (name, httpx.get(f"{url}/health").json()["model"]) == ("r", "r")
        body = {"model": "r", "stream": True, "max_tokens": 10**7}
        with httpx.stream("POST", f"{url}/v1/completions", json=body) as answer:
            parts = answer.iter_lines()
            assert json.loads(next(parts).removeprefix("data: "))["choices"]
            process.send_signal(signals[0])  # in the middle of a text
            if len(signals) == 1:
                last = [part for part in parts if part][-1]
                assert "the server is ending" in last
            else:  # it waits for the text, until it is told once more
                # Connections that it has not accepted yet get no answer.
                with contextlib.suppress(httpx.NetworkError, httpx.RemoteProtocolError):
                    while True:
                        httpx.get(f"{url}/health")
                process.send_signal(signals[1])
                with contextlib.suppress(httpx.HTTPError):
                    list(parts)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == code
        assert errors == ""
    finally:
        process.kill()
