import numpy as np
import pytest

from eigengame.core.learning_rate import auto_constant, auto_learning_rate, largest_eigenvalue


def test_power_iteration_finds_the_top_of_a_gapped_spectrum(rng):
    X = rng.standard_normal((400, 10)) * np.linspace(5, 1, 10) + 30
    exact = np.linalg.eigvalsh(np.cov(X.T, ddof=0))[-1]
    assert largest_eigenvalue(X) == pytest.approx(exact, rel=0.02)


def test_auto_is_inverse_to_the_scale_of_the_data(rng):
    X = rng.standard_normal((100, 4))
    assert auto_learning_rate(1e3 * X, 0.9) == pytest.approx(1e-6 * auto_learning_rate(X, 0.9), rel=1e-6)


def test_constants_fall_with_the_batch_and_grow_without_momentum():
    assert auto_constant(32, 0.9) < auto_constant(256, 0.9) == auto_constant(1024, 0.9) == 1
    assert auto_constant(256, 0.0) > 0


def test_constant_data_get_a_finite_rate():
    assert auto_learning_rate(np.ones((5, 3)), 0.9) == 1.0
