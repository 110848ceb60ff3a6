"""Comparing runs: statistics match textbook formulas; incomparable runs stay separate."""

import csv
import json
import math
import os
import re
from math import nan

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from omegaconf import OmegaConf

from litchar.analysis.compare import main, report_on
from litchar.analysis.comparison import compare
from litchar.analysis.comparison_plot import panels_of, write_plot
from litchar.analysis.comparison_tables import in_words
from litchar.analysis.differences import shown
from litchar.analysis.page import write_page
from litchar.analysis.runs import Run
from litchar.analysis.statistics import At, cost, two_sided_p
from litchar.analysis.sweep_report import _again, _sentences
from litchar.terminal import Terminal


def test_no_password_is_in_a_comparison(tmp_path):
    url = "https://me:secret@host/a.txt"
    assert shown(url) == "https://***@host/a.txt"
    overrides = {"hydra": {"overrides": {"task": [f"data.path={url}"], "hydra": []}}}
    OmegaConf.save(OmegaConf.create(overrides), tmp_path / "multirun.yaml")
    assert "data.path=https://***@host/a.txt" in _again(tmp_path)


@pytest.fixture
def made(tmp_path):
    """Write the record of a run into a sweep directory, as training would."""

    def made(
        name,
        loss=2.0,
        settings=None,
        seed=1,
        status="completed",
        curve=None,
        text="f1",
        parameters=1000,
        sweep="sweep",
        **figures,
    ):
        run = tmp_path / sweep / name
        (run / ".hydra").mkdir(parents=True)
        curve = curve or [(100 * k, loss + 1 / k - 1 / 10) for k in range(1, 11)]
        settings = {"seed": seed, "data.path": f"/{text}.txt", **(settings or {})}
        config = OmegaConf.create()
        for key, value in settings.items():
            OmegaConf.update(config, key, value)
        OmegaConf.save(config, run / "config.yaml")
        OmegaConf.save(config, run / ".hydra/config.yaml")
        typed = [f"{key}={value}" for key, value in settings.items()]
        OmegaConf.save(OmegaConf.create(typed), run / ".hydra/overrides.yaml")
        steps = curve[-1][0]
        summary = {
            "status": status,
            "error": None,
            "seed": seed,
            "unit": "character",
            "steps": steps,
            "best_val_loss": min(loss for _, loss in curve),
            "characters_seen": 64 * steps,
            "train_seconds": steps / 50,
            "characters_per_second": 3200.0,
            "parameters": parameters,
            "flops_per_token": 6 * parameters,
            **figures,
        }
        (run / "summary.json").write_text(json.dumps(summary))
        environment = {"fingerprint": text, "text": f"/{text}.txt", "revision": "0123456789"}
        (run / "environment.json").write_text(json.dumps(environment))
        with open(run / "metrics.csv", "w", newline="") as file:
            rows = csv.DictWriter(file, ["step", "train/loss", "val/loss", "speed/train_seconds"])
            rows.writeheader()
            for step, value in curve:
                seconds = {"speed/train_seconds": step / 50}
                rows.writerow({"step": step, "train/loss": value, "val/loss": value, **seconds})
        return run

    return made


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_seeds_are_grouped_and_differences_tested(made, tmp_path):
    losses = {
        2: [2.00, 2.02, 2.01],
        4: [1.50, 1.52, 1.54],
        6: [1.51, 1.55, 1.56],
    }
    for layers, values in losses.items():
        for seed, loss in enumerate(values):
            made(f"l{layers}s{seed}", loss, {"model.n_layer": layers}, seed)
    (table,) = compare([tmp_path / "sweep"]).tables
    assert table.keys == ["model.n_layer"]
    assert [row.settings["model.n_layer"] for row in table.rows] == [4, 6, 2]
    best = table.rows[0]
    assert (best.n, best.mean) == (3, pytest.approx(1.52))
    assert best.sd == pytest.approx(0.02)
    assert best.interval == pytest.approx((1.52 - 4.302653 * 0.02 / 3**0.5, 1.5697), abs=1e-4)
    # Welch's test by its formula, and Holm's correction: the smaller p is doubled.
    a, b = np.array(losses[4]), np.array(losses[2])
    va, vb = a.var(ddof=1) / 3, b.var(ddof=1) / 3
    degrees = (va + vb) ** 2 / (va**2 / 2 + vb**2 / 2)
    t = (b.mean() - a.mean()) / math.sqrt(va + vb)
    assert table.rows[2].p == pytest.approx(2 * two_sided_p(t, degrees))
    assert table.rows[2].p < 0.001
    assert 0.05 < table.rows[1].p < 1
    assert math.isnan(best.p)


def test_a_single_seed_says_nothing_of_noise(made, tmp_path, capsys):
    made("a", 2.0, {"optimizer.lr": 0.001})
    made("b", 1.9, {"optimizer.lr": 0.01})
    report_on([tmp_path / "sweep"], tmp_path / "sweep", None, Terminal())
    first, second = read(tmp_path / "sweep/sweep.csv")
    assert (first["optimizer.lr"], first["loss"], first["n"]) == ("0.01", "1.9", "1")
    assert (first["sd"], first["low"], second["p"], second["differs"]) == ("", "", "", "")
    assert "Welch" not in capsys.readouterr().out
    assert (tmp_path / "sweep/sweep.png").read_bytes()[:4] == b"\x89PNG"


def test_runs_that_stopped_at_a_target_are_not_told_apart_by_their_losses(made, tmp_path):
    made("a", 1.99, seconds_to_target=20.0)
    made("b", 1.97, seed=2, seconds_to_target=10.0)
    made("c", 2.03, seed=3)
    (note,) = compare([tmp_path / "sweep"]).notes
    assert "2 of 3 runs stopped at their target_val_loss" in note
    assert not compare([tmp_path / "sweep"], At("steps", 300)).notes


