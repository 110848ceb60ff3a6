"""Encode a text into a token store: MB/s and memory, compared with the teaching script's dict."""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from litchar.benchmarks import output_of, spread
from litchar.errors import UserError

MEASURED = """
import os, resource, sys, time
from pathlib import Path
from litchar.errors import UserError
from litchar.text import Corpus, open_store
began = time.perf_counter()
try:
    store = open_store(Corpus([Path(sys.argv[1])]))
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
seconds = time.perf_counter() - began
try:
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
except OSError:  # on macOS, in bytes; on Linux it would count the parent's memory
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(seconds, peak)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--file", type=Path, help="text to repeat (the bundled primer)")
    parser.add_argument("--megabytes", type=int, default=1000, help="how much to encode (1000)")


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each encoder: median and range of MB/s, and peak resident memory.

    The store is built in a fresh process on one core, each time into an empty cache.

    Raises:
        UserError: the file cannot be read, is empty or is not UTF-8, or there is nothing to encode.
    """
    import litchar.text

    if options.megabytes < 1:
        raise UserError(f"--megabytes={options.megabytes}: must be at least 1")
    source = options.file or Path(litchar.text.__file__).with_name("ml.txt")
    try:
        text = source.read_bytes()
        characters = text.decode()
    except OSError as error:
        raise UserError(f"--file={source}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--file={source}: not UTF-8 at byte {error.start}") from None
    if not text:
        raise UserError(f"--file={source}: is empty")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "corpus.txt"
        with open(path, "wb") as file:
            for _ in range(max(1, options.megabytes * 1_000_000 // len(text))):
                file.write(text)
        megabytes = path.stat().st_size / 1e6
        ours, memory = [], 0.0
        for repeat in range(options.repeats):
            seconds, peak = _build(path, Path(directory) / f"cache{repeat}")
            ours.append(megabytes / seconds)
            memory = max(memory, peak)
    seconds_of_dict = [_teaching_script(characters) for _ in range(options.repeats)]
    theirs = [len(text) / 1e6 / seconds for seconds in seconds_of_dict]
    return [
        _row(f"token store, {megabytes:,.0f} MB", ours, memory),
        _row(f"dict look-up, {len(text) / 1e6:.1f} MB in memory", theirs, None),
    ]


def _build(path: Path, cache: Path) -> tuple[float, float]:
    """Build the store in a subprocess; return its seconds and peak resident memory in MB."""
    environment = os.environ | {"LITCHAR_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    output = output_of([sys.executable, "-c", MEASURED, str(path)], env=environment)
    seconds, peak = map(float, output.split())
    return seconds, peak


def _teaching_script(text: str) -> float:
    """Return the seconds of `[stoi[c] for c in text]`, with the whole text in memory."""
    began = time.perf_counter()
    stoi = {character: i for i, character in enumerate(sorted(set(text)))}
    [stoi[character] for character in text]
    return time.perf_counter() - began


def _row(what: str, rates: list[float], memory: float | None) -> dict[str, Any]:
    return {"what": what, **spread("MB/s", rates), "peak MB": memory}
