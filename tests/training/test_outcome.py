import math
import re
from pathlib import Path

import pytest

from litchar.terminal import Terminal
from litchar.text.vocabulary import printable
from litchar.text.yardsticks import Yardstick
from litchar.training.outcome import print_outcome, verdict
from litchar.training.summary import KEYS


def history(*losses, train=None):
    train = train or losses
    return [
        {"step": 100 * (i + 1), "val/loss": loss, "train/eval_loss": train[i]}
        for i, loss in enumerate(losses)
    ]


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (history(3.0, 2.5, 2.2, 2.0, 1.9), "still improving"),
        (
            history(3.0, 2.0, 1.5, 1.6, 1.8, train=(3.0, 2.0, 1.4, 1.2, 1.0)),
            "overfitting since step 300",
        ),
        (history(3.0, 2.0, 1.9, 2.4, 2.9, train=(3.0, 2.0, 1.9, 2.4, 2.9)), "worse since step 300"),
        (history(2.5, 2.49, 2.488, 2.487, 2.486), "flat"),
        (history(2.5), "validated once: too rarely"),
        ([], "validated never: too rarely"),
        (history(2.5, 2.49), "validated 2 times: too rarely"),  # as of a run that has hardly begun
        (
            [{"step": 100.0, "val/loss": 1.0}, {"step": 1200.0, "val/loss": 2.0}],
            "overfitting since step 100:",
        ),
    ],
)
def test_the_verdict_says_what_the_curve_does(points, words):
    assert words in verdict(points, None, [], {})


def test_a_short_run_is_not_told_that_more_steps_do_not_help():
    def said(bits, scheduler="wsd"):
        settings = {"scheduler._target_": f"litchar.training.schedules.{scheduler}"}
        counted = (("uniform", 6.0), ("bigram", 3.5), ("8-gram", 2.0))
        yardsticks = [Yardstick(name, needed, needed) for name, needed in counted]
        return verdict(history(3.6, 2.9, 2.71, 2.703, 2.70), bits, yardsticks, settings)

    assert "more steps (trainer.max_steps)" in said(2.70 / math.log(2))
    assert said(3.5).startswith(
        "flat at the end, as it may be where the learning rate falls: a long"
    )
    assert said(3.5, "constant").startswith("flat: more steps alone will not")


@pytest.mark.parametrize(
    ("limits", "what"),
    [
        ({"max_steps": 1000, "max_time": None}, "more steps (trainer.max_steps)"),
        ({"max_steps": -1, "max_time": "00:00:00:20"}, "more time (trainer.max_time)"),
        ({"max_steps": 1000, "max_time.seconds": 20}, "more time (trainer.max_time)"),
        ({"max_steps": 500, "max_time": "00:00:00:20"}, "more steps (trainer.max_steps)"),
    ],
)
def test_more_is_advised_of_what_ended_the_run(limits, what):
    settings = {f"trainer.{key}": value for key, value in limits.items()}
    assert f": {what} should" in verdict(history(3.0, 2.5, 2.2, 2.0, 1.9), None, [], settings)


def test_a_sample_cannot_steer_the_terminal():
    assert printable("a\x1b[2Jb\x07\n\tc\u202e") == "a\\x1b[2Jb\\x07\n\tc\\x202e"


@pytest.mark.parametrize(
    "text", ["\u3000你好。", "« oui\u202f! »\u00a0", "می\u200cخواهم", "क्\u200dष", "👩\u200d💻"]
)
def test_spaces_and_joiners_of_a_script_are_shown_as_they_are(text):
    assert printable(text) == text


def test_a_file_needs_no_folds(capsys):
    summary = dict.fromkeys(KEYS) | {"unit": "character", "best_step": 0, "total_seconds": 1.0}
    summary |= dict.fromkeys(("characters_per_second", "train_seconds"), 1.0)
    yardsticks = [Yardstick(f"{n}-gram", 1.0, 1.0) for n in range(20)]
    print_outcome(Terminal(), summary, [], "", yardsticks, Path("run"), {})
    assert re.search(r"0-gram 1.000, .*19-gram 1.000 bits per character\n", capsys.readouterr().out)