def test_losses_that_no_seed_changes_show_no_noise_to_measure_a_difference_by(made, tmp_path):
    for layers, loss in ((1, 1.9), (2, 1.9), (3, 2.1)):
        for seed in (1, 2, 3):  # of three times 1.9 the standard deviation is rounded to 3e-16
            made(f"l{layers}s{seed}", loss, {"model.n_layer": layers}, seed)
    comparison = compare([tmp_path / "sweep"])
    assert [row.p for row in comparison.tables[0].rows[1:]] == [
        1.0,
        pytest.approx(nan, nan_ok=True),
    ]
    assert "nothing in those runs uses the seed" in comparison.notes[0]
    apart = compare([path for path in (tmp_path / "sweep").iterdir() if path.name[:2] != "l2"])
    assert "may be chance: no loss here varies." in " ".join(_sentences(apart.tables[0], apart))


def test_a_setting_that_diverges_on_some_seeds_is_not_the_best_for_its_luckier_ones(
    made, tmp_path, capsys
):
    for seed in range(1, 6):
        made(f"low{seed}", 2.1 + seed / 1000, {"lr": 0.001}, seed)
        status = "diverged" if seed > 2 else "completed"
        made(f"high{seed}", 2.0 + seed / 1000, {"lr": 0.01}, seed, status)
        made(f"none{seed}", 2.0, {"lr": 0.1}, seed, "diverged")
    made("half", 2.0, {"lr": 0.01}, 6, "interrupted")
    comparison = report_on([tmp_path / "sweep"], tmp_path / "sweep", None, Terminal())
    (table,) = comparison.tables
    assert [row.settings["lr"] for row in table.rows] == [0.001, 0.01]
    assert math.isnan(table.rows[1].p)
    printed = capsys.readouterr().out
    assert "2 (3 diverged, +1 not)" in printed
    assert "no run counts of: lr=0.1 (5 diverged)" in printed
    said = " ".join(_sentences(table, comparison))
    assert "lr=0.001 is best of 3" in said
    assert "Of the next, lr=0.01, 3 of 5 runs diverged; the others have a loss of 2.0015." in said
    assert [row["diverged"] for row in read(tmp_path / "sweep/sweep.csv")] == ["0", "3"]
    for low in (tmp_path / "sweep").glob("low[45]"):
        summary = json.loads((low / "summary.json").read_text())
        (low / "summary.json").write_text(json.dumps(summary | {"status": "diverged"}))
    comparison = compare([tmp_path / "sweep"])
    said = " ".join(_sentences(comparison.tables[0], comparison))
    assert "lr=0.01 is best of 3" in said
    assert ". But 3 of 5 runs diverged. Of the next, lr=0.001, 2 of 5 runs" in said


def test_runs_that_share_seeds_are_not_said_to_be_independent(made, tmp_path):
    def notes(sweep, pairs):
        for seed, windows in pairs:
            loss = 2 + seed / 100 + windows / 1000
            made(f"{seed}-{windows}", loss, {"data.seed": windows}, seed, sweep=sweep)
        return compare([tmp_path / sweep]).notes

    assert "not independent" in notes("crossed", [(1, 1), (1, 2), (2, 1), (2, 2)])[0]
    assert notes("apart", [(1, 1), (2, 2), (3, 3)]) == []
    assert notes("windows", [(1, 1), (1, 2), (1, 3)]) == []


def test_rows_that_saw_unequal_amounts_of_text_are_pointed_out(made, tmp_path):
    for size, seen in ((8, 2560), (64, 20_480), (65, 20_600)):
        made(f"{size}", 2.0, {"data.block_size": size}, characters_seen=seen)
    made("short", 2.1, {"data.block_size": 64}, seed=2, characters_seen=2000)
    (note,) = compare([tmp_path / "sweep"]).notes
    assert "the rows saw 2,560 to 20,600 characters" in note
    assert note.endswith("--at characters=2000")  # so that all runs can be read there
    alike = [tmp_path / "sweep" / name for name in ("64", "65")]
    assert compare(alike).notes == []
    assert compare([tmp_path / "sweep"], At("steps", 300)).notes == []


def test_runs_are_compared_at_equal_cost_by_interpolation(made, tmp_path):
    one = made("one", settings={"x": 1}, curve=[(100, 3.0), (200, 2.0)])
    made("two", settings={"x": 2}, curve=[(100, 2.8), (200, 2.4), (300, 1.0)])
    made("cut", settings={"x": 3}, curve=[(100, 3.5), (200, 2.5)], status="interrupted")
    made("short", settings={"x": 4}, curve=[(50, 3.5), (100, 2.5)])

    def losses(at):
        (table,) = compare([tmp_path / "sweep"], At.parse(at)).tables
        return {row.settings["x"]: row.mean for row in table.rows}

    at_150 = {1: pytest.approx(2.5), 2: pytest.approx(2.6), 3: pytest.approx(3.0)}
    assert losses("steps=150") == at_150
    assert losses("characters=9600") == at_150
    assert losses("seconds=3") == at_150
    assert losses(f"flops={6000 * 9600}") == at_150
    comparison = compare([tmp_path / "sweep"], At("steps", 150))
    assert "from steps=50 to 100" in comparison.reasons[tmp_path / "sweep/short"]
    assert "counted although unfinished: cut" in comparison.notes[0]
    (run,) = compare([one]).runs
    assert cost(run, "flops").tolist() == [100 * 64 * 6000, 200 * 64 * 6000]


