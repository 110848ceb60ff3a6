"""Student's t: tails by integration of its density, quantiles from a printed table."""

import math

import numpy as np
import pytest

from litchar.analysis.statistics import two_sided_p, two_sided_t


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
