"""`scripts/inspect.py`: what is in a text, before training on it."""

import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from litchar.analysis.characters import (
    count_line_ends,
    foreign_letters,
    label_of,
    mixed_words,
    name_of,
    oddity,
)
from litchar.analysis.copying import standing
from litchar.analysis.passages import (
    Passage,
    Repeats,
    Windows,
    by_chance,
    by_content,
    hash_lines,
    hash_windows,
    longest_passages,
    sampled_bits,
    share_in,
)
from litchar.terminal import Terminal
from litchar.text import Text, TokenStore
from litchar.text.ngrams import CHUNK, count_tokens
from litchar.text.store import boundaries
from litchar.text.vocabulary import BOUNDARY, Vocabulary, printable

LENGTHS = (25, 50, 100, 200)  # of the windows that are looked up in the training split
REPEATED = 50  # characters of the shortest passage that counts as repeated
RARE = 10  # occurrences at most
LONG_LINE = 20  # characters of the shortest line whose repetition is informative
MOST = 10  # rows of a list in the terminal; the page has more
MOST_ON_PAGE = 500
SHOWN = 60  # characters of a passage that are shown


@dataclass(frozen=True)
class Section:
    """A part of the results: a table with a heading, for the terminal and for the page.

    Attributes:
        rows: cells as shown; a column is right-aligned if its heading begins with `#`.
        most: the maximum number of rows in the terminal.
        note: a line below the table.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    most: int = MOST
    note: str = ""


@dataclass(frozen=True)
class Inspected:
    """The statistics of a text that the sections and the plots show.

    Attributes:
        counts: occurrences of each token: (V,) int64
        lines: lengths of the lines: (L,)
        documents: lengths of the documents, empty if the text has none: (D,)
        overlap: split -> window length -> share of its windows that occur in training
        copied: `lines` and `documents` -> split -> share of them that occur in training
        unseen: split -> number of its distinct tokens that training lacks
        windows: of `REPEATED` tokens, all or a random sample
        repeated: which of these occur more than once: (K,) bool
        repeats: the passages that occur more than once
        bits: hash bits by which the windows of `repeats` were sampled; 0: all were kept
    """

    store: TokenStore
    bounds: dict[str, tuple[int, int]]
    counts: np.ndarray
    lines: np.ndarray
    documents: np.ndarray
    overlap: dict[str, dict[int, float]]
    copied: dict[str, dict[str, float]]
    unseen: dict[str, int]
    windows: Windows
    repeated: np.ndarray
    repeats: Repeats
    bits: int


def run(config: DictConfig) -> list[Section]:
    """Print what is in a text, and write it as a page with plots, unless `page` is null.

    Raises:
        UserError: a setting is invalid, the text cannot be read, or the page cannot be written.
    """
    terminal = Terminal()
    text = Text.of(config.data)
    with terminal.status("Reading"):
        store = text.open()
    with terminal.status("Inspecting"):
        found = inspect(text, store)
        sections = list(describe(text, found))
    for section in sections:
        _print(terminal, section)
    if config.page is not None:
        from litchar.analysis.inspect_page import write_page  # imports matplotlib

        with terminal.status("Drawing"):
            write_page(Path(os.path.expanduser(config.page)), str(text.corpus), sections, found)
        terminal.say(f"\n{config.page}")
    return sections


def inspect(text: Text, store: TokenStore) -> Inspected:
    """Return the statistics of the text in `store`."""
    tokens, vocab_size = store.tokens, len(store.vocabulary)
    bounds = text.bounds_in(store)
    held_out = {name: tokens[start:stop] for name, (start, stop) in bounds.items()}
    train = held_out.pop("train")
    known = count_tokens(train, vocab_size) > 0
    bits = sampled_bits(len(tokens))
    alike = hash_windows(tokens, vocab_size, REPEATED, by_content(bits))
    windows = hash_windows(tokens, vocab_size, REPEATED, by_chance(len(tokens)))
    repeated = standing({REPEATED: windows.hashes}, tokens, vocab_size, times=2)[REPEATED]
    starts, stops = _lines(store)
    edges = boundaries(tokens) if store.vocabulary.document else np.zeros(1, np.int64)
    documents = edges[:-1] + 1, edges[1:]
    long = stops - starts >= LONG_LINE
    copied = {"lines": _copied(store, bounds, starts[long], stops[long])}
    if store.vocabulary.document:
        copied["documents"] = _copied(store, bounds, *documents)
    return Inspected(
        store=store,
        bounds=bounds,
        counts=count_tokens(tokens, vocab_size),
        lines=stops - starts,
        documents=documents[1] - documents[0],
        overlap={name: _shares_in(train, split, vocab_size) for name, split in held_out.items()},
        copied=copied,
        unseen={
            name: int(np.count_nonzero(count_tokens(split, vocab_size)[~known]))
            for name, split in held_out.items()
        },
        windows=windows,
        repeated=repeated,
        repeats=Repeats(tokens, alike, REPEATED),
        bits=bits,
    )


def _shares_in(train: np.ndarray, split: np.ndarray, vocab_size: int) -> dict[int, float]:
    """Return the share of a split's windows that occur in `train`, by window length."""
    some = by_chance(len(split))
    hashes = {n: hash_windows(split, vocab_size, n, some).hashes for n in LENGTHS}
    stand = standing(hashes, train, vocab_size)
    return {n: float(of_n.mean()) if len(of_n) else math.nan for n, of_n in stand.items()}