def test_at_a_cost_the_other_costs_are_those_up_to_there(made, tmp_path, capsys):
    """For runs of three sizes that continued for longer, each for a different time."""
    for n, parameters in enumerate((1000, 4000, 16_000), 1):
        curve = [(100 * k, 4 / n / k) for k in range(1, 3 + n)]
        figures = {"best_val_bpc": 9.876, "total_seconds": 5.0}
        made(f"{n}", 0, {"x": n}, curve=curve, parameters=parameters, **figures)

    def table(at):
        return compare([tmp_path / "sweep"], At.parse(at)).tables[0]

    by_steps = table("steps=150")
    assert [row.figure("steps") for row in by_steps.rows] == [150] * 3
    assert [row.figure("train_seconds") for row in by_steps.rows] == [3.0] * 3
    flops = [6 * n * 150 * 64 for n in (16_000, 4000, 1000)]
    assert [row.figure("flops") for row in by_steps.rows] == pytest.approx(flops)
    assert by_steps.power_law.flops.tolist() == pytest.approx(sorted(flops))
    losses = [row.mean for row in by_steps.rows]
    slope = np.polyfit(np.log(flops), np.log(losses), 1)[0]
    assert by_steps.power_law.exponent == pytest.approx(-slope)
    assert math.isnan(by_steps.rows[0].figure("total_seconds"))  # known of whole runs alone

    capsys.readouterr()
    at_flops = At("flops", 6 * 16_000 * 64 * 100)
    short = [made(f"{n}00", 3, {"x": n}, curve=[(100 * n, 3.0), (20_000, 1.0)]) for n in (1, 2)]
    report_on(short, tmp_path / "sweep", at_flops, Terminal())
    said = capsys.readouterr().out
    assert [line.split()[-1] for line in said.splitlines() if " 1,000 " in line] == ["6.14e+08"] * 2
    assert "power law" not in said
    rows = read(tmp_path / "sweep/sweep.csv")
    assert [float(row["flops"]) for row in rows] == [at_flops.value] * 2


def test_nothing_is_fitted_to_sizes_at_equal_flops(made, tmp_path):
    for n in (1, 2, 4):
        steps = 8000 // n
        curve = [(steps // 2, 3.0), (steps, 2.0 + n / 10)]
        made(f"{n}", settings={"x": n}, curve=curve, parameters=1000 * n)
    for at in (None, At("flops", 6000 * 64 * 6000)):
        (table,) = compare([tmp_path / "sweep"], at).tables
        assert (len(table.rows), table.power_law) == (3, None)


def test_a_report_at_a_cost_says_so_and_shows_no_bits_of_whole_runs(made, tmp_path):
    made("a", settings={"x": 1}, curve=[(100, 3.0), (200, 2.0)], best_val_bpc=9.876)
    page = tmp_path / "sweep" / "report.html"
    for at, sentence in ((None, "a validation loss of 2.0000"), (At("steps", 150), "of 2.5000")):
        report_on([tmp_path / "sweep"], page.parent, at, Terminal(quiet=True))
        assert sentence in page.read_text()
        assert ("9.876" in page.read_text()) == (at is None)
        assert ("at steps=150" in page.read_text()) == (at is not None)


def test_unfinished_and_failed_runs_are_named_and_not_counted(made, tmp_path, capsys):
    made("done", 2.0, {"x": 1})
    made("half", 2.0, {"x": 1}, seed=2, status="running")
    made("broken", 2.0, {"x": 2}, status="failed", error="n_embd=9 is not\ndivisible")
    report_on([tmp_path / "sweep"], None, None, Terminal())
    printed = capsys.readouterr().out
    assert "1 (+1 not)" in printed
    assert "not counted: half: running, or killed, at step 1,000" in printed
    assert "not counted: broken: failed: n_embd=9 is not divisible" in printed


def test_a_killed_run_is_named_with_the_last_step_that_it_recorded(made, tmp_path):
    made("done", 2.0, {"x": 1})
    made("early", 2.0, {"x": 1}, seed=2, status="running", steps=0)  # before any validation
    made("nan", 2.0, {"x": 1}, seed=3, best_val_loss=nan)
    reasons = {path.name: why for path, why in compare([tmp_path / "sweep"]).reasons.items()}
    assert reasons == {
        "early": "running, or killed, at step 1,000",
        "nan": "it was never validated",
    }


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.yaml", "- a\n"),
        ("config.yaml", "data: 5\nmodel: x\nseed: y\n"),
        (".hydra/config.yaml", "data: 5\nmodel: x\nseed: y\n"),
        ("summary.json", '{"status": "completed", "best_val_loss": "abc"}'),
        ("summary.json", '{"status": "completed", "best_val_loss": 2.5, "steps": "x", "seed": []}'),
    ],
)
def test_a_run_of_another_tool_ends_no_comparison(made, tmp_path, capsys, file, content):
    made("mine", 2.0, {"x": 1})
    (made("other", 3.0, {"x": 2}) / file).write_text(content)
    report_on([tmp_path / "sweep"], None, None, Terminal())
    assert "2.0000" in capsys.readouterr().out


def test_different_texts_and_units_have_tables_of_their_own(made, tmp_path):
    made("a", 2.0, {"x": 1}, text="f1")
    made("b", 1.0, {"x": 1}, text="f2")
    made("c", 1.5, {"x": 2}, text="f2")
    comparison = compare([tmp_path / "sweep"])
    assert [table.text for table in comparison.tables] == ["/f1.txt", "/f2.txt"]
    assert [len(table.rows) for table in comparison.tables] == [1, 2]
    assert "cannot be compared" in comparison.notes[0]


def test_a_text_of_a_single_run_says_nothing_of_the_settings_that_others_differ_in(made, tmp_path):
    made("a", settings={"model.n_layer": 2, "optimizer.lr": 0.1})
    made("b", settings={"model.n_layer": 4, "optimizer.lr": 0.1})
    made("c", text="f2", settings={"model.n_layer": 2, "optimizer.lr": 0.2})
    assert [table.keys for table in compare([tmp_path / "sweep"]).tables] == [["model.n_layer"], []]


