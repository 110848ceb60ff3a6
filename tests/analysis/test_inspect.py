"""`scripts/inspect.py`: what it finds, prints and writes; its name shadows no module."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from conftest import ROOT, composed
from litchar.analysis.inspect import describe, inspect, run
from litchar.errors import UserError
from litchar.text import Text

LICENCE = "Permission is hereby granted, free of charge, to whoever reads this line.\n"


@pytest.fixture
def inspected(tmp_path):
    """Inspect a text in this process; return the sections by title, and the page."""

    def inspected(content, *overrides):
        path, page = tmp_path / "text.txt", tmp_path / "pages" / "page.html"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        arguments = ["data=text", f"data.path={path}", f"page={page}", *overrides]
        sections = run(composed("inspect", *arguments))
        return {section.title: section for section in sections}, page.read_text()

    return inspected


def numbered(start, stop):
    return "".join(f"line {i:04} says {i * i}\n" for i in range(start, stop))


def test_a_text_is_taken_apart(inspected):
    text = numbered(0, 400) + LICENCE + numbered(400, 800) + LICENCE + numbered(1, 90)
    sections, _ = inspected(text.replace("line 0007", "line\u00a00007"))
    size = dict(sections["Size"].rows)
    assert size["lines"] == "891"
    assert size["bytes"] == f"{len(text) + 2:,} as UTF-8"
    assert sections["Characters"].rows[0][1:3] == ("SPACE", f"{text.count(' ') - 2:,}")
    assert "U+00A0 NO-BREAK SPACE" in sections["Characters"].note
    (odd,) = sections["Odd characters"].rows
    assert odd == ("unusual space", "2", "U+00A0 NO-BREAK SPACE")
    assert sections["Line ends in the files"].rows == [("\\n", "891")]
    assert not sections["Line ends in the files"].note
    assert sections["Lengths in characters"].rows[0][:3] == ("lines", "891", "16")
    twice = sections["Longest repeated passages"].rows[0]
    assert twice[2] == f"{text.index('line 0001') - 1:,}, {text.rindex('line 0001') - 1:,}"
    (overlap,) = sections["Found word for word in the training split"].rows
    assert overlap[0] == "val"
    assert float(overlap[2].rstrip("%")) > 90
    assert overlap[-1] == "0"


def test_mixed_line_ends_are_told(inspected):
    sections, _ = inspected("one line\r\n" * 30 + "another\n" * 20)
    ends = sections["Line ends in the files"]
    assert sorted(ends.rows) == [("\\n", "20"), ("\\r\\n", "30")]
    assert ends.note == r"mixed; all are read as \n"


def test_lines_of_validation_are_looked_for_whole(inspected):
    seen, new = numbered(1000, 1045), numbered(5000, 5005)
    sections, _ = inspected(numbered(1000, 1450) + seen + new)  # the last tenth: 50 lines
    (overlap,) = sections["Found word for word in the training split"].rows
    assert overlap[-2] == "89.80%"  # 44 of 49: the split begins within a line


def test_the_page_needs_nothing_beside_it_and_shows_a_text_as_text(inspected):
    attack = "<script>alert(1)</script><img src=x onerror=alert(2)>&amp; $x$\n"
    sections, page = inspected(attack * 30 + numbered(0, 300))
    tags = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    parser.feed(page)
    assert not {"script", "img", "link", "iframe"} & {tag for tag, _ in tags}
    drawing = page[page.index("<svg") : page.index("</svg>")]
    assert "Lengths of lines" in drawing
    outside = [a for _, a in tags if re.match(r"https?:|//", a.get("href", a.get("src", "")))]
    assert outside == []
    assert "&lt;script&gt;alert(1)" in page
    assert all(f"<h2>{title}</h2>" in page for title in sections)


def test_bytes_are_inspected_as_bytes(inspected):
    sections, _ = inspected(bytes(range(255)) * 40, "data.unit=byte", "data.test_fraction=0.2")
    assert dict(sections["Size"].rows)["bytes"] == "10,200, 255 distinct"
    assert "Odd characters" not in sections
    assert sections["Characters"].rows[0][:2] == ("0x00", "byte 0x00")
    assert sections["Characters"].rows[0xE9][:2] == ("0xE9", "byte 0xE9")  # and no letter
    rows = sections["Found word for word in the training split"].rows
    assert [row[0] for row in rows] == ["val", "test"]
    assert all(row[1:5] == ("100.00%",) * 4 for row in rows)


def test_a_boundary_that_two_splits_share_is_counted_once(inspected):
    sections, _ = inspected("abcd\n" * 10, "data.document=line", "data.test_fraction=0.2")
    assert dict(sections["Size"].rows)["bytes"] == "51 as UTF-8"
    counts = {row[1]: row[2] for row in sections["Characters"].rows}
    assert counts["LINE FEED"] == "11"  # before and behind each document


@pytest.mark.parametrize("content", ["ab", "a\n", "\n\n\na", "a" * 300 + "b"])
def test_any_text_that_is_long_enough_to_have_characters_is_inspected(inspected, content):
    sections, page = inspected(content)
    assert dict(sections["Size"].rows)["characters"] == f"{len(content)}, 2 distinct"
    assert page.endswith("</html>\n")


def test_a_page_that_cannot_be_written_is_refused(inspected, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"page=.*file/page.html: cannot be written"):
        inspected(numbered(0, 300), f"page={tmp_path}/file/page.html")


@pytest.mark.parametrize(("page", "reason"), [(".", "Is a directory"), ("/", "it names no file")])
def test_a_page_without_a_name_is_refused(inspected, page, reason):
    with pytest.raises(UserError, match=rf"page={page}: cannot be written \({reason}\)"):
        inspected(numbered(0, 300), f"page={page}")


def test_a_key_of_data_that_is_none_is_refused(inspected):
    words = r"^data\.normalise: there is no such key; did you mean data\.normalize\?$"
    with pytest.raises(UserError, match=words):
        inspected(numbered(0, 300), "+data.normalise=NFC")


def test_a_share_of_no_windows_is_not_shown(inspected):
    sections, _ = inspected(numbered(0, 40) * 2, "data.val_fraction=0.1")
    overlap = sections["Found word for word in the training split"]
    row = dict(zip(overlap.columns, *overlap.rows, strict=True))
    assert (row["# 100"], row["# 200"]) == ("100.00%", "")


def test_without_a_page_the_terminal_is_all(text_file, tmp_path, capsys):
    sections = run(composed("inspect", "data=text", f"data.path={text_file}", "page=null"))
    printed = " ".join(capsys.readouterr().out.split())
    assert sections[-1].note.split("\n")[0] in printed
    for section in sections:
        assert section.title in printed
        for row in section.rows[: section.most]:
            assert " ".join(" ".join(row).split()) in printed
    assert "Odd characters none" in printed
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("name", ["inspect", "baselines"])
def test_counting_needs_no_torch(text_file, tmp_path, name):
    check = (
        "import runpy, sys\n"
        f"runpy.run_path({str(ROOT / 'scripts' / name)!r} + '.py', run_name='__main__')\n"
        "print([m for m in ('torch', 'lightning') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", check, "data=text", f"data.path={text_file}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines()[-1] == "[]"
    assert (tmp_path / "outputs/inspect/text.html").exists() == (name == "inspect")


def test_beside_the_scripts_inspect_is_still_the_standard_librarys():
    """Python puts the script's directory first on sys.path, in spawned processes too."""
    code = (
        "import inspect, multiprocessing, sys\n"
        "assert sys.path[0] == ''\n"
        "assert inspect.__file__ == inspect.__spec__.origin != 'inspect.py'\n"
        "assert sys.modules['inspect'] is inspect\n"
        "with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "    print(inspect.signature(inspect.getdoc), pool.apply(inspect.isbuiltin, (len,)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "scripts"
    )
    assert result.stdout == "(object) True\n", result.stderr
    train = subprocess.run(
        [sys.executable, "train.py", "--cfg", "job"],
        capture_output=True,
        text=True,
        cwd=ROOT / "scripts",
        env=os.environ | {"PYTHONSAFEPATH": ""},
    )
    assert "n_layer" in train.stdout, train.stderr


@pytest.mark.parametrize("unit", ["character", "byte"])
@pytest.mark.parametrize("document", ["line", "file"])
def test_a_text_of_documents_is_inspected_with_its_own_splits(tmp_path, unit, document):
    for i in range(20):
        (tmp_path / f"{i:02}.txt").write_text(f"a line of file {i}\nand another é\n" * 5)
    text = Text(path=str(tmp_path), document=document, unit=unit)
    found = inspect(text, text.open())
    assert len(found.lines) == 200
    assert list(describe(text, found))


@pytest.mark.parametrize("unit", ["character", "byte"])
@pytest.mark.parametrize("end", ["", "\n"])
def test_a_files_end_ends_a_line(tmp_path, unit, end):
    """The files share three lines, including the first and the last."""
    shared = [f"the same {n} line in each file" for n in ("first", "second", "last")]
    for i in range(20):
        lines = [shared[0], "", f"a line of file {i:02} alone", *shared[1:]]
        (tmp_path / f"{i:02}.txt").write_text("\n".join(lines) + end)
    text = Text(path=str(tmp_path), document="file", unit=unit)
    found = inspect(text, text.open())
    assert found.lines.tolist() == [len(line) for line in lines] * 20
    assert found.copied["lines"] == {"val": 0.75}


@pytest.mark.parametrize("document", ["line", "file"])
def test_words_of_several_scripts_are_found_among_documents(tmp_path, document):
    for i in range(20):
        (tmp_path / f"{i:02}.txt").write_text("the p\u0430ssword\n\u044f, and \u0430n end\n")
    text = Text(path=str(tmp_path), document=document)
    sections = {section.title: section for section in describe(text, inspect(text, text.open()))}
    rows = sections["Words of several scripts"].rows
    assert [(word, count) for word, count, _ in rows] == [
        ("p\u0430ssword", "20"),
        ("\u0430n", "20"),
    ]


def test_a_mixture_is_inspected_with_the_splits_of_its_texts(inspected, tmp_path):
    texts = [numbered(start, start + 60)[:1005] for start in (1000, 5000)]
    for name, text in zip("ab", texts, strict=True):
        (tmp_path / name).write_text(text)
    mixture = f"data.mixture=[{{path:{tmp_path}/a}},{{path:{tmp_path}/b,weight:3}}]"
    sections, page = inspected("", "data.path=null", mixture)
    size = dict(sections["Size"].rows)
    assert size["text"] == f"{tmp_path}/a + {tmp_path}/b"
    assert size["characters"].startswith("2,010, ")
    assert (size["train"], size["val"]) == ("1,808 characters", "202 characters")  # 904 of each
    assert "Found word for word in the training split" in page


@pytest.mark.parametrize("document", ["line", "file"])
def test_a_mixture_of_documents_is_inspected(tmp_path, document):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(24):
            (tmp_path / name / f"{i:02}.txt").write_text(f"{name} says {i}\n")
    text = Text(mixture=[{"path": str(tmp_path / name)} for name in "ab"], document=document)
    found = inspect(text, text.open())
    assert len(found.documents) == 48
    start, stop = found.bounds["val"]
    val = found.store.vocabulary.decode(found.store.tokens[start:stop]).split("\n")
    assert list(filter(None, val)) == ["a says 22", "a says 23", "b says 22", "b says 23"]
    assert found.copied["documents"] == {"val": 0.0}
    assert list(describe(text, found))


def test_documents_of_validation_are_looked_for_whole(inspected):
    names = [f"name{i:03}" for i in (*range(90), 7, 8, 9, 10, *range(500, 506))]
    sections, _ = inspected("\n".join(names) + "\n", "data.document=line")
    (overlap,) = sections["Found word for word in the training split"].rows
    assert overlap[-2] == "40.00%"
    lengths = {row[0]: row[1:4] for row in sections["Lengths in characters"].rows}
    assert lengths["documents"] == ("100", "7", "7")
