import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eigengame import laplacian
from eigengame.core import Config, init, step_operator
from eigengame.metrics import subspace_distance

EDGES = np.array([[0, 1], [1, 2], [2, 0], [2, 3], [3, 4], [4, 5], [5, 3]], dtype=np.int32)


def dense(edges, num_nodes):
    X = np.zeros((len(edges), num_nodes))
    X[np.arange(len(edges)), edges[:, 0]] = 1
    X[np.arange(len(edges)), edges[:, 1]] = -1
    return X.T @ X


def test_product_against_the_incidence_matrix(x64, rng):
    V = rng.standard_normal((3, 6))
    ours = laplacian.laplacian_product(jnp.asarray(V), jnp.asarray(EDGES))
    np.testing.assert_allclose(ours, V @ dense(EDGES, 6), atol=1e-12)


def test_minibatches_of_edges_average_to_the_laplacian(x64, rng):
    V = jnp.asarray(rng.standard_normal((2, 6)))
    single = [laplacian.laplacian_product(V, jnp.asarray(edge[None]), scale=len(EDGES)) for edge in EDGES]
    np.testing.assert_allclose(np.mean(single, axis=0), V @ dense(EDGES, 6), atol=1e-12)


def test_bottom_vectors_by_the_shifted_operator():
    bound = laplacian.top_value_bound(EDGES, 6)
    product = laplacian.shifted_product(EDGES, bound)
    config = Config(optax.sgd(1.0))
    state = init(jax.random.key(0), 2, 6, config.optimizer)
    for _ in range(300):
        state, _ = step_operator(state, product, config)
    _, vectors = np.linalg.eigh(dense(EDGES, 6))
    assert subspace_distance(state.V, vectors[:, :2].T) < 1e-6


def test_default_bound_is_twice_the_largest_degree_and_above_the_top():
    assert laplacian.top_value_bound(EDGES, 6) == 6.0
    assert np.linalg.eigvalsh(dense(EDGES, 6)).max() < 6.0


def test_a_bound_below_the_top_value_is_refused():
    with pytest.raises(ValueError, match=r"lambda_star=1 is below the Laplacian's largest eigenvalue .* Use"):
        laplacian.top_value_bound(EDGES, 6, lambda_star=1.0)


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (np.zeros((2, 3), int), r"edges has shape \(2, 3\); pass one edge per row"),
        (np.zeros((0, 2), int), r"edges has shape \(0, 2\)"),
        ([[0.5, 1.0]], "fractional values; endpoints are integers"),
        ([[-1, 2]], r"span -1\.\.2; allowed are 0\.\.2"),
        ([[1, 1]], "self-loops only"),
    ],
)
def test_bad_edges(edges, message):
    with pytest.raises(ValueError, match=message):
        laplacian.check_edges(edges)


@pytest.mark.parametrize("edge", [[0, 6], [-1, 2], [7, 9]])
def test_a_node_that_the_vectors_have_not_gives_no_number(edge):
    """Indices were clipped to the last node, or left out."""
    product = laplacian.laplacian_product(jnp.ones((1, 6)), jnp.asarray([[0, 1], edge]))
    assert np.isnan(product).all()


def test_edges_on_columns_are_refused():
    with pytest.raises(ValueError, match=r"edges \(2, 7\); pass \(k, d\) and \(m, 2\)"):
        laplacian.laplacian_product(jnp.ones((1, 6)), EDGES.T)
