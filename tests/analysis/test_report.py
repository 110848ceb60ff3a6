"""The report of a run: its measurements, its page in a browser, and how it copes without data."""

import html
import json
import math
import os
import re
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from conftest import ROOT, SMALL, composed, summary
from litchar import signals
from litchar.analysis import probe, report
from litchar.analysis.comparison import compare
from litchar.analysis.copying import LENGTHS, find_copied, longest_copied
from litchar.analysis.evaluate import exact_loss, splits_of
from litchar.analysis.run_report import (
    _again,
    _figures,
    _sentences,
    _tiles,
    changed_settings,
    run_report,
)
from litchar.analysis.runs import REPORT, Run
from litchar.analysis.statistics import COSTS, At
from litchar.analysis.surprise import most_surprising, surprise
from litchar.analysis.surprise_sections import PASSAGE
from litchar.checkpoints import Checkpoint
from litchar.errors import UserError
from litchar.losses import size_table
from litchar.settings import differences
from litchar.text.vocabulary import printable

ATTACK = """<script>document.title='run'</script><img src=x onerror="document.title='x'">&lt;"""
LINES = (
    ATTACK,
    "لغة العرب تكتب من اليمين",
    "文字一つずつの模型 と 言葉",
    "odd\u200bly \u202ereversed \x1b[31mred\ttab",
)


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory):
    """A run, with its report, on a text full of code injections and in several scripts."""
    from litchar.training.run import run

    place = tmp_path_factory.mktemp("hostile")
    text = place / "<text>.txt"
    draw = np.random.default_rng(0)
    text.write_text(
        "".join(f"{LINES[i]} {draw.integers(100)}\n" for i in draw.integers(len(LINES), size=800))
    )
    config = composed(
        "train",
        "name=test",
        f"data.path='{text}'",
        *SMALL,
        "data.block_size=32",
        "trainer.max_steps=60",
        "trainer.val_check_interval=15",
    )
    run_dir = place / "outputs" / "runs" / "hostile"
    (run_dir / ".hydra").mkdir(parents=True)
    OmegaConf.save(config, run_dir / ".hydra" / "config.yaml")  # as Hydra does
    signals.reset()
    run(config, run_dir)
    return run_dir


@pytest.fixture
def opened(page, hostile_run):
    """The report of `hostile_run` in a browser that must request nothing else."""
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.context.set_offline(True)
    page.goto((hostile_run / REPORT).as_uri())
    yield page
    assert asked == [(hostile_run / REPORT).as_uri()]
    assert complaints == []


def curve(page, name):
    """Return the number of points of a curve on the page."""
    d = page.locator(f"#curve-{name} path").first.get_attribute("d")
    return len(re.findall(r"[ML]", d))


def test_a_report_shows_a_run_in_a_browser(opened, hostile_run):
    figures, run = summary(hostile_run), Run.load(hostile_run)
    assert opened.title() == "hostile"  # and not what the text would have made of it
    assert f"{figures['best_val_bpc']:.3f}" == opened.locator(".tile b").first.inner_text()
    assert curve(opened, "val-loss") == len(run.history) == 4
    assert curve(opened, "train-loss") == len(run.rows) == 13
    assert curve(opened, "lr") == 13
    shown = opened.locator("body").inner_text()
    assert f"{figures['val_loss']:.4f} nats per character" in shown
    assert run.samples[-1][0] == 60
    assert all(f"step {step}" in shown for step, _ in run.samples)
    assert opened.locator(".sample pre").last.text_content() == printable(run.samples[-1][1])
    assert shown.count("layer 0, head 1") == shown.count("layer 1, head 0") == 1
    assert "data.block_size\t32\tnull" in shown