def _copied(
    store: TokenStore, bounds: dict[str, tuple[int, int]], starts: np.ndarray, stops: np.ndarray
) -> dict[str, float]:
    """Return the share of the pieces from `starts` to `stops` that occur in training, by split."""
    hashes = hash_lines(store.tokens, len(store.vocabulary), starts, stops)
    within = {
        name: hashes[(starts >= start) & (stops <= stop)] for name, (start, stop) in bounds.items()
    }
    train = within.pop("train")
    return {name: share_in(held_out, train) for name, held_out in within.items()}


def _lines(store: TokenStore) -> tuple[np.ndarray, np.ndarray]:
    """Return where the lines begin and end, without their terminator: a line feed, the boundary
    after a document, or the end of the text. Two (L,) arrays."""
    tokens, vocabulary = store.tokens, store.vocabulary
    feed = vocabulary.symbols.index("\n") if "\n" in vocabulary.characters else -1
    boundary = BOUNDARY if vocabulary.document else -1
    pieces = ((start, tokens[start : start + CHUNK]) for start in range(0, len(tokens), CHUNK))
    ends = [start + np.flatnonzero((ids == feed) | (ids == boundary)) for start, ids in pieces]
    stops = np.concatenate((*ends, [len(tokens)]))
    starts = np.concatenate(([0], stops[:-1] + 1))
    # Only a line feed can end an empty line; a boundary or the end of the text cannot.
    lines = (starts < stops) | np.append(tokens[stops[:-1]] == feed, False)
    return starts[lines], stops[lines]


def describe(text: Text, found: Inspected) -> Iterator[Section]:
    """Yield the results, section by section."""
    yield _size(text, found)
    yield _characters(found)
    if text.unit == Vocabulary.unit:
        yield from _odd(text, found)
    yield _lengths(text, found)
    yield from _repeats(found)
    yield _overlap(found)


def _size(text: Text, found: Inspected) -> Section:
    corpus, tokens = text.corpus, found.store.tokens
    _, size = found.counts @ found.store.vocabulary.sizes
    rows = [
        ("text", str(corpus)),
        ("bytes", f"{size:,} as UTF-8"),
        (f"{text.unit}s", f"{len(tokens):,}, {np.count_nonzero(found.counts):,} distinct"),
        ("lines", f"{len(found.lines):,}"),
    ]
    for name, (start, stop) in found.bounds.items():
        rows.append((name, f"{stop - start:,} {text.unit}s"))
    return Section("Size", ("", ""), rows)


def _characters(found: Inspected) -> Section:
    counts, vocabulary = found.counts, found.store.vocabulary
    symbols, unit = vocabulary.symbols, vocabulary.unit
    order = np.argsort(-counts, kind="stable")
    rows = [_character(found, i) for i in order[:MOST_ON_PAGE] if counts[i]]
    rare = np.flatnonzero((counts > 0) & (counts <= RARE))
    note = ""
    if len(rare):
        share = counts[rare].sum() / counts.sum()
        rarest = rare[np.argsort(counts[rare], kind="stable")][:8]
        named = [f"{label_of(symbols[i], unit)} {name_of(symbols[i], unit)}" for i in rarest]
        note = (
            f"{len(rare):,} occur at most {RARE} times, {share:.2%} of the text; the rarest: "
            + ", ".join(named)
        )
    columns = ("", "name", "# count", "# share", "")
    return Section("Characters", columns, rows, 20, note)


def _character(found: Inspected, i: int) -> tuple[str, ...]:
    counts, vocabulary = found.counts, found.store.vocabulary
    character, unit = vocabulary.symbols[i], vocabulary.unit
    odd = oddity(character) if unit == Vocabulary.unit else None
    label, name = label_of(character, unit), name_of(character, unit)
    return label, name, f"{counts[i]:,}", f"{counts[i] / counts.sum():.3%}", odd or ""


