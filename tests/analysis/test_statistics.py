"""Student's t: tails by integration of its density, quantiles from a printed table."""

import math

import numpy as np
import pytest

from litchar.analysis.statistics import paired, two_sided_p, two_sided_t


@pytest.mark.parametrize("degrees", [1, 1.7, 2, 3.4, 10, 250])
@pytest.mark.parametrize("t", [0.0, 0.3, -2.5, 40.0])
def test_tails_are_those_of_the_density(t, degrees):
    # In the angle of t = sqrt(degrees) tan(angle), the density is proportional to a power of cos.
    def area(low):
        width = (math.pi / 2 - low) / 200_000
        angles = low + width * (np.arange(200_000) + 0.5)
        return float((np.cos(angles) ** (degrees - 1)).sum() * width)

    expected = area(math.atan(abs(t) / math.sqrt(degrees))) / area(0.0)
    assert two_sided_p(t, degrees) == pytest.approx(expected, rel=1e-5, abs=1e-300)


def test_quantiles_are_those_of_the_table():
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 30: 2.042, 120: 1.980}
    assert {n: round(two_sided_t(n), 3) for n in table} == table


def test_what_is_not_known_stays_unknown():
    assert math.isnan(two_sided_t(0))
    assert math.isnan(two_sided_p(math.nan, 3))
    assert two_sided_p(math.inf, 3) == 0


def test_pairs_are_compared_by_their_differences():
    """Student's own example (1908): hours of sleep gained by two drugs, ten patients each."""
    one = np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0])
    other = np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])
    assert paired(one, other) == pytest.approx(0.002833, abs=1e-6)  # as R's documentation prints
    assert paired(one, one) == 1
    assert paired(np.array([1.0, 2.0]), np.array([1.5, 2.5])) == 0
    assert math.isnan(paired(np.full(3, 1.9), np.full(3, 2.1)))
    assert math.isnan(paired(one[:1], other[:1]))
