"""The sections of a run's report that show where its model is surprised, on a page of HTML."""

import math

import numpy as np

from litchar.analysis.characters import label_of, name_of
from litchar.analysis.confusions import most_confused
from litchar.analysis.page import escape, section, table, table_of
from litchar.analysis.surprise import Surprise, most_surprising
from litchar.generation.scoring import characters
from litchar.text import Vocabulary
from litchar.text.vocabulary import printable

PASSAGE = 1500  # tokens that are shown in colour
SURPRISING, AROUND, MOST_SURPRISING = 40, 30, 8  # tokens of a passage and around it; passages
CONFUSED = 20  # pairs
BITS = (0, 0.5, 1, 2, 3, 4, 6, 8)  # the lowest cost of a character for each colour

STYLE = """
.s1 { background: rgba(var(--hot), .07); } .s2 { background: rgba(var(--hot), .14); }
.s3 { background: rgba(var(--hot), .24); } .s4 { background: rgba(var(--hot), .36); }
.s5 { background: rgba(var(--hot), .5); } .s6 { background: rgba(var(--hot), .68); }
.s7 { background: rgba(var(--hot), .9); color: #000; }
.sign { color: var(--soft); } .s5 .sign, .s6 .sign, .s7 .sign { color: inherit; }
.quiet { color: var(--soft); }
.legend span { padding: 0 .4rem; color: var(--ink); }
td.text { background: none; padding: .2rem 0; border-radius: 0; }
[data-t]:hover { outline: 1.5px solid var(--ink); }
[data-t]:hover::after { content: attr(data-t); position: fixed; left: 50%; bottom: 1rem;
  transform: translateX(-50%); background: var(--ink); color: var(--paper); padding: .35rem .8rem;
  border-radius: 6px; font: 14px/1.4 system-ui, sans-serif; white-space: pre; z-index: 2; }
"""


def surprise_section(found: Surprise, vocabulary: Vocabulary) -> str:
    """Return a passage of validation text, each character coloured by what it cost."""
    start = _begin(found, vocabulary)
    bits = found.nats.mean() / math.log(2)
    note = (
        "A passage of validation text. The deeper the colour, the more bits the "
        f"{vocabulary.unit} cost; point at one to see how many, and what the model expected "
        f"instead. The {len(found.nats):,} {vocabulary.unit}s read for this, all but the text's "
        f"first with at least a quarter of a window of context, cost {bits:.3f} bits on average."
    )
    legend = "".join(
        f'<span class="s{level}">{least:g}{"+" if level == len(BITS) - 1 else ""}</span>'
        for level, least in enumerate(BITS)
    )
    passage = _coloured(found, vocabulary, start, start + PASSAGE)
    return section(
        "Where the model is surprised",
        f'<p class="legend quiet">bits, at least: {legend}</p>',
        f'<div class="text" dir="auto" id="surprise">{passage}</div>',
        note=note,
    )


def _begin(found: Surprise, vocabulary: Vocabulary) -> int:
    """Return where the passage begins: at a line start, after some context if there is room."""
    room = max(1, len(found.ids) - PASSAGE)
    newlines = np.isin(found.ids[: room - 1], vocabulary.encode("\n", "skip"))
    lines = 1 + np.flatnonzero(newlines)
    late = lines[lines >= min(256, room // 2)]
    return int(late[0]) if len(late) else 1


def _coloured(found: Surprise, vocabulary: Vocabulary, start: int, stop: int) -> str:
    """Return the characters of the ids from `start` to `stop` as HTML, each in an element with its
    cost in bits."""
    ids = found.ids[start:stop]
    spans = []
    for piece, first, last in characters(vocabulary, ids):
        bits = found.nats[start + first - 1 : start + last - 1].sum() / math.log(2)
        guess, sure = (a[start + first - 1] for a in (found.guesses, found.confidence))
        label = label_of(vocabulary.symbols[guess], vocabulary.unit)
        told = f"{bits:.2f} bits"
        if guess != found.ids[start + first]:
            told += f"; expected {label} ({sure:.0%})"
        level = sum(bits >= least for least in BITS) - 1
        spans.append(f'<span class="s{level}" data-t="{escape(told)}">{_visible(piece)}</span>')
    return "".join(spans)


def _visible(text: str) -> str:
    """Return a text as HTML, with a visible sign for each line end or tab."""
    signs = {"\n": "↵\n", "\t": "⇥\t"}
    return "".join(
        f'<i class="sign">{signs[c]}</i>' if c in signs else escape(printable(c)) for c in text
    )


def passages_section(found: Surprise, vocabulary: Vocabulary) -> str:
    """Return the passages that cost most."""
    rows = []
    for place in most_surprising(found.nats, SURPRISING, MOST_SURPRISING):
        start, stop = place + 1, place + 1 + SURPRISING
        bits = found.nats[place : place + SURPRISING].mean() / math.log(2)
        passage = _coloured(found, vocabulary, start, stop)
        before, after = (
            f'<span class="quiet">{_visible(vocabulary.decode(ids))}</span>'
            for ids in (found.ids[max(0, start - AROUND) : start], found.ids[stop : stop + AROUND])
        )
        text = f'<td class="text" dir="auto">{before}{passage}{after}</td>'
        rows.append((f'<td class="n">{bits:.2f}</td>', text))
    note = (
        f"The sequences of {SURPRISING} {vocabulary.unit}s that cost most, in bits per "
        f"{vocabulary.unit}."
    )
    return section("The most surprising passages", table_of(("# bits", "passage"), rows), note=note)


def confusion_section(found: Surprise, vocabulary: Vocabulary) -> str:
    """Return which tokens the model takes for which."""
    pairs = most_confused(found.ids[1:].astype(np.int64), found.guesses, CONFUSED)
    right = float((found.guesses == found.ids[1:]).mean())

    def named(token: int) -> str:
        symbol, unit = vocabulary.symbols[token], vocabulary.unit
        return f"{label_of(symbol, unit)}  {name_of(symbol, unit)}"

    rows = [
        (named(pair.actual), named(pair.predicted), f"{pair.times:,}", f"{pair.share:.1%}")
        for pair in pairs
    ]
    note = (
        f"The {vocabulary.unit} that the model finds likeliest is right {right:.1%} of the time. "
        "Where it is wrong, these pairs are the most frequent; the share is of all occurrences of "
        "the first."
    )
    columns = (f"the {vocabulary.unit}", "taken for", "# times", "# share")
    return section("What it confuses", table(columns, rows), note=note)
