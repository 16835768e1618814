import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dd_two_player.flows import integrate
from dd_two_player.principal_flow.flow import (
    gradient_descent,
    gradient_flow,
    igr_flow,
    integrate_principal_flow,
    principal_coefficient,
    quadratic_principal_flow,
    third_order_flow,
)

pytestmark = pytest.mark.usefixtures("x64")
HESSIAN, START = np.diag([2.0, 0.02]), np.array([-0.35, -0.2])


def quadratic(x):
    return (jnp.diag(jnp.asarray(HESSIAN)) * x**2).sum() / 2


def smooth(x):
    return jnp.sin(x[0] + 0.5 * x[1]) + 0.3 * x[0] ** 2 + 0.7 * x[1] ** 2 * jnp.exp(0.2 * x[0])


def test_coefficient_series_meets_the_formula():
    z = np.array([-1.001e-2, -0.999e-2, -1e-4, 1e-4, 0.999e-2, 1.001e-2])
    np.testing.assert_allclose(principal_coefficient(z).real, np.log1p(-z) / z, rtol=1e-13)


def test_coefficient_is_complex_beyond_one_and_stable_up_to_two():
    value = complex(principal_coefficient(1.5))
    assert value == pytest.approx((np.log(0.5) + 1j * np.pi) / 1.5)
    assert principal_coefficient(1.99).real < 0 < principal_coefficient(2.01).real
    assert abs(principal_coefficient(1 + 1e-60)) <= 100


@pytest.mark.parametrize(
    ("rate", "steps", "expected"),
    [(0.9, 10, (-0.037581, -0.166780)), (1.05, 5, (0.563679, -0.179864))],
)
def test_principal_flow_equals_gradient_descent_on_quadratics(rate, steps, expected):
    descent = gradient_descent(quadratic, rate, START, steps)[-1]
    flow = quadratic_principal_flow(HESSIAN, rate, START, [rate * steps])[0]
    adaptive = integrate_principal_flow(quadratic, rate, START, [rate * steps])[0]
    np.testing.assert_allclose(descent, expected, atol=1e-6)
    for path in (flow, adaptive):
        np.testing.assert_allclose(path.real, descent, atol=1e-8)
        np.testing.assert_allclose(path.imag, 0, atol=1e-8)
    between = quadratic_principal_flow(HESSIAN, rate, START, [rate * (steps - 0.5)])[0]
    assert abs(between.imag[0]) > 1e-3  # complex between steps, where z > 1


def test_the_coefficient_goes_on_to_both_sides_of_the_line_beyond_one():
    for z in (1.3, 2.0, 4.0):
        on, above, below = principal_coefficient([z, z + 1e-9j, z - 1e-9j])
        assert abs(above - on) < 1e-8
        assert abs(below - on) < 1e-8


@pytest.mark.parametrize("rate", [0.5, 0.9])
@pytest.mark.parametrize("loss", [lambda x: (1.5 * x**2 + 0.1 * x**4).sum(), lambda x: -3 * jnp.cos(x).sum()])
def test_a_step_that_overshoots_is_followed_where_the_loss_is_not_quadratic(loss, rate):
    errors = []
    for start in ([0.3], [0.1]):
        reached = gradient_descent(loss, rate, np.array(start), 1)[-1]
        flow = integrate_principal_flow(loss, rate, start, [rate])[0]
        errors.append(abs(flow.real - reached)[0] / start[0])
    assert errors[0] < 0.1
    assert errors[1] < 0.15 * errors[0]  # nine times smaller: the loss is quadratic to that order


@pytest.mark.parametrize(("rate", "steps"), [(0.9, 10), (1.05, 5)])
def test_igr_and_gradient_flow_converge_where_descent_oscillates(rate, steps):
    for field in (gradient_flow(quadratic), igr_flow(quadratic, rate)):
        end = integrate(field, jnp.asarray(START), [rate * steps])[0]
        assert abs(end[0]) < 1e-4


@pytest.mark.parametrize(("name", "order"), [("gradient", 2), ("igr", 3), ("principal", 3), ("third", 4)])
def test_local_order(name, order):
    start, sizes = np.array([0.4, -0.3]), [0.08, 0.04, 0.02]
    errors = []
    for h in sizes:
        reached = gradient_descent(smooth, h, start, 1)[-1]
        if name == "principal":
            flow = integrate_principal_flow(smooth, h, start, [h])[0].real
        else:
            fields = {
                "gradient": gradient_flow(smooth),
                "igr": igr_flow(smooth, h),
                "third": third_order_flow(smooth, h),
            }
            flow = integrate(fields[name], jnp.asarray(start), [h])[0]
        errors.append(np.linalg.norm(reached - flow))
    assert np.polyfit(np.log(sizes), np.log(errors), 1)[0] == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf")])
