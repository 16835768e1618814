import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dd_two_player.principal_flow.adjusted_rate import dal, exact_hvp, finite_difference_hvp

VALUES = jnp.array([10.0, 1.0])


def loss(x):
    return (VALUES * x**2).sum() / 2


def run(optimizer, steps, start=(1.0, 1.0)):
    x, state, rates = jnp.asarray(start), None, []
    state = optimizer.init(x)
    for _ in range(steps):
        updates, state = optimizer.update(jax.grad(loss)(x), state, x)
        x = optax.apply_updates(x, updates)
        rates.append(float(state.rate))
    return x, rates


def test_rate_is_two_over_the_drift():
    x = jnp.array([1.0, 1.0])
    for power in (1.0, 0.5):
        _, rates = run(dal(exact_hvp(loss), learning_rate=0.1, power=power), 1, x)
        drift = np.linalg.norm(VALUES * VALUES) / np.linalg.norm(VALUES)
        assert rates[0] == pytest.approx(2 / drift**power, rel=1e-5)


def test_finite_difference_agrees_on_a_quadratic():
    v = jnp.array([0.3, -2.0])
    measured = finite_difference_hvp(loss)(jnp.array([1.0, 2.0]), v)
    np.testing.assert_allclose(measured, exact_hvp(loss)(jnp.zeros(2), v), rtol=1e-3)


def test_power_zero_is_fixed_and_computes_no_product():
    def forbidden(params, vector):
        raise AssertionError("a Hessian product was computed")

    _, rates = run(dal(forbidden, learning_rate=0.05, power=0.0), 3)
    assert rates == pytest.approx([0.05] * 3)


def test_window_honours_zero():
    _, rates = run(dal(exact_hvp(loss), learning_rate=0.01, start=0, stop=3), 5)
    assert [r == pytest.approx(0.01) for r in rates] == [True, False, False, True, True]


@pytest.mark.parametrize("hvp", [exact_hvp, finite_difference_hvp])
def test_zero_gradient_takes_the_cap_without_nan(hvp):
    x, rates = run(dal(hvp(loss), learning_rate=0.1, cap=3.0), 2, (0.0, 0.0))
    assert rates == [3.0, 3.0]
    np.testing.assert_array_equal(x, 0)


def test_converges_where_the_fixed_rate_diverges():
    fixed, _ = run(dal(exact_hvp(loss), learning_rate=0.25, power=0.0), 60)
    adjusted, _ = run(dal(exact_hvp(loss), learning_rate=0.25), 60)
    assert float(loss(fixed)) > 1e6
    assert float(loss(adjusted)) <= float(loss(jnp.ones(2)))


def test_extra_arguments_reach_the_product():
    def batch_loss(x, batch):
        return (batch * x**2).sum() / 2

    optimizer, x, batch = dal(exact_hvp(batch_loss), learning_rate=0.1), jnp.ones(2), jnp.array([4.0, 4.0])
    updates, _ = optimizer.update(batch * x, optimizer.init(x), x, batch=batch)
    np.testing.assert_allclose(updates, -0.5 * 4.0, rtol=1e-5)


@pytest.mark.parametrize("bad", [{"cap": 0.0}, {"power": -1.0}, {"learning_rate": 0.0}])
def test_bad_input(bad):
    with pytest.raises(ValueError, match="DAL needs learning_rate > 0, power >= 0 and cap > 0"):
        dal(exact_hvp(loss), **{"learning_rate": 0.1} | bad)


def test_parameters_are_required():
    optimizer = dal(exact_hvp(loss), learning_rate=0.1)
    with pytest.raises(ValueError, match="DAL needs the parameters"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))
