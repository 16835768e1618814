import math

import numpy as np
import pytest

from instability import linear_thresholds
from instability.pde import linear as linear_pde
from instability.pde.convolution import ValidCorrelation, checkerboard
from instability.pde.descent import DescentOptions
from instability.pde.nonlinear import initial_kernel
from instability.pde.reduced_map import signal_coefficient


def test_paper_size_mixed_losses_match_golden(golden):
    result = linear_pde.simulate(
        checkerboard(256),
        initial_kernel(32),
        learning_rates=1e-8,
        weight_decays=golden["linear_alphas"],
        num_steps=30,
        options=DescentOptions(loss="mixed"),
    )
    np.testing.assert_allclose(result.losses, golden["linear_loss"], rtol=1e-11)


def test_signal_follows_its_closed_form():
    """c_t = c_0 (1 - lr (alpha - N K / 4))^t, to 1e-11 relative over 200 steps."""
    image, kernel, rate, decay = checkerboard(20), initial_kernel(4), 1e-4, 900.0
    final = linear_pde.simulate(
        image, kernel, learning_rates=rate, weight_decays=decay, num_steps=200
    ).kernels[0]
    factor = 1 - rate * (decay - 17**2 * 16 / 4)
    assert signal_coefficient(final) == pytest.approx(signal_coefficient(kernel) * factor**200, rel=1e-11)


@pytest.mark.parametrize("normalize", ["sum", "mean"])
def test_each_eigenvector_grows_by_its_own_factor(normalize):
    rng = np.random.default_rng(5)
    image, rate, decay = rng.normal(size=(10, 12)), 0.01, 3.0
    image -= image.mean()
    correlation = ValidCorrelation(image, 3)
    scale = correlation.num_positions if normalize == "mean" else 1
    values, vectors = np.linalg.eigh(correlation.gram() / scale)
    options = {"learning_rates": rate, "weight_decays": decay, "normalize": normalize}
    for mu, vector in zip(values, vectors.T, strict=True):
        v = vector.reshape(3, 3)
        # The constant drive cancels in the difference of two runs, which is what grows by the factor.
        ends = [linear_pde.simulate(image, s * v, num_steps=50, **options).kernels[0] for s in (1.0, -1.0)]
        grown = (vector @ (ends[0] - ends[1]).ravel()) / 2
        assert grown == pytest.approx((1 - rate * (decay - mu / 4)) ** 50, rel=1e-9)


def test_loss_conventions_differ_by_the_time_of_the_decay_term():
    image, kernel, decay = checkerboard(12), initial_kernel(3), 500.0
    runs = {
        name: linear_pde.simulate(
            image,
            kernel,
            learning_rates=1e-4,
            weight_decays=decay,
            num_steps=2,
            options=DescentOptions(loss=name),
        )
        for name in ("consistent", "mixed")
    }
    one_step = linear_pde.simulate(
        image, kernel, learning_rates=1e-4, weight_decays=decay, num_steps=1
    ).kernels[0]
    shift = decay / 2 * (np.sum(one_step**2) - np.sum(kernel**2))
    assert runs["mixed"].losses[0, 0] - runs["consistent"].losses[0, 0] == pytest.approx(shift)


def test_loss_stays_finite_where_naive_formulas_fail():
    """C passes 73 (p > 36.7), where exp(p) / (1 + exp(p)) and 0 log 0 gave the original NaN."""
    result = linear_pde.simulate(
        checkerboard(256), initial_kernel(32), learning_rates=1e-8, weight_decays=1.1e7, num_steps=420
    )
    assert np.isfinite(result.losses).all()
    assert abs(signal_coefficient(result.kernels[0])) > 73


def test_unknown_normalisation():
    with pytest.raises(ValueError, match="Allowed: 'sum', 'mean'"):
        linear_pde.simulate(np.zeros((4, 4)), np.zeros((2, 2)), weight_decays=1.0, normalize="max")


@pytest.mark.parametrize("more", [{"residual": math.nan}, {"beta": math.nan}, {"beta": -1.0}])
def test_thresholds_of_no_number_are_refused(more):
    with pytest.raises(ValueError, match="must be finite"):
        linear_thresholds(np.ones((6, 6)), 2, 0.1, **more)
