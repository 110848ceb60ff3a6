import pytest

from litchar.text.vocabulary import printable
from litchar.training.outcome import verdict


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
        (history(2.5), "too few"),
        ([], "too few"),
    ],
)
def test_the_verdict_says_what_the_curve_does(points, words):
    assert words in verdict(points)


def test_a_sample_cannot_steer_the_terminal():
    assert printable("a\x1b[2Jb\x07\n\tc\u202e") == "a\\x1b[2Jb\\x07\n\tc\\x202e"
