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


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["checkpoint=null"], "checkpoint=null: give a file, a run's directory, or latest"),
        (["split=tset"], "split=tset: must be one of train, val, test"),
        (["split=tset", "data.path=TEXT"], "split=tset: must be one of train, val, test"),
        (["split=null"], "split=None: must be one of train, val, test"),
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
