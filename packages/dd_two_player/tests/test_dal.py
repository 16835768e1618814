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


def square(x):
    return (x**2).sum()


def rate_of(optimizer, x, gradient=None):
    gradient = 2 * x if gradient is None else gradient
    return float(optimizer.update(gradient, optimizer.init(x), x)[1].rate)


@pytest.mark.parametrize(
    "x",
    [jnp.float16([300, 200]), jnp.float16([3e-5, 2e-5]), jnp.float32([3e-25, 1e-25]), jnp.float32([1e25])],
)
def test_the_rate_does_not_depend_on_the_size_of_the_gradient(x):
    """The Hessian is 2: the rate is 2/2, also where the squares of the gradient leave the type's range."""
    assert rate_of(dal(exact_hvp(square), learning_rate=0.1), x) == pytest.approx(1, rel=2e-3)


def test_finite_differences_of_half_precision_are_taken_in_single():
    x = jnp.ones(1000, jnp.bfloat16)
    assert rate_of(dal(finite_difference_hvp(square), learning_rate=0.1), x) == pytest.approx(1, rel=0.02)


def test_a_product_that_is_not_finite_is_no_flat_loss():
    x = jnp.ones(2)
    assert np.isnan(rate_of(dal(lambda p, v: v * jnp.nan, learning_rate=0.1), x))
    still = dal(exact_hvp(square), learning_rate=0.1, cap=float("inf"))
    assert still.update(0 * x, still.init(x), x)[0].tolist() == [0.0, 0.0]


def test_schedules_and_injected_rates():
    x, flat = jnp.ones(2), lambda p, v: v
    scheduled = dal(flat, learning_rate=lambda count: 0.5 / (count + 1), power=0.0)
    state = scheduled.init(x)
    for expected in (0.5, 0.25):
        updates, state = scheduled.update(x, state, x)
        np.testing.assert_allclose(updates, -expected * x)

    @jax.jit
    def injected(rate):
        optimizer = optax.inject_hyperparams(dal, static_args=("hvp",))(
            hvp=flat, learning_rate=rate, power=0.0
        )
        return optimizer.update(x, optimizer.init(x), x)[0]

    np.testing.assert_allclose(injected(0.25), -0.25 * x)


def test_hidden_parameters_are_refused():
    optimizer = optax.masked(
        dal(exact_hvp(lambda p: square(p["a"])), learning_rate=0.1), {"a": True, "b": False}
    )
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match="masked and multi_transform hide some of them"):
        optimizer.update(params, optimizer.init(params), params)
