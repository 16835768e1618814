import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eigengame.core import (
    Auxiliary,
    Config,
    direction_from_products,
    gamma_direction,
    generalized_rayleigh,
    init,
    mu_direction,
    project_to_tangent,
    step_operator,
    update_auxiliary,
)
from eigengame.pencils import ica_products


def pencil(rng, d=7):
    A = rng.standard_normal((d, d))
    B = rng.standard_normal((d, 2 * d))
    return A + A.T, B @ B.T / d


def test_golden(x64, golden):
    V = golden["V0"]
    ours = gamma_direction(V, V @ golden["cca_A"], V @ golden["cca_B"])
    np.testing.assert_allclose(ours, golden["gamma_dir"], atol=1e-10)
    plain = gamma_direction(V, V @ golden["pca_C"], V)
    np.testing.assert_allclose(plain, golden["gamma_dir_identity_B"], atol=1e-10)


def test_with_identity_b_it_is_the_tangent_part_of_mu(x64, rng):
    X = rng.standard_normal((20, 6))
    V = rng.standard_normal((3, 6))
    V /= np.linalg.norm(V, axis=1, keepdims=True)
    expected = project_to_tangent(V, mu_direction(V, X))
    np.testing.assert_allclose(gamma_direction(V, V @ X.T @ X / 20, V), expected, atol=1e-12)


def test_always_tangent_also_with_stale_averages(x64, rng):
    A, B = pencil(rng)
    V = rng.standard_normal((3, 7))
    aux = Auxiliary(w=jnp.asarray(rng.standard_normal((3, 7))), beta=jnp.ones(3))
    direction = gamma_direction(V, V @ A, V @ B, aux)
    np.testing.assert_allclose(np.sum(V * direction, axis=1), 0, atol=1e-11)


def test_generalized_eigenvectors_are_at_rest(x64, rng):
    from scipy.linalg import eigh

    A, B = pencil(rng)
    values, vectors = eigh(A, B)
    V = vectors[:, ::-1].T[:2]
    V = V / np.linalg.norm(V, axis=1, keepdims=True)
    np.testing.assert_allclose(gamma_direction(V, V @ A, V @ B), 0, atol=1e-10)
    np.testing.assert_allclose(generalized_rayleigh(V, V @ A, V @ B), values[::-1][:2], rtol=1e-10)


def test_expected_direction_over_independent_batches_is_the_exact_one(x64, rng):
    # all pairs of single-sample batches: the mean over independent A and B equals the full direction
    X = rng.standard_normal((12, 5))
    V = rng.standard_normal((2, 5))
    A, B = X[:6].T @ X[:6] / 6, X[6:].T @ X[6:] / 6
    aux = Auxiliary(w=jnp.asarray(V @ B), beta=jnp.asarray(np.sum(V * (V @ B), axis=1)))
    single = lambda x: V @ np.outer(x, x)  # noqa: E731
    pairs = [gamma_direction(V, single(a), single(b), aux) for a in X[:6] for b in X[6:]]
    np.testing.assert_allclose(np.mean(pairs, axis=0), gamma_direction(V, V @ A, V @ B, aux), atol=1e-12)


def test_two_views_act_as_concatenated_features(x64, rng):
    A, B = pencil(rng)
    V = rng.standard_normal((3, 7))
    split = lambda M: (M[:, :3], M[:, 3:])  # noqa: E731
    ours = gamma_direction(split(V), split(V @ A), split(V @ B))
    np.testing.assert_allclose(np.concatenate(ours, axis=1), gamma_direction(V, V @ A, V @ B), atol=1e-12)


def test_auxiliary_moves_by_plain_sgd(x64, rng):
    V, BV = rng.standard_normal((2, 2, 4))
    start = Auxiliary(w=jnp.asarray(V), beta=jnp.zeros(2))
    moved = update_auxiliary(start, jnp.asarray(V), jnp.asarray(BV), 0.25)
    np.testing.assert_allclose(moved.w, 0.75 * V + 0.25 * BV, atol=1e-14)
    np.testing.assert_allclose(moved.beta, 0.25 * np.sum(V * BV, axis=1), atol=1e-14)


def test_rho_clips_a_parent_without_b_norm():
    V = jnp.eye(2)
    direction = gamma_direction(V, jnp.ones((2, 2)), jnp.zeros((2, 2)), rho=1e-3)
    assert bool(jnp.isfinite(direction).all())


def test_rayleigh_of_a_nonpositive_b_is_zero():
    assert generalized_rayleigh(jnp.eye(1), jnp.eye(1), -jnp.eye(1)) == pytest.approx(0)


@pytest.mark.parametrize("shape", [(1, 4), (2, 1, 4), (2, 3)])
def test_products_of_other_shapes_are_not_broadcast(rng, shape):
    V, wrong = np.eye(2, 4), rng.standard_normal(shape)
    state = init(jax.random.key(0), 2, 4, optax.sgd(0.1))
    for use in (
        lambda: gamma_direction(V, wrong, V),
        lambda: generalized_rayleigh(V, V, wrong),
        lambda: direction_from_products("mu", V, wrong),
        lambda: step_operator(state, lambda _: jnp.asarray(wrong), Config(optax.sgd(0.1))),
    ):
        with pytest.raises(ValueError, match=r"those of the vectors are \(2, 4\)"):
            use()


@pytest.mark.parametrize("kind", ["int8", "uint8", "float16", "bfloat16"])
def test_fourth_moments_of_narrow_types(rng, kind):
    """Squares of bytes wrapped round, those of half precision were infinite."""
    X = jnp.asarray(np.abs(rng.standard_normal((30, 3)) * 40 + 60).clip(0, 127) // 1, kind)
    X = X * 100 if kind == "float16" else X
    wide = np.asarray(X.astype(jnp.float32), np.float64)
    C = wide.T @ wide / 30
    expected = wide.T @ (wide * np.sum(wide**2, axis=1, keepdims=True)) / 30 - np.trace(C) * C - 2 * C @ C
    found = ica_products(jnp.eye(3), [X])[0]
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
