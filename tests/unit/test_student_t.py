"""Student's t against scipy's, and where scipy's own search is coarse, against the definition."""

import pytest
from scipy.stats import nct, t

from search_spaces.student_t import detectable_shift, t_quantile

DEGREES = [1, 2, 3, 4, 5, 8, 9, 30, 31, 200]


@pytest.mark.parametrize("degrees", DEGREES)
@pytest.mark.parametrize("upper", [0.4, 0.025, 0.001, 5e-6])
def test_quantile_is_that_of_scipy(degrees: int, upper: float) -> None:
    assert t_quantile(upper, degrees) == pytest.approx(t.isf(upper, degrees), rel=1e-9)


def test_quantile_of_one_degree_is_cauchys() -> None:
    assert t_quantile(0.25, 1) == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("degrees", DEGREES)
@pytest.mark.parametrize("upper", [0.1, 0.025, 0.0005])
@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
def test_the_shift_gives_the_power(degrees: int, upper: float, power: float) -> None:
    critical = t_quantile(upper, degrees)
    assert nct.sf(critical, degrees, detectable_shift(critical, degrees, power)) == pytest.approx(power, abs=1e-6)
