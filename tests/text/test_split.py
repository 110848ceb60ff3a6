import pytest

from litchar.text import Text


@pytest.mark.parametrize(
    ("val", "test"),
    [(0.1, 0.0), (0.1, 0.2), (0.05, 0.05), (0.3, 0.69), (0.001, 0.0), (0.25, 0.5)],
)
def test_splits_follow_each_other_in_the_text_and_share_nothing(val, test):
    bounds = Text(val_fraction=val, test_fraction=test).bounds(1000)
    assert list(bounds) == ["train", "val", *(["test"] if test else [])]
    starts, stops = zip(*bounds.values(), strict=True)
    assert (starts[0], *stops) == (*starts, 1000)
    for name, fraction in {"train": 1 - val - test, "val": val, "test": test}.items():
        if name in bounds:
            start, stop = bounds[name]
            assert abs(stop - start - 1000 * fraction) <= 1
