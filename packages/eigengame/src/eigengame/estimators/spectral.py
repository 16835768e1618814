"""Spectral embedding of a graph from its edges, on the scikit-learn contract."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array, csr_array, diags_array
from scipy.sparse.linalg import splu
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import StrOptions

from eigengame.core.directions import direction_from_products
from eigengame.core.ritz import locally_optimal, quality, starting_block
from eigengame.core.solver import initial_vectors, retract
from eigengame.estimators.settings import COUNT, POSITIVE
from eigengame.estimators.streams import real_numbers, validated
from eigengame.estimators.warn import warn_of_angles
from eigengame.exact import orient
from eigengame.laplacian import check_edges, laplacian_product, top_value_bound

__all__ = ["EigenGameSpectralEmbedding"]

_FACTORED = 2000  # nodes up to which a sparse factorisation takes seconds at worst, whatever the graph


def _inverse(laplacian: Any, degrees: NDArray) -> Callable[[NDArray], NDArray]:
    """Return an approximate inverse of the Laplacian; the nearer, the fewer passes long paths take."""
    if len(degrees) > _FACTORED:
        return lambda R: R / degrees
    matrix = (laplacian + diags_array(1e-8 * degrees)).tocsc()
    factor = splu(matrix, "MMD_AT_PLUS_A", diag_pivot_thresh=0, options={"SymmetricMode": True})
    return lambda R: np.asarray(factor.solve(R.T).T)


@partial(jax.jit, static_argnames=("num_steps", "batch_size"))
def embed(
    V: Float[Array, "k d"],
    edges: Array,
    bound: Array,
    learning_rate: Array,
    key: Array,
    num_steps: int,
    batch_size: int,
    weights: Array | None = None,
) -> tuple[Float[Array, "k d"], Array]:
    """Return V after `num_steps` mu steps on bound I - L, and the key to go on with.

    Args:
        V: Unit vectors on rows.
        edges: Endpoints, (m, 2).
        bound: lambda_star.
        learning_rate: Step size times lambda_star.
        key: Random key of the edge samples.
        num_steps: Steps.
        batch_size: Edges drawn per step; m uses all of them every time.
        weights: Weights of the edges, (m,); None is 1.
    """
    m = edges.shape[0]

    def one(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        V, key = carry
        key, draw = jax.random.split(key)
        rows = slice(None) if batch_size >= m else jax.random.randint(draw, (batch_size,), 0, m)
        sample = edges[rows]
        scale = m / sample.shape[0] * (1.0 if weights is None else weights[rows, None])
        AV = bound * V - laplacian_product(V, sample, scale)
        direction = direction_from_products("mu", V, AV)
        moved = optax.apply_updates(V, learning_rate / bound * direction)
        return (retract("mu", moved, V.shape[0]), key), None

    (V, key), _ = jax.lax.scan(one, (V, key), None, length=num_steps)
    return V, key


class EigenGameSpectralEmbedding(BaseEstimator):
    """Bottom-k eigenvectors of a graph's Laplacian, from its edges.

    A game on the edges gives the start; exact products with the Laplacian then improve all vectors at once
    until the estimated angle of each is below `tol`. They are preconditioned by the degrees, and up to 2000
    nodes by a factorisation of the Laplacian.

    Args:
        n_components: Number of vectors. The first is constant on every connected component.
        affinity: `"edges"`: X is a list of edges (m, 2), or (m, 3) with weights; an edge given twice counts
            twice. `"precomputed"`: X is a symmetric (n, n) array or sparse matrix of non-negative weights.
        normalized: Solve L v = lambda D v with the degrees D, as `sklearn.manifold.SpectralEmbedding`,
            instead of L v = lambda v.
        n_iter: Steps of the game.
        learning_rate: Step size times lambda_star.
        batch_size: Edges per step; None uses all.
        lambda_star: Upper bound of the largest eigenvalue; None takes 2 max degree.
        tol: Largest estimated angle in radians that counts as converged; what is not is said in a
            ConvergenceWarning.
        max_passes: Limit of the exact products after the game.
        random_state: Seed of initial vectors and samples.

    Attributes:
        embedding_: (number of nodes, n_components).
        eigenvalues_: Eigenvalues, ascending.
        angle_bounds_: Estimated bound of the angle to the true vector, in radians.
        n_passes_: Exact products taken.

    Source: Sec. 5.3 of Gemp et al. 2021b (arXiv 2102.04152) for the game.

    Example:
        >>> two_triangles = [[0, 1], [1, 2], [2, 0], [2, 3], [3, 4], [4, 5], [5, 3]]
        >>> found = EigenGameSpectralEmbedding(n_components=2, random_state=0).fit_transform(two_triangles)
        >>> sides = found[:, 1] > 0
        >>> bool(sides[0] == sides[1] == sides[2] != sides[3])
        True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [COUNT],
        "affinity": [StrOptions({"edges", "precomputed"})],
        "normalized": ["boolean"],
        "n_iter": [COUNT],
        "learning_rate": [POSITIVE],
        "batch_size": [COUNT, None],
        "lambda_star": [POSITIVE, None],
        "tol": [POSITIVE],
        "max_passes": [COUNT],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_components: int = 2,
        *,
        affinity: Literal["edges", "precomputed"] = "edges",
        normalized: bool = False,
        n_iter: int = 100,
        learning_rate: float = 1.0,
        batch_size: int | None = None,
        lambda_star: float | None = None,
        tol: float = 1e-3,
        max_passes: int = 1000,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.affinity = affinity
        self.normalized = normalized
        self.n_iter = n_iter
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.lambda_star = lambda_star
        self.tol = tol
        self.max_passes = max_passes
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: None = None) -> Self:
        """Embed the nodes of the graph.

        Args:
            X: Edges or affinity, see `affinity`.
            y: Ignored.

        Raises:
            ValueError: For malformed edges, a negative weight, an asymmetric affinity, or lambda_star below
                the largest eigenvalue of the Laplacian.
        """
        self._validate_params()
        edges, weights, num_nodes = self._edges(X)
        largest = float(weights.max())
        unit = 1.0 if not largest or 1e-6 < largest < 1e6 else 2.0 ** round(np.log2(largest))
        weights = weights / unit  # squares of these neither overflow nor vanish
        if self.n_components > num_nodes:
            raise ValueError(
                f"n_components={self.n_components} exceeds the number of nodes, n_features={num_nodes}."
            )
        k = int(self.n_components)
        pairs = (np.concatenate([edges[:, 0], edges[:, 1]]), np.concatenate([edges[:, 1], edges[:, 0]]))
        adjacency = csr_array((np.concatenate([weights, weights]), pairs), shape=(num_nodes, num_nodes))
        degrees = np.asarray(adjacency.sum(axis=0), np.float64).ravel()
        laplacian = diags_array(degrees) - adjacency
        star = None if self.lambda_star is None else float(self.lambda_star) / unit
        bound = top_value_bound(edges, num_nodes, star, weights)
        V = self._play(edges, weights, num_nodes, bound)
        safe = np.where(degrees > 0, degrees, 1.0)
        metric = safe if self.normalized else np.ones(num_nodes)

        def products(W: NDArray) -> tuple[NDArray, NDArray]:
            return -np.asarray((laplacian @ W.T).T), W * metric

        judge = partial(
            quality, k=k, noise=1e-13, size=2.0 if self.normalized else 2 * degrees.max(), zero_is_null=False
        )
        block, self.n_passes_ = locally_optimal(
            products,
            starting_block(V, products),
            judge,
            tol=float(self.tol),
            max_passes=int(self.max_passes),
            precondition=_inverse(laplacian, safe),
        )
        found = judge(block)
        self.eigenvalues_: NDArray = np.maximum(-block.values[:k], 0) * (1 if self.normalized else unit)
        length = np.sqrt(unit) if self.normalized else 1.0
        self.embedding_: Float[np.ndarray, "nodes k"] = orient(block.V[:k]).T / length
        self.angle_bounds_ = found.angles
        self.n_iter_ = int(self.n_iter)
        warn_of_angles("Vectors", found, float(self.tol), "raise max_passes, or ask for another n_components")
        return self

    def _play(self, edges: NDArray, weights: NDArray, num_nodes: int, bound: float) -> NDArray:
        """Return the vectors of a game on the edges; a few more than asked for."""
        players = min(int(self.n_components) + max(4, int(self.n_components) // 2), num_nodes)
        key = jax.random.key(int(check_random_state(self.random_state).randint(2**31 - 1)))
        dtype = jnp.result_type(float)  # double precision where JAX computes in it
        V, _ = embed(
            initial_vectors(key, players, num_nodes, dtype),
            jnp.asarray(edges),
            jnp.asarray(bound, dtype),
            jnp.asarray(self.learning_rate, dtype),
            key,
            int(self.n_iter),
            min(self.batch_size or len(edges), len(edges)),
            jnp.asarray(weights, dtype),
        )
        if not np.isfinite(np.asarray(V)).all():
            V = initial_vectors(key, players, num_nodes)
        return np.asarray(V, np.float64)

    def fit_transform(self, X: ArrayLike, y: None = None) -> Float[np.ndarray, "nodes k"]:
        """Embed the nodes and return `embedding_`."""
        return self.fit(X).embedding_

    def _edges(self, X: ArrayLike) -> tuple[NDArray[np.int32], NDArray, int]:
        if self.affinity == "edges":
            if hasattr(X, "toarray"):
                raise ValueError("X is a sparse matrix: pass affinity='precomputed', or its edges.")
            table = np.asarray(real_numbers(X))
            if table.dtype.kind == "O":
                table = table.astype(np.float64)
            if table.ndim != 2:
                raise ValueError(f"X has shape {table.shape}; pass one edge per row, shape (num_edges, 2).")
            weighted = table.ndim == 2 and table.shape[1] == 3
            self.n_features_in_ = 3 if weighted else 2
            given = table[:, 2].astype(np.float64) if weighted else np.ones(len(table))
            ends = table[:, :2] if weighted else table
            edges, num_nodes = check_edges(ends)
            return edges, self._checked(given)[ends[:, 0] != ends[:, 1]], num_nodes
        matrix = validated(self, X, accept_sparse="csr", ensure_min_samples=2)
        if matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"A precomputed affinity is square; got shape {matrix.shape}.")
        given = csr_array(matrix.astype(np.float64))
        rounding = 10 * float(np.finfo(matrix.dtype if matrix.dtype.kind == "f" else np.float64).eps)
        difference = abs(given - given.T)
        if (difference > rounding * abs(given).max()).multiply(difference > 1e-6 * abs(given)).nnz:
            raise ValueError("The affinity is not symmetric; pass (X + X.T) / 2.")
        table = coo_array((given + given.T) / 2)
        present = (table.row < table.col) & (table.data != 0)
        if not present.any():
            raise ValueError("The affinity has no weight off its diagonal: the Laplacian is zero.")
        edges, num_nodes = check_edges(
            np.stack([table.row[present], table.col[present]], axis=1), matrix.shape[0]
        )
        return edges, self._checked(np.asarray(table.data[present], np.float64)), num_nodes

    @staticmethod
    def _checked(weights: NDArray) -> NDArray:
        if not np.any(weights):
            raise ValueError("All weights of edges are zero: the Laplacian is zero.")
        if np.any(weights < 0):
            raise ValueError("Negative values in data: weights of edges must not be negative.")
        if not np.all(np.isfinite(weights)):
            raise ValueError("Weights of edges must be finite.")
        return weights

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self.affinity == "precomputed"
        tags.input_tags.positive_only = True
        tags.input_tags.sparse = self.affinity == "precomputed"
        return tags
