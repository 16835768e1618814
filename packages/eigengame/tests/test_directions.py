import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eigengame import core
from eigengame.core.directions import direction_from_products
from eigengame.core.values import utilities

DOUBLE = 1e-10  # golden arrays in float64, relative to the largest entry
SINGLE = 1e-4  # the same in float32

GOLDEN = [
    (core.mu_direction, {}, "mu_grads_mean"),
    (core.mu_direction, {"reduction": "sum"}, "mu_grads_sum"),
    (core.alpha_direction, {}, "alpha_grads_mean"),
    (core.gha_direction, {}, "gha_grads_mean"),
]
BATCH = [core.mu_direction, core.alpha_direction, core.gha_direction, core.oja_direction]


def random_problem(rng, k=4, d=9, n=13):
    V = rng.standard_normal((k, d))
    return V / np.linalg.norm(V, axis=1, keepdims=True), rng.standard_normal((n, d))


@pytest.mark.parametrize(("direction", "options", "name"), GOLDEN)
def test_golden_in_float64(x64, golden, direction, options, name):
    ours = direction(golden["V0"], golden["X"][0], **options)
    np.testing.assert_allclose(ours, golden[name], rtol=0, atol=DOUBLE * np.abs(golden[name]).max())


@pytest.mark.parametrize(("direction", "options", "name"), GOLDEN)
def test_golden_in_float32(golden, direction, options, name):
    ours = direction(golden["V0"], golden["X"][0], **options)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, golden[name], rtol=0, atol=SINGLE * np.abs(golden[name]).max())


def test_projected_mu_is_golden(x64, golden):
    projected = core.project_to_tangent(golden["V0"], core.mu_direction(golden["V0"], golden["X"][0]))
    np.testing.assert_allclose(projected, golden["mu_riemannian_mean"], atol=1e-10)


@pytest.mark.parametrize("n", [5, 40])  # below and above d: the two ways of forming S
def test_alpha_is_the_gradient_of_its_utility(x64, rng, n):
    V, X = random_problem(rng, n=n)

    def own_utility(v, i):
        # parents are fixed: only row i of the utilities is differentiated, with respect to v_i
        return utilities(jnp.asarray(V).at[i].set(v), X, "alpha")[i]

    gradient = jnp.stack([jax.grad(own_utility)(jnp.asarray(V)[i], i) for i in range(len(V))])
    np.testing.assert_allclose(core.alpha_direction(V, X), gradient, atol=1e-12)


@pytest.mark.parametrize("n", [5, 40])
def test_mu_is_the_gradient_of_its_utility_with_the_right_copy_held(x64, rng, n):
    V, X = random_problem(rng, n=n)
    C = X.T @ X / n

    def own_utility(v, i):
        deflated = v - jnp.asarray(V)[:i].T @ (jnp.asarray(V)[:i] @ v)
        return deflated @ C @ jax.lax.stop_gradient(v)

    gradient = jnp.stack([jax.grad(own_utility)(jnp.asarray(V)[i], i) for i in range(len(V))])
    np.testing.assert_allclose(core.mu_direction(V, X), gradient, atol=1e-12)


def test_with_exact_parents_mu_is_half_of_alpha(x64, rng):
    _, X = random_problem(rng, n=40)
    _, vectors = np.linalg.eigh(X.T @ X)
    V = vectors[:, ::-1][:, :4].T.copy()
    V[-1] = random_problem(rng)[0][0]  # the last player is anywhere, its parents are exact
    np.testing.assert_allclose(core.mu_direction(V, X), core.alpha_direction(V, X) / 2, atol=1e-12)


def test_gha_is_mu_minus_the_own_component(x64, rng):
    V, X = random_problem(rng)
    S = np.diag(V @ X.T @ X @ V.T) / len(X)
    np.testing.assert_allclose(core.gha_direction(V, X), core.mu_direction(V, X) - S[:, None] * V, atol=1e-12)


def test_player_one_agrees_between_mu_and_half_alpha(x64, rng):
    V, X = random_problem(rng)
    np.testing.assert_allclose(core.mu_direction(V, X)[0], core.alpha_direction(V, X)[0] / 2, atol=1e-13)