def test_a_report_colours_each_character_of_a_passage(opened, hostile_run):
    checkpoint = Checkpoint.load(hostile_run / "checkpoints" / "best.ckpt")
    text = checkpoint.vocabulary.decode(splits_of(checkpoint)["val"].numpy())
    spans = opened.locator("#surprise > span")
    start = 1 + text.index("\n", 255)
    assert spans.count() == len(text[start : start + PASSAGE])
    shown = opened.locator("#surprise").inner_text()
    assert ATTACK in shown
    assert "\\u200bly" not in shown  # as the terminal shows it
    assert "odd\\x200bly \\x202ereversed \\x1b[31mred⇥" in shown
    assert "العرب" in shown
    assert "文字一つずつの模型" in shown
    spans.nth(40).hover()
    told = spans.nth(40).evaluate("element => getComputedStyle(element, '::after').content")
    assert re.match(r'"\d+\.\d\d bits', told)


def test_a_report_is_readable_in_the_dark_and_on_a_phone(opened, tmp_path):
    def colours():
        style = "const s = getComputedStyle(document.body); [s.color, s.backgroundColor]"
        line = opened.locator("#curve-val-loss path").first
        return (*opened.evaluate(style), line.evaluate("line => getComputedStyle(line).stroke"))

    font = "e => getComputedStyle(e).fontFamily"
    texts = opened.locator(".top svg g text").evaluate_all(f"all => all.map({font})")
    assert set(texts) == {opened.locator("body").evaluate(font)}  # not matplotlib's
    light = colours()
    opened.screenshot(path=tmp_path / "light.png", full_page=True)
    opened.emulate_media(color_scheme="dark")
    dark = colours()
    opened.screenshot(path=tmp_path / "dark.png", full_page=True)
    assert all(a != b for a, b in zip(light, dark, strict=True))
    assert light[1] == "rgb(255, 255, 255)"
    opened.set_viewport_size({"width": 390, "height": 844})
    opened.screenshot(path=tmp_path / "phone.png", full_page=True)
    assert opened.evaluate("document.documentElement.scrollWidth") == 390
    legend = opened.locator(".top svg [id^=legend] > g")
    places = [legend.nth(i).bounding_box() for i in range(legend.count())]
    assert len(places) == 6  # three lines, each with its name behind it
    assert all(left["x"] + left["width"] < right["x"] for left, right in pairwise(places))


def test_the_surprises_of_a_text_add_up_to_its_exact_loss(hostile_run):
    checkpoint = Checkpoint.load(hostile_run / "checkpoints" / "best.ckpt")
    model, device = checkpoint.build_model(), torch.device("cpu")
    tokens = splits_of(checkpoint)["val"][:1001]
    for stride in (None, 24):
        found = surprise(model, tokens, 8, device, stride)
        exact = exact_loss(model, tokens, 8, device, size_table(checkpoint.vocabulary), stride)
        assert len(found.nats) == 1000
        assert found.nats.sum() == pytest.approx(float(exact[0]), rel=1e-6)
    with torch.inference_mode():
        logits = model(tokens[None, :32].long())[0]
    probs = logits.softmax(-1)
    assert found.nats[:32] == pytest.approx(-np.log(probs[range(32), tokens[1:33].long()]), 1e-4)
    assert found.guesses[:32].tolist() == probs.argmax(-1).tolist()
    assert found.confidence[:32] == pytest.approx(probs.amax(-1).numpy(), 1e-4)


def test_the_most_surprising_passages_are_those_with_the_highest_sums():
    nats = np.array([0, 9, 0, 0, 5, 5, 0, 0, 0, 1.0])
    assert most_surprising(nats, 2, 3) == [4, 0, 8]
    assert most_surprising(nats, 20, 3) == [0]


