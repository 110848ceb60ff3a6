"""`scripts/evaluate.py`: its error messages and output."""

import math

import pytest

from litchar.analysis.evaluate import splits_of
from litchar.checkpoints import Checkpoint
from litchar.errors import UserError
from litchar.losses import perplexity


def test_a_loss_whose_perplexity_no_float_holds_is_shown_all_the_same():
    assert perplexity(math.log(7)) == pytest.approx(7)
    assert perplexity(1344.5) == math.inf


def test_a_split_of_a_text_that_was_moved_is_scored(train, loss_of, text_file, tmp_path, capsys):
    checkpoint = f"checkpoint={train('trainer.max_steps=2')}"
    losses = {split: loss_of(checkpoint, f"split={split}") for split in ("train", "val")}
    assert losses["val"] == loss_of(checkpoint) != losses["train"]
    moved = text_file.rename(tmp_path / "moved.txt")
    with pytest.raises(UserError, match=r"text.txt: no such file or directory$"):
        loss_of(checkpoint)
    capsys.readouterr()
    for split, loss in losses.items():
        assert loss_of(checkpoint, f"split={split}", f"data.path={moved}") == loss
    assert "This is the text" not in capsys.readouterr().out
    assert loss_of(checkpoint, f"data.path={moved}") not in losses.values()
    assert "This is the text that the model was trained on" in capsys.readouterr().out
    moved.write_text("another and another\n")
    loss_of(checkpoint, f"data.path={moved}")
    assert "This is the text" not in capsys.readouterr().out
    with pytest.raises(UserError, match=r"moved.txt is not, byte for byte, the text that "):
        loss_of(checkpoint, "split=val", f"data.path={moved}")


def test_a_directory_that_was_moved_is_read_by_the_run_s_pattern(
    train, loss_of, text_file, tmp_path
):
    text = text_file.read_text()
    (directory := tmp_path / "texts").mkdir()
    (directory / "one.md").write_text(text)
    run_dir = train("trainer.max_steps=2", f"data.path={directory}", "data.pattern=*.md")
    checkpoint = f"checkpoint={run_dir}"
    loss = loss_of(checkpoint)
    moved = directory.rename(tmp_path / "moved")
    assert loss_of(checkpoint, "split=val", f"data.path={moved}") == loss


@pytest.mark.parametrize("key", ["name", "source"])
def test_a_named_text_is_found_elsewhere(train, text_file, key):
    checkpoint = Checkpoint.load(train("trainer.max_steps=1") / "checkpoints/best.ckpt")
    named = {"name": "a/dataset", "source": {"_target_": "users.own", "_partial_": True}}
    checkpoint.config["data"] |= {"path": None, key: named[key]}
    elsewhere = {"path": str(text_file), "pattern": "**/*.txt"}
    assert set(splits_of(checkpoint, elsewhere)) == {"train", "val"}


@pytest.mark.parametrize(
    ("least", "done", "why"),
    [
        (0, "Left out", "that the model never saw"),
        (2, "Read as U+FFFD", "that are not in the vocabulary"),
    ],
)
def test_what_the_model_never_saw_is_counted_also_where_it_is_replaced(
    train, loss_of, text_file, tmp_path, capsys, least, done, why
):
    text_file.write_text(text_file.read_text() + "@")
    run_dir = train("trainer.max_steps=2", f"data.min_count={least}")
    other = tmp_path / "other.txt"
    other.write_text("a" * 97 + "éß☃")
    capsys.readouterr()
    loss_of(f"checkpoint={run_dir}", f"data.path={other}")
    said = " ".join(capsys.readouterr().out.split())
    assert f"{done}: 3 characters (3.00%) {why}: 'ß'" in said


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["checkpoint=null"], "checkpoint=null: give a file, a run's directory, or latest"),
        (["split=tset"], "split=tset: must be one of train, val, test"),
        (["split=tset", "data.path=TEXT"], "split=tset: must be one of train, val, test"),
        (["data.field=text"], "data.field=text: has no data.path"),
        (["data.column=text"], "data.column=text: has no data.path"),
        (["data.pattern=*.md"], "data.pattern=*.md: has no data.path"),
    ],
)
def test_what_would_be_ignored_or_cannot_be_is_refused(loss_of, text_file, overrides, reason):
    with pytest.raises(UserError) as refusal:
        loss_of(*(text.replace("TEXT", str(text_file)) for text in overrides))
    assert str(refusal.value).startswith(reason)


def test_a_setting_that_older_versions_passed_over_hides_no_text(train):
    checkpoint = Checkpoint.load(train("trainer.max_steps=2") / "checkpoints" / "best.ckpt")
    checkpoint.config["data"]["split"] = "train[:10%]"
    assert set(splits_of(checkpoint)) == {"train", "val"}


def test_a_split_that_a_run_does_not_have_is_refused_with_those_it_has(train, loss_of):
    run_dir = train("trainer.max_steps=2")
    with pytest.raises(UserError, match="split=test: this run only has train, val"):
        loss_of(f"checkpoint={run_dir}", "split=test")