def test_what_is_settled_by_the_device_is_compared_by_what_it_became(made, tmp_path):
    """As with `debug=overfit`, which changes the device-dependent defaults."""
    for name, dropout in (("a", 0.0), ("b", 0.1)):
        run = made(name, settings={"model.dropout": dropout, "model.noise": 0.0})
        composed = {"by_device": {"cpu": {"model": {"dropout": dropout, "noise": dropout}}}}
        OmegaConf.save(OmegaConf.create(composed | {"seed": 1}), run / ".hydra/config.yaml")
    (table,) = compare([tmp_path / "sweep"]).tables
    assert table.keys == ["model.dropout"]


def test_texts_of_one_name_are_told_apart(made, tmp_path):
    made("a", settings={"data.lowercase": True, "data.batch_size": 4})
    made("b", settings={"data.val_fraction": 0.2, "data.batch_size": 8})
    for name in "cde":
        environment = {"fingerprint": f"{name}123456789", "text": "/same.txt"}
        run = made(name, text="same", settings={"data.unit": "byte"} if name == "e" else None)
        (run / "environment.json").write_text(json.dumps(environment))
    assert [table.text for table in compare([tmp_path / "sweep"]).tables] == [
        "/f1.txt (lowercase=None, val_fraction=0.2)",
        "/f1.txt (lowercase=True, val_fraction=None)",
        "/same.txt (unit=None, c1234567)",
        "/same.txt (unit=None, d1234567)",
        "/same.txt (unit=byte, e1234567)",
    ]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_table_is_cut_on_no_terminal(made, tmp_path, monkeypatch, capsys, width):
    for i, lr in enumerate((0.0001, 0.0003)):
        for n_layer in (10, 12):
            settings = {
                "model.n_layer": n_layer,
                "optimizer.lr": lr,
                "model.dropout": n_layer / 100,
                "model.activation": f"activation{n_layer}",
            }
            made(f"{i}{n_layer}", 2.0, settings)
            made(f"{i}{n_layer}b", 2.1, settings, seed=2)
    console = Terminal()
    console.width = width
    report_on([tmp_path / "sweep"], None, None, console)
    printed = capsys.readouterr().out
    for cell in ("0.0001", "0.0003", "n_layer", "dropout", "95% interval", "parameters"):
        assert cell in printed
    low, high = compare([tmp_path / "sweep"]).tables[0].rows[0].interval
    assert f"{low:.4f} to {high:.4f}" in " ".join(printed.split())
    assert "\u2026" not in printed


def test_a_text_whose_name_is_no_utf8_is_compared(made, tmp_path):
    run = made("a")
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps(environment | {"text": "caf\udce9.txt"}))
    report_on([tmp_path / "sweep"], tmp_path / "out", None, Terminal())
    assert read(tmp_path / "out/sweep.csv")[0]["text"] == "caf\\udce9.txt"


def test_a_curve_of_one_point_is_drawn(made, tmp_path):
    made("a", curve=[(100, 2.0)])
    panels = panels_of(compare([tmp_path / "sweep"]).tables[0])
    axes = Figure().subplots()
    panels[-1](axes)
    assert [line.get_marker() for line in axes.lines] == ["."]


def test_a_table_says_which_text_as_its_runs_recorded_it(made, tmp_path):
    run = made("a", settings={"data.path": None})
    environment = json.loads((run / "environment.json").read_text())
    environment["text"] = "roneneldan/TinyStories/train"
    (run / "environment.json").write_text(json.dumps(environment))
    (table,) = compare([tmp_path / "sweep"]).tables
    assert table.text == "roneneldan/TinyStories/train"


def test_mixtures_of_other_weights_have_tables_of_their_own(made, tmp_path):
    def mixture(a, b):
        return {"data.mixture": [{"path": "/a.txt", "weight": a}, {"path": "/b.txt", "weight": b}]}

    made("a", 2.0, mixture(3, 1), seed=1)
    made("b", 2.2, mixture(6, 2), seed=2)  # the same weights
    made("c", 1.0, mixture(1, 3), seed=1)
    comparison = compare([tmp_path / "sweep"])
    tables = {table.text: [row.n for row in table.rows] for table in comparison.tables}
    assert tables == {"75.0% a.txt, 25.0% b.txt": [1, 1], "25.0% a.txt, 75.0% b.txt": [1]}
    assert "mixture weights" in comparison.notes[0]


def test_a_repeated_seed_is_counted_once(made, tmp_path):
    made("a", 2.0, {"x": 1}, seed=1)
    made("b", 2.0, {"x": 1}, seed=1)
    comparison = compare([tmp_path / "sweep"])
    assert comparison.tables[0].rows[0].n == 1
    assert "repeat a seed" in comparison.notes[0]


def test_seeds_of_the_windows_alone_are_seeds(made, tmp_path):
    for seed in (1, 2, 3):
        made(f"{seed}", 2.0 + seed / 100, {"data.seed": seed}, seed=7)
    made("again", 2.0, {"data.seed": 3}, seed=7)
    comparison = compare([tmp_path / "sweep"])
    (row,) = comparison.tables[0].rows
    assert (row.n, row.label) == (3, "all runs")
    assert "not counted again, as they repeat a seed of the same settings: 1" in comparison.notes


def test_a_seed_that_no_configuration_tells_is_that_of_the_summary(made, tmp_path):
    for seed in (1, 2):
        run = made(f"{seed}", seed=seed)
        (run / "config.yaml").unlink()
        (run / ".hydra/config.yaml").unlink()
        (run / ".hydra/overrides.yaml").unlink()
    assert compare([tmp_path / "sweep"]).tables[0].rows[0].n == 2


