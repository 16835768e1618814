from __future__ import annotations

import math

import numpy as np
import pytest
from networks import GOLDEN

from chaos import exponential_bounds, fit_divergence, fit_theoretical_bound


def test_golden_fit():
    t, fitted = fit_theoretical_bound(
        GOLDEN["bound/distance"], int(GOLDEN["bound/log_interval_scaling"]), 0.1
    )
    assert np.array_equal(t, GOLDEN["bound/t"])
    assert np.abs(fitted - GOLDEN["bound/fit"]).max() < 1e-10  # the published fit is iterative
    fit = fit_divergence(np.arange(200.0), GOLDEN["bound/distance"], 0.1, nonnegative=False)
    assert np.allclose([fit.a, fit.b], GOLDEN["bound/ab_least_squares"], rtol=1e-9)


def test_constraint_binds_only_where_needed():
    t = np.arange(100.0)
    concave = np.sqrt(0.01 + 2 * t - 0.005 * t**2)
    free, bound = (fit_divergence(t, concave, 0.1, nonnegative=flag) for flag in (False, True))
    assert free.b == pytest.approx(-0.005)
    assert bound.b == 0
    assert bound.r2 < free.r2 == pytest.approx(1)


def test_scaling_time_scales_the_rates():
    t = np.arange(1.0, 50.0)
    d = np.sqrt(0.04 + 3 * t + 0.1 * t**2)
    fit = fit_divergence(10 * t, d, 0.2)
    assert (fit.a, fit.b) == (pytest.approx(0.3), pytest.approx(0.001))


def test_bounds_enclose():
    low, high = exponential_bounds(np.arange(5.0), 0.1, (0.2, -0.3))
    assert low[0] == high[0] == 0.1
    assert (low[1:] < high[1:]).all()
    assert exponential_bounds(np.array([1e6]), 0.1, (0.0, 1.0))[1][0] == np.inf


@pytest.mark.parametrize(
    ("t", "d", "message"),
    [
        (np.arange(3), np.arange(4), "two equal vectors"),
        (np.arange(1), np.arange(1), "at least two points"),
        (np.arange(3), np.array([0.1, np.nan, 1]), "non-finite"),
    ],
)
def test_bad_input(t, d, message):
    with pytest.raises(ValueError, match=message):
        fit_divergence(t, d, 0.1)


@pytest.mark.parametrize(
    ("t", "distance", "initial", "message"),
    [
        ([0, 1, math.nan], [0, 1, 2], 0, "is not finite"),
        ([0, 1, 1e200], [0, 1, 2], 0, "is not finite, or its square"),
        ([0, 1, 2], [0, 1, 1e200], 0, "is not finite, or its square"),
        ([0, 1, 2], [0, 1, 2], math.nan, "is negative or NaN"),
        ([0, 1, 2], [0, 1, 2], -0.1, "is negative or NaN"),
        ([0, 1, 2], [0, -1, 2], 0.1, "is negative or NaN"),
    ],
)
def test_what_cannot_be_fitted_is_refused(t, distance, initial, message):
    with pytest.raises(ValueError, match=message):
        fit_divergence(np.array(t, float), np.array(distance, float), initial)


def test_bounds_of_unresolved_exponents_start_at_the_distance():
    low, high = exponential_bounds(np.array([0.0, 1.0]), 0.1, (-math.inf, math.inf))
    assert low.tolist() == [0.1, 0.0]
    assert high.tolist() == [0.1, math.inf]