@pytest.mark.parametrize("direction", BATCH)
class TestEveryDirection:
    def test_row_order_of_the_batch_does_not_matter(self, x64, rng, direction):
        V, X = random_problem(rng)
        np.testing.assert_allclose(direction(V, X[::-1]), direction(V, X), atol=1e-12)

    def test_commutes_with_rotations_of_the_features(self, x64, rng, direction):
        V, X = random_problem(rng)
        Q = np.linalg.qr(rng.standard_normal((9, 9)))[0]
        np.testing.assert_allclose(direction(V @ Q, X @ Q), direction(V, X) @ Q, atol=1e-12)

    def test_parents_never_see_their_children(self, x64, rng, direction):
        V, X = random_problem(rng)
        np.testing.assert_allclose(direction(V, X)[:2], direction(V[:2], X), atol=1e-13)

    def test_leaves_of_a_pytree_act_as_concatenated_features(self, x64, rng, direction):
        V, X = random_problem(rng, d=10)
        split = lambda M: {"a": M[:, :4].reshape(-1, 2, 2), "b": M[:, 4:]}  # noqa: E731
        ours = direction(split(V), split(X))
        joined = np.concatenate([np.asarray(ours["a"]).reshape(4, -1), ours["b"]], axis=1)
        np.testing.assert_allclose(joined, direction(V, X), atol=1e-12)

    def test_an_all_zero_batch_gives_zero_without_nan(self, rng, direction):
        V, X = random_problem(rng)
        assert np.all(np.asarray(direction(V, 0 * X)) == 0)

    def test_products_with_the_covariance_give_the_same(self, x64, rng, direction):
        V, X = random_problem(rng)
        name = direction.__name__.removesuffix("_direction")
        ours = direction_from_products(name, jnp.asarray(V), jnp.asarray(V @ X.T @ X / len(X)))
        np.testing.assert_allclose(ours, direction(V, X), atol=1e-12)

    def test_unknown_reduction(self, rng, direction):
        V, X = random_problem(rng)
        with pytest.raises(ValueError, match=r"reduction is 'avg'; allowed are 'mean' .* and 'sum'"):
            direction(V, X, reduction="avg")


def test_mu_of_a_split_batch_averages_exactly(x64, rng):
    V, X = random_problem(rng, n=40)
    parts = np.mean([core.mu_direction(V, part) for part in np.split(X, 8)], axis=0)
    np.testing.assert_allclose(parts, core.mu_direction(V, X), atol=1e-12)


def test_alpha_of_a_split_batch_is_biased(x64, rng):
    V, X = random_problem(rng, n=40)
    parts = np.mean([core.alpha_direction(V, part) for part in np.split(X, 8)], axis=0)
    exact = core.alpha_direction(V, X)
    assert np.linalg.norm(parts - exact) > 0.1 * np.linalg.norm(exact)


def test_alpha_ignores_a_parent_without_variance(rng):
    V = np.eye(3)[[2, 0]]
    X = rng.standard_normal((6, 3)) * [1, 1, 0]
    assert np.isfinite(core.alpha_direction(V, X)).all()


def test_penalty_weights_and_mask(golden):
    np.testing.assert_array_equal(core.penalty_weights(4), golden["weights"])
    np.testing.assert_array_equal(core.parent_mask(4), golden["weights"] == -1)


def test_half_precision_inputs_accumulate_in_float32(rng):
    V, X = random_problem(rng, n=64)
    ours = core.mu_direction(jnp.asarray(V, jnp.bfloat16), jnp.asarray(X, jnp.bfloat16))
    assert ours.dtype == jnp.float32
    exact = core.mu_direction(V, X)
    assert np.linalg.norm(ours - exact) < 0.02 * np.linalg.norm(exact)  # bfloat16 has 8 bits


def test_alpha_of_an_operator_does_not_penalise_a_parent_without_value():
    """A parent in the null space: the child's direction is twice its own product, not 0 / 0."""
    direction = direction_from_products("alpha", jnp.eye(2), jnp.diag(jnp.array([0.0, 3.0])))
    np.testing.assert_array_equal(direction, [[0, 0], [0, 6]])