def test_a_group_stands_for_the_keys_that_only_its_choices_have(made, tmp_path):
    one = {"model._target_": "litchar.models.Transformer", "model.n_layer": 2, "model.norm": "rms"}
    other = {"model._target_": "litchar.models.GRU", "model.n_layer": 3}
    made("a", settings=one)
    made("b", settings=other)
    (table,) = compare([tmp_path / "sweep/a", tmp_path / "sweep/b"]).tables
    assert table.keys == ["model"]
    assert {row.settings["model"] for row in table.rows} == {"Transformer", "GRU"}
    made("c", settings=other | {"model.n_layer": 4})
    (table,) = compare([tmp_path / "sweep"]).tables
    assert table.keys == ["model", "model.n_layer"]


def chosen(run, **groups):
    OmegaConf.save({"hydra": {"runtime": {"choices": groups}}}, run / ".hydra/hydra.yaml")


def test_a_group_is_what_was_chosen_whether_it_was_typed_or_not(made, tmp_path):
    for name, group, target in (("a", "transformer", "Transformer"), ("b", "gru", "GRU")):
        run = made(name, settings={"model._target_": f"litchar.models.{target}"})
        chosen(run, model=group)
    (table,) = compare([tmp_path / "sweep"]).tables
    assert {row.settings["model"] for row in table.rows} == {"transformer", "gru"}
    chosen(made("c", settings={"model._target_": "litchar.models.Other"}), model="gru")
    (table,) = compare([tmp_path / "sweep"]).tables
    assert table.keys == ["model", "model._target_"]
    assert [row.n for row in table.rows] == [1, 1, 1]


def test_jobs_of_a_sweep_that_differ_elsewhere_as_well_are_no_repeats(made, tmp_path):
    """As when an experiment's file is edited before the sweep is resumed."""
    for seed, dropout in ((1, 0.0), (2, 0.0), (3, 0.5)):
        run = made(f"{seed}", settings={"model.dropout": dropout}, seed=seed)
        chosen(run, experiment="mine")
    (tmp_path / "sweep/sweep.json").write_text(json.dumps({"swept": ["experiment"]}))
    (table,) = compare([tmp_path / "sweep"]).tables
    assert table.keys == ["model.dropout"]
    assert [(row.settings["model.dropout"], row.n) for row in table.rows] == [(0.0, 2), (0.5, 1)]


def test_a_run_that_was_gone_on_with_is_what_it_became(made, tmp_path):
    for seed in (1, 2, 3):
        run = made(f"{seed}", settings={"trainer.max_steps": 20}, seed=seed)
    for number, steps in ((2, 40), (10, 60), (9, 50)):
        again = run / f".hydra/resumed-{number}"
        again.mkdir()
        OmegaConf.save({"seed": 3, "trainer": {"max_steps": steps}}, again / "config.yaml")
        OmegaConf.save([f"trainer.max_steps={steps}"], again / "overrides.yaml")
    OmegaConf.save({"seed": 3, "trainer": {"max_steps": 60}}, run / "config.yaml")
    typed = Run.load(run).overrides
    assert [o for o in typed if o.startswith("trainer.")] == ["trainer.max_steps=60"]
    assert "seed=3" in typed
    (table,) = compare([tmp_path / "sweep"]).tables
    assert {row.settings["trainer.max_steps"]: row.n for row in table.rows} == {20: 2, 60: 1}


def test_numbers_that_are_equal_are_one_however_they_are_written(made, tmp_path):
    made("a", settings={"model.dropout": 0, "optimizer.lr": 0.1}, seed=1)
    made("b", settings={"model.dropout": 0.0, "optimizer.lr": 0.1}, seed=2)
    assert compare([tmp_path / "sweep"]).tables[0].keys == []
    made("c", settings={"model.dropout": 0.5, "optimizer.lr": 0.1}, seed=1)
    assert [row.n for row in compare([tmp_path / "sweep"]).tables[0].rows] == [2, 1]


def test_numbers_that_are_equal_are_one_within_a_group_as_well(made, tmp_path):
    for name, target, dropout in (("a", "A", 0), ("b", "A", 0.0), ("c", "B", 0.5)):
        made(name, settings={"model._target_": target, "model.dropout": dropout}, seed=ord(name))
    (table,) = compare([tmp_path / "sweep"]).tables
    assert table.keys == ["model"]
    assert sorted(row.n for row in table.rows) == [1, 2]


def test_a_split_is_one_however_its_share_is_written(made, tmp_path):
    made("a", 2.0, {"model.n_layer": 1, "data.test_fraction": 0})
    made("b", 2.1, {"model.n_layer": 2, "data.test_fraction": 0.0})
    (table,) = compare([tmp_path / "sweep"]).tables
    assert [row.settings for row in table.rows] == [{"model.n_layer": 1}, {"model.n_layer": 2}]


def test_a_number_written_in_two_forms_is_one_line_of_a_plot(made, tmp_path):
    for i, dropout in enumerate((0, 0.0, 0.1)):
        for lr in (0.001, 0.002 + 0.001 * i):
            made(f"{dropout}-{lr}", 2 + dropout, {"model.dropout": dropout, "optimizer.lr": lr}, i)
    (table,) = compare([tmp_path / "sweep"]).tables
    axes = Figure().subplots()
    panels_of(table)[0](axes)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "dropout=0",
        "dropout=0.1",
    ]


def test_texts_of_a_single_row_are_not_drawn_beside_comparisons(made, tmp_path):
    heights = []
    for name, rows in (("f1", 1), ("f2", 2), ("f3", 1)):
        for i in range(rows):
            made(f"{name}-{i}", 2.0, {"x": i}, text=name)
        write_plot(compare([tmp_path / "sweep"]), tmp_path / "sweep.png")
        heights.append(len(imread(tmp_path / "sweep.png")))
    assert heights == [heights[0]] * 3