@pytest.mark.parametrize("seed", range(5))
def test_copied_sequences_are_those_that_stand_in_the_training_text(seed):
    draw = np.random.default_rng(seed)
    train = draw.integers(0, 3, 70_000).astype(np.uint8)  # more than one piece
    texts = [draw.integers(0, 3, 100).astype(np.uint8) for _ in range(3)]
    place = 65_500 if seed else 10
    texts[1][20:90] = train[place : place + 70]
    if seed == 2:
        texts[2] = texts[2][:6]
    known, copied = bytes(train), find_copied(texts, train, 3)
    for n in LENGTHS:
        windows = [bytes(t[i : i + n]) for t in texts for i in range(len(t) - n + 1)]
        assert copied.shares[n] == np.mean([window in known for window in windows])
    assert (copied.reach[1][20:90] == 64).all()
    found = longest_copied(texts, train, 3)
    at = found.text, found.start, found.length
    assert at >= (1, 0, 70)
    assert at[2] < 90
    passage = bytes(texts[found.text][found.start : found.start + found.length])
    assert bytes(train[found.place : found.place + found.length]) == passage
    assert all(
        bytes(t[i : i + found.length + 1]) not in known
        for t in texts
        for i in range(len(t) - found.length)
    )


def again(run_dir, *lines, environment):
    """Return the report's commands to repeat a run that was started and resumed with `lines`."""
    for number, (typed, sources) in enumerate(lines):
        place = run_dir / ".hydra" / (f"resumed-{number}" if number else "")
        place.mkdir(parents=True)
        (place / "overrides.yaml").write_text(json.dumps(typed))
        hydra = {"hydra": {"runtime": {"config_sources": sources}}}
        (place / "hydra.yaml").write_text(json.dumps(hydra))
    (run_dir / "summary.json").write_text("{}")
    (run_dir / "environment.json").write_text(json.dumps(environment))
    page = html.unescape(_again(Run.load(run_dir)))
    return page.partition("<pre")[2].partition("</pre>")[0].split("\n")


OURS = {"path": str(ROOT / "conf"), "schema": "file", "provider": "main"}
THEIRS = {"path": "/my conf", "schema": "file", "provider": "command-line"}


def test_a_run_is_done_again_where_it_took_place(tmp_path):
    typed = ["data.path=a b.txt", "sweep.name=s", "run_dir=x", "hydra.job.name=y", "seed=1"]
    environment = {"cwd": str(ROOT), "revision": "abc"}
    lines = again(tmp_path / "here", (typed, [OURS]), environment=environment)
    assert lines[-2:] == ["git checkout abc", "python scripts/train.py 'data.path=a b.txt' seed=1"]
    changed = tmp_path / "a change"
    changed.mkdir()
    (changed / "code.diff").touch()
    lines = again(changed, (["seed=1"], [OURS]), environment=environment)
    assert lines[-3:-1] == ["git checkout abc", f"git apply '{changed}/code.diff'"]
    typed = (["experiment=e", "trainer.max_steps=5", "+callbacks.a=b"], [OURS, THEIRS])
    more = (["resume=x", "trainer.max_steps=9", "callbacks.a=c"], [OURS])
    environment = {"cwd": "/else where", "revision": "abc"}
    lines = again(tmp_path / "there", typed, more, environment=environment)
    assert lines[-3:] == [
        "cd '/else where'",
        f"git -C {ROOT} checkout abc",
        f"python {ROOT}/scripts/train.py --config-dir '/my conf' experiment=e "
        "trainer.max_steps=9 callbacks.a=c",
    ]


def test_nothing_is_copied_from_a_text_of_other_characters():
    train, text = np.zeros(100, np.uint8), np.ones(40, np.uint8)
    assert set(find_copied([text], train, 2).shares.values()) == {0.0}
    assert longest_copied([text], train, 2) is None
    assert find_copied([text[:3]], train, 2).shares == {}


def written(run_dir) -> str:
    return report.write_report(run_dir).read_text()


def test_a_model_of_bytes_and_documents_without_attention_has_a_report(train, text_file):
    names = ("model=gru", "model.n_layer=1", "model.n_embd=8", "data.unit=byte")
    sizes = ("data.block_size=16", "data.batch_size=8", "trainer.max_steps=5")
    path = f"data.path={text_file}"
    run_dir = train(path, *names, *sizes, "data.document=line", "report=true", only=True)
    page = (run_dir / REPORT).read_text()
    assert "This model has no attention" in page
    assert "nats per byte" in page
    assert page.count('data-t="') > PASSAGE * 0.5


