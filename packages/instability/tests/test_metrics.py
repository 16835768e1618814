import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from instability import OneLayerNetwork, linear_thresholds, metrics
from instability.pde.linear import simulate

VECTORS = arrays(np.float64, 6, elements=st.floats(-1e6, 1e6))


@given(VECTORS, VECTORS)
def test_l1_is_symmetric_and_bounded(a, b):
    value = metrics.average_relative_l1(a, b)
    assert value == metrics.average_relative_l1(b, a)
    assert 0 <= value <= 2


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [([1, -2], [1, -2], 0), ([1, 2], [-3, -4], 2), ([0, 0], [0, 0], 0), ([0, 1], [0, 3], 0.5), ([0], [5], 2)],
)
def test_l1_known_values(a, b, value):
    assert metrics.average_relative_l1(np.array(a, float), np.array(b, float)) == value


def test_l1_of_non_finite_entries_is_nan():
    assert np.isnan(metrics.average_relative_l1([np.nan, 1.0], [1.0, 1.0]))


def test_moving_average_drops_the_last_window():
    x = np.arange(1000.0)
    smoothed = metrics.moving_average(x)
    assert smoothed.shape == (900,)
    np.testing.assert_allclose(smoothed, np.arange(900) + 49.5)


@pytest.mark.parametrize("window", [0, 5])
def test_moving_average_window_must_fit(window):
    with pytest.raises(ValueError, match=f"window={window} does not fit 4 values"):
        metrics.moving_average(np.arange(4.0), window=window)


def test_growth_rate_of_an_exponential_with_plateaus():
    curve = np.clip(1e-16 * np.exp(0.3 * np.arange(200)), 0, 1.0)
    assert metrics.growth_rate(curve, 1e-13, 1e-3) == pytest.approx(0.3, rel=1e-9)
    assert np.isnan(metrics.growth_rate(curve[:50], 1e-13, 1e-3))


def test_accuracy_spread_names_the_axis_that_varies():
    over_seeds_only = np.broadcast_to(np.array([90.0, 91.0, 95.0])[None, :, None], (4, 3, 20))
    spread = metrics.accuracy_spread(over_seeds_only)
    np.testing.assert_array_equal(spread["over_perturbations"], np.zeros(3))
    np.testing.assert_allclose(spread["over_seeds"], np.full(4, np.std([90, 91, 95])))


def test_accuracy_spread_uses_the_last_epochs():
    values = np.zeros((2, 1, 20))
    values[1, 0, 10:] = 2.0
    assert metrics.accuracy_spread(values)["over_perturbations"] == pytest.approx([1.0])


@pytest.mark.parametrize("function", [metrics.average_relative_l1, metrics.relative_l2])
def test_shapes_must_agree(function):
    with pytest.raises(ValueError, match="shapes differ"):
        function(np.ones(2), np.ones(3))


def test_tensors_of_any_type_with_or_without_a_graph():
    a = torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True)
    assert metrics.average_relative_l1(a, -a) == metrics.relative_l2(a, -a) == 2.0
    assert metrics.first_step_above(a, 1.5) == 1


@pytest.mark.parametrize("exponent", [-1000, 0, 1000])
def test_l2_does_not_depend_on_the_scale(exponent):
    """2 |3 - 1| / (3 + 1), where the squares would overflow or vanish."""
    scale = 2.0**exponent
    assert metrics.relative_l2([3 * scale, 0.0], [scale, 0.0]) == 1.0


@pytest.mark.parametrize(
    "function",
    [
        lambda z: metrics.moving_average(z[0, 0], 1),
        lambda z: metrics.growth_rate(z[0, 0], 0.1, 0.2),
        lambda z: metrics.accuracy_spread(z, last=1),
        lambda z: OneLayerNetwork(z[0], 1),
        lambda z: linear_thresholds(torch.from_numpy(z[0]), 1, 0.1),
        lambda z: simulate(np.ones((4, 4)), z[0], learning_rates=0.1, weight_decays=0.1, num_steps=1),
    ],
)
def test_complex_numbers_where_real_ones_are_meant_are_refused(function):
    with pytest.raises(ValueError, match="is complex"):
        function(np.full((3, 3, 3), 1 + 1j))


def test_growth_is_fitted_through_the_points_that_have_a_logarithm():
    curve = np.exp(np.arange(12.0)) * 1e-9
    curve[[3, 5]] = 0.0, math.nan
    assert metrics.growth_rate(curve, 1e-10, 1e-5) == pytest.approx(1.0)


def test_a_curve_that_blows_up_is_above_every_level():
    """A run that reaches NaN diverged; it did not stay below."""
    curve = [1e-9, 1e-7, 1e-5, math.nan, math.nan]
    assert metrics.first_step_above(curve, 1e-3) == 3
    assert metrics.growth_rate(curve, 1e-10, 1e-2) == pytest.approx(math.log(100))