def test_dollars_begin_no_formula(made, tmp_path):
    for seed, name in enumerate(("from $1_ to $2", "$_$^")):
        for lr in (0.001, 0.002):
            made(f"{seed}-{lr}", 2, {"data.pattern": name, "optimizer.lr": lr}, text=f"$_{seed}$^")
    comparison = compare([tmp_path / "sweep"])
    write_plot(comparison, tmp_path / "sweep.png")  # which fails where a formula cannot be read
    made("c", 2, {"model.x": "from $1_ to $2"}, sweep="other")
    made("d", 2, {"model.x": "$a$"}, sweep="other")
    (table,) = compare([tmp_path / "other"]).tables
    axes = Figure().subplots()
    panels_of(table)[0](axes)
    assert {label.get_text() for label in axes.get_xticklabels()} == {
        r"from \$1_ to \$2",
        r"\$a\$",
    }
    axes = Figure().subplots()
    panels_of(table)[-1](axes)
    shown_as = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sorted(shown_as) == [r"\$a\$", r"from \$1_ to \$2"]


def test_runs_begun_from_several_checkpoints_are_told_apart():
    assert shown("/somewhere/runs/a9/checkpoints/best.ckpt") == "a9/checkpoints/best.ckpt"
    assert shown("/somewhere/a.txt") == "a.txt"
    assert shown("/best.ckpt") == "best.ckpt"
    assert (shown("/"), shown("//")) == ("", "")


def test_all_batches_are_not_shown_as_one():
    assert (shown(1.0), shown(1), shown(0.5), shown(2.0)) == ("1.0", "1", "0.5", "2")


def test_what_failed_on_another_text_counts_with_that(made, tmp_path):
    for text, status in (("f1", "completed"), ("f2", "diverged")):
        for seed in (1, 2):
            made(f"{text}s{seed}", 2.0, {"x": 1}, seed, status, text=text, sweep=text)
    made("f2s3", 2.0, {"x": 1}, 3, text="f2", sweep="f2")
    unknown = made("gone", 2.0, {"x": 1}, 4, "failed", sweep="f1")
    (unknown / "environment.json").unlink()  # it never opened its text
    config = OmegaConf.create({"seed": 1, "x": 1, "data": {"path": "/f.txt"}})
    for run in tmp_path.glob("f?/*"):
        OmegaConf.save(config, run / "config.yaml")
        OmegaConf.save(config, run / ".hydra/config.yaml")
    tables = compare([tmp_path / "f1", tmp_path / "f2"]).tables
    pending = {row.losses.size: row.pending for table in tables for row in table.rows}
    assert pending == {2: 1, 1: 3}


def test_rows_are_named_by_what_sets_them_apart_from_runs_that_do_not_count(made, tmp_path):
    for lr in (0.001, 0.002):
        made(f"small{lr}", 2 + lr, {"n_embd": 16, "lr": lr})
        made(f"large{lr}", 2 + lr, {"n_embd": 32, "lr": lr}, status="diverged")
    (table,) = compare([tmp_path / "sweep"]).tables
    assert table.keys == ["lr", "n_embd"]
    assert table.rows[0].settings == {"lr": 0.001, "n_embd": 16}
    assert [panel.keywords.get("key") for panel in panels_of(table)] == ["lr", None]
    refused = made("odd", 2, {"n_embd": 16, "lr": 0.001, "x": 1}, status="failed")
    (refused / "environment.json").unlink()  # it may be of another text
    assert compare([tmp_path / "sweep"]).tables[0].keys == ["lr", "n_embd"]


def test_a_difference_that_no_test_can_tell_is_not_explained(made, tmp_path):
    for seed in (1, 2, 3):
        made(f"a{seed}", 2 + seed / 10, {"x": 1}, seed)
    made("b1", 2.5, {"x": 2})
    comparison = compare([tmp_path / "sweep"])
    assert not any("Welch" in line for line in in_words(comparison.tables[0]))
    (verdict,) = [one for one in _sentences(comparison.tables[0], comparison) if "next" in one]
    assert verdict.endswith(
        "above, which may be chance: two seeds of each are the least that can tell."
    )


def test_losses_of_parts_of_the_validation_text_have_tables_of_their_own(made, tmp_path):
    for name, limit in (("a", 1), ("b", 0.5), ("c", 1.0), ("d", None)):
        settings = {"trainer.limit_val_batches": limit, "data.val_batch_size": 2}
        made(name, settings=settings, seed=ord(name))
    made(
        "g", settings={"trainer.fast_dev_run": True, "data.val_batch_size": 2}, seed=5
    )  # one batch
    settings = {"trainer.overfit_batches": 3, "data.val_batch_size": 2}  # limits both
    made("e", settings=settings, text="f2")
    made("f", settings={"data.val_batch_size": 2}, text="f2")
    tables = compare([tmp_path / "sweep"]).tables
    assert {table.text: len(table.rows) for table in tables} == {
        "/f1.txt (limit_val_batches=1, val_batch_size=2)": 2,
        "/f1.txt (limit_val_batches=0.5, val_batch_size=2)": 1,
        "/f1.txt (limit_val_batches=None, val_batch_size=None)": 2,
        "/f2.txt (limit_val_batches=3, val_batch_size=2)": 1,
        "/f2.txt (limit_val_batches=None, val_batch_size=None)": 1,
    }