def test_rate_is_checked(rate):
    with pytest.raises(ValueError, match=r"learning_rate is .*; it must be positive and finite"):
        quadratic_principal_flow(HESSIAN, rate, START, [1.0])


def test_a_direction_at_the_singular_point_is_gone_at_once_and_the_others_go_on():
    """At ``h l = 1`` gradient descent is the oracle: one step makes that coordinate zero."""
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    for basis in (np.eye(2), turn):
        hessian = basis @ np.diag([2.0, 0.5]) @ basis.T
        path = quadratic_principal_flow(hessian, 0.5, START, 0.5 * np.arange(4))
        expected = [START]
        for _ in range(3):
            expected.append(expected[-1] - 0.5 * hessian @ expected[-1])
        np.testing.assert_allclose(path.real, expected, rtol=1e-9, atol=1e-14)
        np.testing.assert_allclose(path.imag, 0, atol=1e-12)


def test_what_overflows_in_one_direction_leaves_the_others_alone():
    path = quadratic_principal_flow(np.diag([1e4, 0.5, 3e4]), 1.0, np.array([1.0, 1.0, 0.0]), [0.0, 200.0])
    assert not np.isfinite(path[1, 0])
    np.testing.assert_allclose(path[1, 1:].real, [0.5**200, 0], rtol=1e-9)


def test_a_matrix_that_is_no_hessian_and_a_cap_that_is_none_are_refused():
    with pytest.raises(ValueError, match="the Hessian is not symmetric"):
        quadratic_principal_flow(np.array([[2.0, 1.0], [0.0, 3.0]]), 0.1, np.ones(2), [1.0])
    with pytest.raises(ValueError, match="cap is -3; it must be positive"):
        principal_coefficient(0.3, cap=-3)


def test_single_precision_is_followed_to_its_rounding():
    with jax.enable_x64(False):
        path = integrate_principal_flow(lambda x: (jnp.cosh(x) - 1).sum(), 0.1, [0.7, 0.3], [5.0])
    steps = gradient_descent(lambda x: (jnp.cosh(x) - 1).sum(), 0.1, [0.7, 0.3], 50)
    np.testing.assert_allclose(path[0].real, steps[-1], atol=1e-4)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: jnp.vdot(x, x),
        lambda x: (x * x.conj()).sum(),
        lambda x: (jnp.abs(x) ** 2).sum().astype(complex),
        lambda x: (x.real**2).sum(),
        jnp.linalg.norm,
    ],
)
def test_a_loss_that_has_no_continuation_is_refused(loss):
    """On ``|x|^2`` with rate 0.9, descent ends at 0.64 of its start; conjugation made 250 times as much."""
    with pytest.raises(ValueError, match="the loss is not analytic: it conjugates"):
        integrate_principal_flow(loss, 0.9, [0.3, 0.2], [1.8])
    path = integrate_principal_flow(lambda x: x @ x, 0.9, [0.3, 0.2], [1.8])
    np.testing.assert_allclose(path[0].real, [0.192, 0.128], rtol=1e-8)


@pytest.mark.parametrize("start", [0.5, np.ones((2, 2))])
def test_parameters_are_one_vector(start):
    with pytest.raises(ValueError, match="flatten the parameters to one vector"):
        integrate_principal_flow(lambda x: (x**2).sum(), 0.1, start, [0.1])


def test_complex_numbers_are_no_real_ones():
    """Half of them would be dropped, or climb: JAX returns the conjugate of steepest ascent."""
    at, modulus = np.array([1 + 1j]), lambda x: (abs(x) ** 2).sum()
    for call in (
        lambda: gradient_flow(modulus)(at),
        lambda: igr_flow(modulus, 0.1)(at),
        lambda: third_order_flow(modulus, 0.1)(at),
        lambda: gradient_descent(modulus, 0.1, at, 1),
        lambda: quadratic_principal_flow(np.eye(1) * 1j, 0.1, np.ones(1), [1.0]),
        lambda: quadratic_principal_flow(np.eye(1), 0.1, at, [1.0]),
    ):
        with pytest.raises(ValueError, match="is complex; split it into real and imaginary parts"):
            call()
