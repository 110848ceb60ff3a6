"""`scripts/baselines.py`: bits per character of counting models and compressors on a text."""

import bz2
import gzip
import lzma
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from backports import zstd
from omegaconf import DictConfig

from litchar.errors import UserError, check_integer, is_number
from litchar.terminal import Terminal
from litchar.text import Text, TokenStore
from litchar.text.yardsticks import Yardstick, characters_and_bytes, count_yardsticks, splits

BEFORE = 16_000_000  # training tokens that prime a compressor before the validation split


def run(config: DictConfig) -> list[Yardstick]:
    """Print a text's yardsticks as a table.

    Raises:
        UserError: a setting is invalid, or the text cannot be read.
    """
    check_integer("order", config.order, 1, 64)
    memory = config.memory_gb
    if not is_number(memory) or not memory > 0:
        raise UserError(f"memory_gb={memory}: must be a number above 0, such as 2")
    terminal = Terminal()
    text = Text.of(config.data)
    with terminal.status("Reading"):
        store = text.open()
        train, val = splits(text, store)
    terminal.say(
        f"{text.corpus}: {len(store.tokens):,} {text.unit}s, "
        f"a vocabulary of {len(store.vocabulary)}\n"
        f"counted on the first {len(train):,}, scored on the {len(val):,} of the validation split"
    )
    with terminal.status("Counting"):
        found = count_yardsticks(text, store, config.order, config.memory_gb * 1e9)
    with terminal.status("Compressing"):
        found += compress(text, store)
    rows = [
        (row.name, f"{row.bits_per_character:.3f}", f"{row.bits_per_byte:.3f}", row.note)
        for row in found
    ]
    terminal.print(terminal.table(("yardstick", "# bits/character", "# bits/byte", ""), rows))
    return found


def _xz(data: bytes) -> bytes:
    dictionary = min(max(len(data), 4096), 1 << 26)  # 64 MiB as for -9, less for smaller data
    preset = 9 | lzma.PRESET_EXTREME
    filters = [{"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": dictionary}]
    return lzma.compress(data, filters=filters)


COMPRESSORS = {
    "gzip -9": lambda data: gzip.compress(data, 9, mtime=0),
    "bzip2 -9": lambda data: bz2.compress(data, 9),
    "xz -9e": _xz,
    "zstd --ultra -22": lambda data: zstd.compress(data, level=22),
}


def compress(text: Text, store: TokenStore) -> Iterator[Yardstick]:
    """Yield the compressed size of the validation split: alone, and after training text.

    The latter is the compressed size of the last `BEFORE` training tokens and the split together,
    minus that of those tokens by themselves.
    """
    train, val = splits(text, store)
    before, split = (store.vocabulary.to_bytes(tokens) for tokens in (train[-BEFORE:], val))
    sizes = characters_and_bytes(store, val)
    part = "" if len(train) <= BEFORE else f"the last {BEFORE // 10**6} million {text.unit}s of "
    with ThreadPoolExecutor(2) as pool:  # each needs ~12x the text in memory; all release the GIL
        jobs = {
            name: [pool.submit(compressor, data) for data in (split, before, before + split)]
            for name, compressor in COMPRESSORS.items()
        }
        try:
            for name, job in jobs.items():
                alone, first, both = (len(done.result()) for done in job)
                yield Yardstick.of(name, 8 * alone, sizes, "alone")
                after = f"after {part}the training text"
                yield Yardstick.of(name, 8 * (both - first), sizes, after)
        finally:  # otherwise Ctrl-C would wait for every queued job
            pool.shutdown(wait=False, cancel_futures=True)