def test_sizes_have_a_power_law_and_two_are_too_few(made, tmp_path):
    def size(n, exponent=0.05):
        parameters = 1000 * 4**n
        flops = 64 * 1000 * 6 * parameters
        for seed in (1, 2):
            setting = {"model.n_layer": n}
            made(f"{n}s{seed}", 7 * flops**-exponent, setting, seed, parameters=parameters)

    size(1), size(2)
    assert compare([tmp_path / "sweep"]).tables[0].power_law is None
    size(3), size(4)
    law = compare([tmp_path / "sweep"]).tables[0].power_law
    assert (law.exponent, law.factor) == (pytest.approx(0.05), pytest.approx(7))
    assert law.low == pytest.approx(law.high, abs=1e-6)
    size(5, exponent=0.06)  # off the line: the interval says so
    law = compare([tmp_path / "sweep"]).tables[0].power_law
    log_flops = np.log([64 * 1000 * 6 * 1000 * 4.0**n for n in range(1, 6)])
    log_loss = np.log(7) - np.array([0.05] * 4 + [0.06]) * log_flops
    x, y = log_flops - log_flops.mean(), log_loss - log_loss.mean()
    slope = (x @ y) / (x @ x)
    assert law.exponent == pytest.approx(-slope)
    error = math.sqrt(((y - slope * x) ** 2).sum() / 3 / (x @ x))  # three degrees of freedom
    half = 3.182446 * error  # 97.5% of Student's t, from a printed table
    assert (law.low, law.high) == pytest.approx((-slope - half, -slope + half))


def test_sizes_within_a_factor_of_two_have_no_power_law_and_labels_do_not_overlap(made, tmp_path):
    for n, parameters in enumerate((1000, 1400, 1900)):
        made(f"{n}", 2.0 - n / 10, {"n": n}, parameters=parameters)
    assert compare([tmp_path / "sweep"]).tables[0].power_law is None
    made("large", 1.5, {"n": 9}, parameters=8000)
    made("lucky", 1.1, {"n": 10}, parameters=9000)
    made("unlucky", 9.0, {"n": 10}, seed=2, parameters=9000, status="diverged")
    (table,) = compare([tmp_path / "sweep"]).tables
    axes = Figure().subplots()
    panels_of(table)[-1](axes)
    ticks = [round(tick / 64_000 / 6) for tick in axes.get_xticks()]
    assert ticks == [1000, 1900, 8000]


def test_models_of_several_kinds_have_no_power_law(made, tmp_path):
    for n in (1, 2, 3):
        settings = {"model._target_": "litchar.models.Transformer", "model.n_layer": n}
        made(f"r{n}", 2.0 - n / 10, settings, parameters=1000 * n)
    assert compare([tmp_path / "sweep"]).tables[0].power_law is not None
    other = {"model._target_": "litchar.models.Transformer", "model.cell": "gru"}
    made("other", 2.0, other, parameters=5000)
    assert compare([tmp_path / "sweep"]).tables[0].power_law is None


def test_runs_on_one_text_in_two_places_are_seeds_of_one_row(made, tmp_path):
    for seed in range(4):
        settings = {"data.path": f"/{'ab'[seed % 2]}/f1.txt", "data.block_size": 8 * (seed // 2)}
        made(f"r{seed}", 2.0 + seed / 10, settings, seed)
    made("other", 1.0, {"data.block_size": 0}, text="f2")
    made("half", 1.0, {"data.path": "/b/f1.txt", "data.block_size": 8}, 9, status="running")
    killed = made("killed", 1.0, {"data.path": "/b/f1.txt", "data.block_size": 8}, 9, "failed")
    (killed / "environment.json").unlink()
    one, _ = compare([tmp_path / "sweep"]).tables
    assert [row.settings for row in one.rows] == [{"data.block_size": 0}, {"data.block_size": 8}]
    assert [(row.n, row.pending) for row in one.rows] == [(2, 0), (2, 2)]


def test_runs_of_unknown_texts_are_not_taken_for_seeds(made, tmp_path):
    for name in ("x", "y"):
        (made(name, 2.0, {"data.path": f"/{name}.txt"}) / "environment.json").unlink()
    (table,) = compare([tmp_path / "sweep"]).tables
    assert [row.n for row in table.rows] == [1, 1]


def test_choices_of_data_that_read_one_text_otherwise_stay_apart(made, tmp_path):
    for name, starts in (("names", True), ("text", False)):
        run = made(name, 2.0 + starts, {"data.start_at_document": starts})
        chosen = {"hydra": {"runtime": {"choices": {"data": name}}}}
        OmegaConf.save(OmegaConf.create(chosen), run / ".hydra/hydra.yaml")
    (tmp_path / "sweep/sweep.json").write_text(json.dumps({"swept": ["data"]}))
    (table,) = compare([tmp_path / "sweep"]).tables
    assert [row.settings for row in table.rows] == [{"data": "text"}, {"data": "names"}]


@pytest.mark.parametrize("name", ["sweep.png", "report.html"])
def test_two_processes_that_end_one_sweep_at_once_do_not_collide(made, tmp_path, monkeypatch, name):
    made("a")
    comparison, path, replace = compare([tmp_path / "sweep"]), tmp_path / name, os.replace

    def write():
        if path.suffix == ".png":
            write_plot(comparison, path)
        else:
            write_page(path, "sweep", "<p>two runs</p>")

    def replace_after_the_other(draft, target):
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: 1)
            other.setattr(os, "replace", replace)
            write()
        assert path.exists()
        replace(draft, target)

    monkeypatch.setattr(os, "replace", replace_after_the_other)
    write()
    assert list(tmp_path.glob(f".{name}*")) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name directories"),
        (["nowhere"], "nowhere: no such directory"),
        (["empty"], "there is no run in this directory"),
        (["sweep", "--at", "step=3"], "steps, characters, seconds, flops"),
        (["sweep", "--at", "steps=-1"], "steps, characters, seconds, flops"),
        (["sweep", "--assert-equal"], "need --revisions"),
        (["sweep", "--seeds", "5,x"], "need --revisions"),
        (["--revisions", "nothing-such", ".", "--", "x=1"], "nothing-such: no such revision"),
        (["--revisions", ".", ".", "--seeds", "one"], "write whole numbers"),
        (["--revisions", ".", ".", "--", "seed=1"], "give seeds with --seeds"),
    ],
)
def test_a_wrong_command_is_refused_in_one_line(
    made, tmp_path, monkeypatch, capsys, arguments, words
):
    made("a")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refusal:
        main(arguments)
    assert refusal.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("taken", ["out", "sweep.csv", "sweep.png", "report.html"])
