import jax
import numpy as np
import pytest

from eigengame.core import Config, init, step
from eigengame.core.learning_rate import auto_constant, auto_gain, nesterov

CONFIG = Config(nesterov(0.9), center=True, moments=True, adaptive=1.0)


def rates(batches):
    state = init(jax.random.key(0), 2, batches[0].shape[1], CONFIG.optimizer, moments=True)
    found = []
    for batch in batches:
        state, _ = step(state, np.asarray(batch, np.float32), CONFIG)
        found.append(float(state.opt_state.hyperparams["learning_rate"]))
    return found


def test_the_rate_follows_the_top_variance_of_the_stream(rng):
    X = rng.standard_normal((40, 256, 10)) * np.linspace(5, 1, 10) + 30
    top = np.linalg.eigvalsh(np.cov(X.reshape(-1, 10).T))[-1]
    assert rates(X)[-1] == pytest.approx(1 / top / np.sqrt(1 + 39 / 50), rel=0.1)


def test_a_tiny_first_batch_does_not_set_the_rate_for_ever(rng):
    X = rng.standard_normal((5000, 4)) * [4, 2, 1, 1]
    parts = [X[:2], *np.split(X[2:4866], 19)]
    assert rates(parts)[-1] == pytest.approx(rates([X[:256], *np.split(X[2:4866], 19)])[-1], rel=0.1)


def test_scaling_the_data_scales_the_rate(rng):
    X = rng.standard_normal((5, 100, 4))
    np.testing.assert_allclose(rates(1e3 * X), 1e-6 * np.array(rates(X)), rtol=1e-4)


def test_constants_fall_with_the_batch_and_grow_without_momentum():
    assert auto_constant(32, 0.9) < auto_constant(256, 0.9) == auto_constant(1024, 0.9) == 1
    assert auto_gain(0.0) > auto_gain(0.9)


def test_constant_data_get_a_finite_rate():
    assert np.isfinite(rates([np.ones((5, 3))] * 2)).all()