@pytest.fixture
def mixed_run(train, tmp_path):
    """A run on a 2:1 mixture of lower-case and upper-case texts."""
    for i, letters in enumerate(("abcdefgh", "ABCDEFGH")):
        drawn = np.random.default_rng(i).choice(list(letters), 20_000)
        (tmp_path / f"{i}.txt").write_text("".join(drawn))
    mixture = f"data.mixture=[{{path:{tmp_path}/0.txt,weight:2}},{{path:{tmp_path}/1.txt}}]"
    return train("data.path=null", mixture, "report=true")


def test_a_mixtures_loss_by_weight_is_not_compared_with_counts_of_all(capsys, mixed_run):
    page = (mixed_run / REPORT).read_text()
    history = Run.load(mixed_run).history
    best = min(history, key=lambda row: row["val/loss"])["val/loss_all"] / math.log(2)
    verdict = page[page.index('class="verdict"') : page.index("<h2>")]
    assert "counting" not in verdict
    assert f"{best:.3f} bits per character" in page
    assert "in all training texts together; modified Kneser-Ney" in page
    said = " ".join(capsys.readouterr().out.split())
    assert f"bits per character, over all texts together; this model {best:.3f}" in said


def test_each_text_of_a_mixture_is_read_by_its_weight(mixed_run, monkeypatch):
    monkeypatch.setattr(probe, "SCORED", 300)
    path = mixed_run / "checkpoints" / "best.ckpt"
    found = probe.probe(path, None, torch.device("cpu"))
    text = found.vocabulary.decode(found.surprise.ids)
    halves = [(mixed_run.parents[2] / f"{i}.txt").read_text()[18_000:] for i in range(2)]
    assert text == halves[0][:200] + halves[1][:100]
    windows = [text[i : i + 8] for i in (*range(193), *range(200, 293))]  # and none of both
    trained = [(mixed_run.parents[2] / f"{i}.txt").read_text()[:18_000] for i in range(2)]
    shares = np.mean([any(window in half for half in trained) for window in windows])
    assert found.held_out.copied.shares[8] == shares