def test_a_place_that_cannot_be_written_is_refused_in_one_line(
    made, tmp_path, monkeypatch, capsys, taken
):
    made("a")
    monkeypatch.chdir(tmp_path)
    if taken == "out":
        (tmp_path / "out").touch()
    else:
        (tmp_path / "out" / taken).mkdir(parents=True)
    with pytest.raises(SystemExit) as refusal:
        main(["sweep", "--out", "out"])
    assert refusal.value.code == 2
    error = capsys.readouterr().err
    place = "out" if taken == "out" else f"out/{taken}"
    reason = r"cannot be written \(.* (exists|directory)\); name another place: --out DIRECTORY\n"
    assert re.fullmatch(rf"error: .*{place}: {reason}", error)


def test_no_place_is_not_the_working_directory(made, capsys):
    made("a")
    with pytest.raises(SystemExit) as refusal:
        main(["sweep", "--out", ""])
    assert refusal.value.code == 2
    assert "argument --out: is empty; name a directory" in capsys.readouterr().err


def test_a_sweep_that_cannot_be_written_is_compared_and_named(made, tmp_path, monkeypatch, capsys):
    def read_only(*_, **__):
        raise OSError(30, "Read-only file system", ".draft-0-sweep.csv")

    made("a")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("litchar.atomic.open", read_only, raising=False)
    with pytest.raises(SystemExit) as refusal:
        main(["sweep"])
    assert refusal.value.code == 2
    said = capsys.readouterr()
    assert "validation loss in nats per character" in said.out
    assert said.err.startswith("error: sweep: cannot be written (Read-only file system); ")
    assert said.err.endswith("--out DIRECTORY\n")


def test_a_sweeps_report_shows_its_runs_in_a_browser(made, tmp_path, page):
    for layers in (2, 4, 6):
        for seed in (1, 2):
            loss = 1 + layers / 10 + seed / 1000
            run = made(f"l{layers}s{seed}", loss, {"model.n_layer": layers}, seed)
    (run / "report.html").write_text("<title>the run itself</title>")
    attack = "<script>document.title='owned'</script>"
    made("bad", 9.0, {"model.n_layer": 8}, status="failed", error=f"no such {attack} thing")
    report_on([tmp_path / "sweep"], tmp_path / "sweep", None, Terminal(quiet=True))
    moved = (tmp_path / "sweep").rename(tmp_path / "a b#c")  # it holds wherever it lies
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.context.set_offline(True)
    page.goto((moved / "report.html").as_uri())
    assert page.title() == "sweep"
    shown = page.locator("body").inner_text()
    assert "n_layer=2 is best of 3: a validation loss of 1.2015 over 2 seeds" in shown
    assert "1 of 7 runs are not counted" in shown
    assert f"failed: no such {attack} thing" in shown
    table = page.locator("table").first.inner_text().splitlines()
    assert [line.split("\t")[:3] for line in table] == [
        ["n_layer", "n", "loss"],
        *(["2", "2", "1.2015"], ["4", "2", "1.4015"], ["6", "2", "1.6015"]),
    ]
    points = page.locator("#curve-l4s2 path").first.get_attribute("d")
    assert len(re.findall("[ML]", points)) == 10
    page.set_viewport_size({"width": 390, "height": 844})
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("a").count() == 1
    page.locator("a").click()
    assert page.title() == "the run itself"
    assert all(url.startswith("file://") for url in asked)


def test_runs_of_different_code_are_no_seeds_of_one_row(made, tmp_path):
    for name, seed, code in (("a", 1, "one"), ("b", 1, "one+1"), ("c", 2, "one+1"), ("d", 1, None)):
        environment = {"fingerprint": "f", "revision": "0123456789abc"}
        environment |= {} if code is None else {"code": code}
        (made(name, 2.0, seed=seed) / "environment.json").write_text(json.dumps(environment))
    (table,) = compare([tmp_path / "sweep"]).tables
    found = {(row.settings["code"], tuple(run.path.name for run in row.runs)) for row in table.rows}
    assert found == {("one", ("a",)), ("one+1", ("b", "c")), ("None", ("d",))}
    (table,) = compare([tmp_path / "sweep" / name for name in "ad"]).tables
    assert table.keys == []  # it is not known whether the code differs


def test_curves_are_drawn_over_what_runs_are_compared_at(made, tmp_path):
    made("a", curve=[(100, 2.5), (200, 2.0)])
    at = At("characters", 9000.0)
    (table,) = compare([tmp_path / "sweep"], at).tables
    axes = Figure().subplots()
    panels_of(table, at)[-1](axes)
    curve, mark = axes.lines
    assert list(curve.get_xdata()) == list(cost(table.rows[0].runs[0], "characters")) != [100, 200]
    assert set(mark.get_xdata()) == {9000}
    assert axes.get_xlabel() == "characters of text"


def test_runs_of_code_that_was_changed_without_a_commit_are_told_apart(made, tmp_path):
    for name, changes in (("a", None), ("b", "-1\n+2\n"), ("c", "-1\n+3\n"), ("d", "-1\n+3\n")):
        run = made(name, seed=ord(name))
        (run / "environment.json").write_text(json.dumps({"revision": "0123456789abc"}))
        if changes:
            (run / "code.diff").write_text(changes)
    (note,) = [note for note in compare([tmp_path / "sweep"]).notes if "revisions" in note]
    changed = r", 012345678 with changes \(\w{6}\)"
    assert re.fullmatch(f".* from 3 revisions of the code: 012345678{changed}{changed}", note)