def _odd(text: Text, found: Inspected) -> Iterator[Section]:
    counts, symbols = found.counts, found.store.vocabulary.symbols
    kinds = defaultdict(list)
    for i in np.argsort(-counts, kind="stable"):
        if counts[i] and (kind := oddity(symbols[i])):
            kinds[kind].append(i)
    rows = []
    for kind, ids in kinds.items():
        named = [f"{label_of(symbols[i])} {name_of(symbols[i])}" for i in ids[:3]]
        more = f", and {len(ids) - 3:,} more" if len(ids) > 3 else ""
        rows.append((kind, f"{counts[ids].sum():,}", ", ".join(named) + more))
    columns = ("what is odd", "# count", "characters")
    yield Section("Odd characters", columns, rows, 20)
    words = mixed_words(found.store)
    rows = []
    for word, count in words.most_common(MOST_ON_PAGE):
        letters = foreign_letters(word)
        names = ", ".join(f"{c} {name_of(c)}" for c in letters[:3])
        rows.append((printable(word[:SHOWN]), f"{count:,}", names))
    if rows:
        yield Section("Words of several scripts", ("", "# count", "letters"), rows)
    counted = count_line_ends(text.corpus.read_bytes())  # before they become \n
    ends = [(end, f"{count:,}") for end, count in counted.items() if count]
    mixed = "mixed; all are read as \\n" if len(ends) > 1 else ""
    yield Section("Line ends in the files", ("", "# count"), ends, note=mixed)


def _lengths(text: Text, found: Inspected) -> Section:
    rows = [_distribution("lines", found.lines)]
    if len(found.documents):
        rows.append(_distribution("documents", found.documents))
    paths = text.corpus.paths
    if len(paths) > 1:
        rows.append(_distribution("files (bytes)", np.array([p.stat().st_size for p in paths])))
    columns = ("", "# number", "# shortest", "# median", "# mean", "# 90%", "# 99%", "# longest")
    return Section(f"Lengths in {text.unit}s", columns, rows)


def _distribution(what: str, lengths: np.ndarray) -> tuple[str, ...]:
    quantiles = np.quantile(lengths, (0, 0.5, 0.9, 0.99, 1), method="inverted_cdf")
    shortest, median, most, nearly_all, longest = (f"{value:,}" for value in quantiles)
    mean = f"{lengths.mean():,.1f}"
    return what, f"{len(lengths):,}", shortest, median, mean, most, nearly_all, longest


def _repeats(found: Inspected) -> Iterator[Section]:
    store = found.store

    def row(passage: Passage) -> tuple[str, ...]:
        first = passage.places[0]
        start = store.vocabulary.decode(store.tokens[first : first + min(passage.length, SHOWN)])
        begins = printable(start.replace("\n", "\\n").replace("\t", "\\t"))  # on one line
        places = ", ".join(f"{place:,}" for place in passage.places[:3])
        return f"{passage.length:,}", f"{len(passage.places):,}", places, begins

    columns = ("# length", "# times", "first places", "begins")
    share = found.repeated.mean() if len(found.repeated) else 0
    note = f"{share:.2%} of windows of {REPEATED} occur more than once"
    if found.bits:
        note += f"; passages were searched for with one window in {1 << found.bits}"
    longest = longest_passages(found.repeats, len(store.vocabulary), found.bits, MOST)
    rows = [row(passage) for passage in longest]
    yield Section("Longest repeated passages", columns, rows, 5, note)
    rows = [row(passage) for passage in found.repeats.most_frequent(MOST)]
    yield Section(f"Most frequent passages of {REPEATED} or more", columns, rows, 5)


def _overlap(found: Inspected) -> Section:
    rows = []
    for name, shares in found.overlap.items():
        copied = (found.copied[kind][name] for kind in found.copied)
        shown = (*shares.values(), *copied)
        cells = ("" if math.isnan(share) else f"{share:.2%}" for share in shown)
        rows.append((name, *cells, f"{found.unseen[name]:,}"))
    kinds = (*(f"# {length}" for length in LENGTHS), *(f"# {kind}" for kind in found.copied))
    columns = ("", *kinds, "# unseen")
    documents = "of documents, " if "documents" in found.copied else ""
    note = (
        f"the share of windows of that many {found.store.vocabulary.unit}s, {documents}and of "
        f"lines of {LONG_LINE} or more, that occurs there word for word; unseen: how many "
        f"distinct {found.store.vocabulary.unit}s never occur there"
    )
    return Section("Found word for word in the training split", columns, rows, note=note)


def _print(terminal: Terminal, section: Section) -> None:
    table = terminal.table(section.columns, section.rows[: section.most])
    terminal.print(f"\n{section.title}", style="bold")
    terminal.print(table if section.rows else "none")
    if len(section.rows) > section.most:
        terminal.print(f"and {len(section.rows) - section.most:,} more on the page", style="dim")
    if section.note:
        terminal.print(section.note, style="dim")