def test_no_password_is_in_a_report(hostile_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(hostile_run, run_dir, ignore=shutil.ignore_patterns("checkpoints"))
    config = OmegaConf.load(run_dir / "config.yaml")
    config.data.path = "https://me:secret@host/a.txt"
    OmegaConf.save(config, run_dir / "config.yaml")
    OmegaConf.save(config, run_dir / ".hydra" / "config.yaml")
    (run_dir / ".hydra/overrides.yaml").write_text("- data.path=https://me:secret@host/b.txt\n")
    page = written(run_dir)
    assert "https://***@host/a.txt" in page
    assert "https://***@host/b.txt" in page
    assert "secret" not in page


def test_a_report_says_what_it_cannot_show(hostile_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(hostile_run, run_dir, ignore=shutil.ignore_patterns(REPORT))
    config = OmegaConf.load(run_dir / "config.yaml")
    text = tmp_path / "other.txt"
    checkpoint = torch.load(run_dir / "checkpoints" / "best.ckpt", weights_only=True)
    checkpoint["litchar"]["config"]["data"]["path"] = str(text)
    torch.save(checkpoint, run_dir / "checkpoints" / "best.ckpt")
    page = written(run_dir)
    assert "no such file or directory" in page
    assert "layer 1, head 1" in page
    text.write_text("another text\n" * 400)
    assert "has changed since" in written(run_dir)
    (run_dir / "checkpoints" / "best.ckpt").write_bytes(b"PK")
    assert "not a complete checkpoint" in written(run_dir)
    shutil.rmtree(run_dir / "checkpoints")
    assert "This run has no checkpoint" in written(run_dir)
    for name in ("metrics.csv", "samples.txt", "config.yaml", "environment.json"):
        (run_dir / name).unlink()
    (run_dir / "summary.json").write_text(json.dumps({"status": "running"}))
    page = written(run_dir)
    assert "still training, or was killed" in page
    assert config.data.path not in page


def test_a_report_shows_the_rest_of_what_must_not_be_read(hostile_run, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "/home/another/a.txt")

    run_dir = tmp_path / "run"
    shutil.copytree(hostile_run, run_dir, ignore=shutil.ignore_patterns(REPORT))
    monkeypatch.setattr("litchar.analysis.probe.splits_of", refuse)
    page = written(run_dir)
    assert "Permission denied: &#x27;/home/another/a.txt" in page
    assert "layer 1, head 1" in page
    monkeypatch.setattr("litchar.analysis.probe.Checkpoint.load", refuse)
    assert "Permission denied: &#x27;/home/another/a.txt" in written(run_dir)


def test_a_run_of_another_tool_has_a_report(tmp_path):
    foreign = {"status": "completed", "best_val_loss": "abc", "steps": "x", "parameters": None}
    (tmp_path / "summary.json").write_text(json.dumps(foreign | {"characters_seen": 5}))
    for config in ("- a", "data: 5\nmodel: x\nseed: y\n"):
        (tmp_path / "config.yaml").write_text(config)
        assert "abc" not in written(tmp_path)


def test_any_figures_may_be_missing(hostile_run, tmp_path):
    """As in a summary that an older version or another tool wrote."""
    whole = summary(hostile_run)
    (tmp_path / "metrics.csv").write_bytes((hostile_run / "metrics.csv").read_bytes())
    for name in whole:
        for left in ({name: whole[name]}, {k: v for k, v in whole.items() if k != name}):
            (tmp_path / "summary.json").write_text(json.dumps(left))
            run = Run.load(tmp_path)
            page = str([*_tiles(run, ()), *_figures(run, None), *_sentences(run, None, ())])
            for loss in ("best_val_loss", "val_loss", "train_loss"):
                assert loss not in left or f"{left[loss]:.4f} nats per character" in page
            for kind in COSTS:
                compare([tmp_path], At(kind, 1))


@pytest.mark.parametrize("damaged", ["[1]", "[" * 100_000])
def test_a_summary_that_is_none_has_no_status_in_words_of_python(tmp_path, damaged):
    (tmp_path / "summary.json").write_text(damaged)
    run = Run.load(tmp_path)
    assert "It ended as unknown." in run_report(run, None, "cpu")
    assert ("status", "unknown", "") in _figures(run, None)
    assert list(compare([tmp_path]).reasons.values()) == ["unknown at step 0"]


def test_a_run_without_a_step_has_no_speed(hostile_run, tmp_path):
    none = dict.fromkeys(("steps", "characters_seen", "train_seconds", "characters_per_second"), 0)
    (tmp_path / "summary.json").write_text(json.dumps(summary(hostile_run) | none))
    page = run_report(Run.load(tmp_path), None, "cpu")
    assert "per second" not in page
    assert "seen" not in page


@pytest.mark.parametrize("damaged", ["hydra: 5", "hydra: {runtime: {choices: [a]}}"])
def test_a_damaged_record_of_hydra_is_as_none(tmp_path, damaged):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "hydra.yaml").write_text(damaged)
    (tmp_path / "summary.json").write_text("{}")
    assert Run.load(tmp_path).choices == {}


def test_an_interrupted_run_says_so(hostile_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(hostile_run, run_dir, ignore=shutil.ignore_patterns("checkpoints"))
    changed = summary(run_dir) | {"status": "interrupted", "error": "signal 15"}
    (run_dir / "summary.json").write_text(json.dumps(changed))
    assert "It was interrupted (signal 15)" in written(run_dir)


def test_settings_other_than_the_defaults_come_first(tmp_path):
    config = composed("train", "model=bigram", "data.block_size=8", "seed=3")
    run_dir = tmp_path / "run"
    (run_dir / ".hydra").mkdir(parents=True)
    OmegaConf.save(config, run_dir / ".hydra" / "config.yaml")
    (run_dir / "summary.json").write_text("{}")
    changed = changed_settings(Run.load(run_dir))
    assert sorted(changed) == [
        ("data.block_size", "8", "null"),
        ("model._target_", "litchar.models.Bigram", "litchar.models.Transformer"),
        ("seed", "3", "1337"),
    ]


def test_what_is_no_run_is_refused_with_one_line(tmp_path, capsys):
    for name, reason in (
        (str(tmp_path), "not a run's directory"),
        (str(tmp_path / "none"), "no such directory"),
        (__file__, "is a file; name the run's directory"),
        ("latest", "there is no run"),
    ):
        with pytest.raises(SystemExit) as stopped:
            report.main([name])
        assert stopped.value.code == 2
        message = capsys.readouterr().err
        assert reason in message
        assert len(message.splitlines()) == 1


def test_the_latest_run_may_be_a_job_of_a_sweep(tmp_path):
    for age, place in enumerate(("sweeps/one/seed=1", "runs/a", "sweeps/one/seed=2")):
        run_dir = tmp_path / "outputs" / place
        run_dir.mkdir(parents=True)
        (run_dir / "summary.json").write_text("{}")
        os.utime(run_dir / "summary.json", (1000 - age, 1000 - age))
    assert report.find("latest") == tmp_path / "outputs/sweeps/one/seed=1"


def test_a_device_that_is_not_there_is_refused_and_the_report_stays(hostile_run, capsys):
    before = (hostile_run / REPORT).read_bytes()
    with pytest.raises(SystemExit) as stopped:
        report.main([str(hostile_run), "--device", "nonsense"])
    assert stopped.value.code == 2
    assert "device=nonsense: not available on this machine" in capsys.readouterr().err
    assert (hostile_run / REPORT).read_bytes() == before


def test_a_report_is_written_whole_or_not_at_all(hostile_run, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    shutil.copytree(hostile_run, run_dir, ignore=shutil.ignore_patterns("checkpoints"))
    before = (run_dir / REPORT).read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("litchar.atomic.os.replace", full)
    with pytest.raises(UserError, match=r"report.html: cannot be written \(No space left"):
        report.write_report(run_dir)
    assert (run_dir / REPORT).read_bytes() == before
    assert not list(run_dir.glob(".draft*"))


@pytest.mark.parametrize("limit", ["limit_val_batches=2", "overfit_batches=1"])
def test_losses_on_a_part_of_the_split_are_not_given_as_those_on_unseen_text(train, capsys, limit):
    run_dir = train(f"trainer.{limit}", "data.val_batch_size=4")
    part = "only on a part of the validation text"
    assert f"{part} (trainer.{limit})" in " ".join(capsys.readouterr().out.split())
    page = run_report(Run.load(run_dir), None, "cpu")
    assert f"It was validated {part} (trainer.{limit})." in page
    assert "never saw" not in page


def test_batches_to_learn_by_heart_are_not_called_overfitting(train, capsys):
    run_dir = train("debug=overfit", "trainer.max_steps=40", "trainer.val_check_interval=20")
    said = "of no meaning where 1 batch is learned by heart: look at the training loss"
    assert f"the curve {said}" in " ".join(capsys.readouterr().out.split())
    assert f"The curve: {said}." in run_report(Run.load(run_dir), None, "cpu")


def test_a_run_ends_well_without_its_report(train, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("no ink")

    monkeypatch.setattr(report, "write_report", broken)
    run_dir = train("trainer.max_steps=2", "report=true")
    assert summary(run_dir)["status"] == "completed"
    said = f"No report (no ink); to write it later: python scripts/report.py {run_dir}"
    assert said in capsys.readouterr().out


def test_a_resumed_run_may_have_a_report_or_not():
    assert differences({}, {"report": False}) == []


def test_long_curves_are_drawn_as_means():
    from litchar.analysis.curves import MOST_POINTS, points

    rows = [{"step": float(i), "x": float(i % 2)} for i in range(10 * MOST_POINTS)]
    rows.append({"step": 1e9, "x": math.nan})
    steps, values = points(rows, "x")
    assert len(steps) == MOST_POINTS
    assert values == pytest.approx(0.5)
    assert points([], "x")[0].shape == (0,)
