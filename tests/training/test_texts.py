"""Any text, from file to sample and back: scripts, marks, symbols, line ends."""

import numpy as np
import pytest

from conftest import summary
from litchar.checkpoints import Checkpoint
from litchar.generation import generate

TEXTS = {
    "english": "The quick brown fox jumps over the lazy dog; it doesn't mind.\n" * 40,
    "chinese": "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。寒来暑往，秋收冬藏。\n" * 60,
    "emoji": "👩‍👩‍👧 smiles 😀 at 🏳️‍🌈, and 🇨🇭 waves 👋🏽.\n" * 80,
    "arabic with marks": "بِسْمِ ٱللَّهِ ٱلرَّحْمَٰنِ ٱلرَّحِيمِ\n" * 80,
    "combining marks": "e\u0301a\u0308o\u0302 n\u0303 q\u0323\u0307\n" * 150,
    "dna": "ACGTTGCAACGGTTAACCGT" * 100,
    "windows lines": "first line\r\nsecond line\rthird\n" * 70,
    "nulls and controls": "a\0b\x1b[31mc\x7f\u200b\u2028d\n" * 150,
    "code": 'def f(x):\n\treturn {"a": x ** 2}  # ${not} an interpolation\n' * 40,
}


@pytest.mark.parametrize("kind", TEXTS)
def test_any_text_trains_and_is_written_again(train, tmp_path, kind):
    path = tmp_path / f"{kind}.txt"
    path.write_bytes(TEXTS[kind].encode())
    run_dir = train(f"data.path='{path}'", "trainer.max_steps=10")
    text = TEXTS[kind].replace("\r\n", "\n").replace("\r", "\n")  # as Python's text mode reads it
    assert summary(run_dir)["vocab_size"] == len(set(text))
    checkpoint = Checkpoint.load(run_dir / "checkpoints/best.ckpt")
    assert checkpoint.vocabulary.characters == "".join(sorted(set(text)))
    prompt = text[:9]
    ids = checkpoint.vocabulary.encode(prompt).astype(np.int64)[None]
    new = [step.ids[0] for step in generate(checkpoint.build_model(), ids, 20)]
    assert set(checkpoint.vocabulary.decode(new)) <= set(text)
    assert checkpoint.vocabulary.decode(ids[0]) == prompt


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ["data.val_fraction=0.1"],
            "the last 180 characters of the files, which are read in order",
        ),
        (["data.val_fraction=0.1", "data.test_fraction=0.2"], "the last 540 characters of the"),
        (["data.document=file"], None),
    ],
)
def test_which_file_is_held_out_is_said_where_there_are_several(
    train, tmp_path, capsys, more, said
):
    (texts := tmp_path / "texts").mkdir()
    for name in "cab":
        (texts / f"{name}.txt").write_text(f"{name} is its name. " * 40)  # 600 characters
    train(f"data.path={texts}", "trainer.max_steps=1", *more)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Held out")]
    if said is None:
        assert not lines
    else:
        (line,) = lines
        assert line.startswith(f"Held out: {said}")
        assert line.endswith("; the last is c.txt")


def test_a_single_file_is_split_without_a_word(train, capsys):
    train("trainer.max_steps=1")
    assert "Held out" not in capsys.readouterr().out
