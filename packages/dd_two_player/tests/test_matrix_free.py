"""The velocity from Hessian-vector products against the dense eigendecomposition of a small network."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from dd_two_player.principal_flow import principal_coefficient, principal_velocity, stability_coefficients

pytestmark = pytest.mark.usefixtures("x64")


def dense(hessian, gradient, rate, cap=100.0):
    values, vectors = np.linalg.eigh(hessian)
    return vectors @ (principal_coefficient(rate * values, cap) * (vectors.T @ gradient))


@pytest.fixture
def network():
    """Gradient and Hessian of a tanh network of 33 parameters on random data."""
    keys = jax.random.split(jax.random.key(0), 4)
    x, y = jax.random.normal(keys[0], (12, 4)), jax.random.normal(keys[1], (12, 2))
    start = {
        "a": jax.random.normal(keys[2], (4, 5)),
        "b": jax.random.normal(keys[3], (5, 2)),
        "c": jnp.ones(3),
    }
    flat, unravel = ravel_pytree(start)

    def loss(v):
        p = unravel(v)
        return ((jnp.tanh(x @ p["a"]) @ p["b"] - y) ** 2).mean() + (p["c"] ** 4).sum()

    return np.asarray(jax.grad(loss)(flat)), np.asarray(jax.hessian(loss)(flat))


@pytest.mark.parametrize("scaled", [0.3, 1.5, 2.5])
def test_all_products_give_the_dense_velocity(network, scaled):
    """Below and above one, where ``c`` is real and complex, and beyond the edge of stability."""
    gradient, hessian = network
    rate = scaled / np.linalg.eigvalsh(hessian)[-1]
    found = principal_velocity(gradient, lambda v: hessian @ v, rate, num_products=len(gradient))
    expected = dense(hessian, gradient, rate)
    np.testing.assert_allclose(found, expected, atol=1e-9 * np.abs(expected).max())
    assert (np.abs(found.imag).max() > 1e-6) == (scaled > 1)


def test_few_products_are_enough_at_small_rates(network):
    gradient, hessian = network
    rate = 0.5 / np.linalg.eigvalsh(hessian)[-1]
    expected = dense(hessian, gradient, rate)
    errors = [
        np.linalg.norm(principal_velocity(gradient, lambda v: hessian @ v, rate, num_products=n) - expected)
        / np.linalg.norm(expected)
        for n in (1, 3, 6, 9)
    ]
    assert errors[0] > 1e-2
    assert all(b < a / 5 for a, b in pairwise(errors))


def test_the_singular_point_is_capped_and_stops_early():
    """``h l = 1`` in one direction; three different eigenvalues need three products."""
    values, calls = np.array([4.0, 4.0, 1.0, 0.5]), []

    def product(v):
        calls.append(1)
        return values * v

    found = principal_velocity(np.array([1.0, -2.0, 3.0, 0.5]), product, 0.25, num_products=4, cap=7.0)
    factors = np.array([-7.0, -7.0, np.log(0.75) / 0.25, np.log(0.875) / 0.125])
    np.testing.assert_allclose(found, factors * [1.0, -2.0, 3.0, 0.5], rtol=1e-9)
    assert len(calls) == 3


def test_no_gradient_no_velocity_and_bad_input():
    assert principal_velocity(np.zeros(3), lambda v: v, 0.1).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="learning_rate is -1; it must be positive and finite"):
        principal_velocity(np.ones(3), lambda v: v, -1)
    with pytest.raises(ValueError, match="a Hessian-vector product is not finite"):
        principal_velocity(np.ones(3), lambda v: v * np.nan, 0.1)


def test_a_product_may_write_into_its_argument():
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((6, 6))
    matrix = matrix @ matrix.T / 6
    gradient = rng.standard_normal(6)

    def product(v):
        found = matrix @ v
        v[:] = 0
        return found

    values, vectors = np.linalg.eigh(matrix)
    dense = vectors @ (principal_coefficient(0.1 * values) * (vectors.T @ gradient))
    np.testing.assert_allclose(principal_velocity(gradient, product, 0.1), dense, rtol=1e-10)


@pytest.mark.parametrize("gradient", [np.ones(3) + 1j, np.ones((3, 1)), 2.0, np.array([np.nan, 1.0, 1.0])])
def test_a_gradient_is_a_finite_real_vector(gradient):
    for tool in (
        lambda: principal_velocity(gradient, lambda v: v, 0.1),
        lambda: stability_coefficients(
            gradient, lambda v: v, 0.1, num_directions=1, generator=np.random.default_rng(0)
        ),
    ):
        with pytest.raises(ValueError, match="it must be a finite real vector"):
            tool()


@pytest.mark.parametrize("product", [lambda v: v[:, None], lambda v: v + 1j, lambda v: 3.0])
def test_a_product_is_like_the_gradient(product):
    with pytest.raises(
        ValueError, match=r"a Hessian-vector product is .* of the shape \(3,\) of the gradient"
    ):
        principal_velocity(np.ones(3), product, 0.1)
