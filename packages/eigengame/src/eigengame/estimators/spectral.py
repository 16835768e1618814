"""Spectral embedding of a graph from its edges, on the scikit-learn contract."""

from functools import partial
from numbers import Integral
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data

from eigengame.core.directions import direction_from_products
from eigengame.core.solver import initial_vectors, retract
from eigengame.exact import orient
from eigengame.laplacian import check_edges, laplacian_product, top_value_bound

__all__ = ["EigenGameSpectralEmbedding"]


@partial(jax.jit, static_argnames=("num_steps", "batch_size"))
def embed(
    V: Float[Array, "k d"],
    edges: Array,
    bound: Array,
    learning_rate: Array,
    key: Array,
    num_steps: int,
    batch_size: int,
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
    """
    m = edges.shape[0]

    def one(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        V, key = carry
        key, draw = jax.random.split(key)
        sample = edges if batch_size >= m else edges[jax.random.randint(draw, (batch_size,), 0, m)]
        AV = bound * V - laplacian_product(V, sample, m / sample.shape[0])
        direction = direction_from_products("mu", V, AV)
        moved = optax.apply_updates(V, learning_rate / bound * direction)
        return (retract("mu", moved, V.shape[0]), key), None

    (V, key), _ = jax.lax.scan(one, (V, key), None, length=num_steps)
    return V, key


class EigenGameSpectralEmbedding(BaseEstimator):
    """Bottom-k eigenvectors of a graph's Laplacian, from its edges.

    Args:
        n_components: Number of vectors. The first is constant on every connected component.
        affinity: `"edges"`: X is a list of edges (m, 2) of an unweighted graph; `"precomputed"`: X is a
            symmetric (n, n) array or sparse matrix whose non-zero off-diagonal entries are edges.
        n_iter: Steps.
        learning_rate: Step size times lambda_star.
        batch_size: Edges per step; None uses all.
        lambda_star: Upper bound of the largest eigenvalue; None takes 2 max degree.
        random_state: Seed of initial vectors and samples.

    Attributes:
        embedding_: (number of nodes, n_components).
        eigenvalues_: Rayleigh quotients of the Laplacian, ascending for a converged fit.

    Source: Sec. 5.3 of Gemp et al. 2021b (arXiv 2102.04152).

    Example:
        >>> two_triangles = [[0, 1], [1, 2], [2, 0], [2, 3], [3, 4], [4, 5], [5, 3]]
        >>> found = EigenGameSpectralEmbedding(n_components=2, random_state=0).fit_transform(two_triangles)
        >>> sides = found[:, 1] > 0
        >>> bool(sides[0] == sides[1] == sides[2] != sides[3])
        True
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        affinity: Literal["edges", "precomputed"] = "edges",
        n_iter: int = 1000,
        learning_rate: float = 1.0,
        batch_size: int | None = None,
        lambda_star: float | None = None,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.affinity = affinity
        self.n_iter = n_iter
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.lambda_star = lambda_star
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: None = None) -> Self:
        """Embed the nodes of the graph.

        Args:
            X: Edges or affinity, see `affinity`.
            y: Ignored.

        Raises:
            ValueError: For malformed edges, an asymmetric affinity, or lambda_star below the largest
                eigenvalue of the Laplacian.
        """
        for name in ("n_components", "n_iter"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be an integer of at least 1.")
        edges, num_nodes = self._edges(X)
        if self.n_components > num_nodes:
            raise ValueError(
                f"n_components={self.n_components} exceeds the number of nodes, n_features={num_nodes}."
            )
        bound = top_value_bound(edges, num_nodes, self.lambda_star)
        key = jax.random.key(int(check_random_state(self.random_state).randint(2**31 - 1)))
        device_edges = jnp.asarray(edges)
        V, _ = embed(
            initial_vectors(key, int(self.n_components), num_nodes),
            device_edges,
            jnp.float32(bound),
            jnp.float32(self.learning_rate),
            key,
            int(self.n_iter),
            min(self.batch_size or len(edges), len(edges)),
        )
        flow = np.asarray(laplacian_product(V, device_edges))
        self.eigenvalues_: NDArray = np.sum(np.asarray(V) * flow, axis=1)
        self.embedding_: Float[np.ndarray, "nodes k"] = orient(np.asarray(V)).T
        self.n_iter_ = int(self.n_iter)
        return self

    def fit_transform(self, X: ArrayLike, y: None = None) -> Float[np.ndarray, "nodes k"]:
        """Embed the nodes and return `embedding_`."""
        return self.fit(X).embedding_

    def _edges(self, X: ArrayLike) -> tuple[NDArray[np.int32], int]:
        if self.affinity == "edges":
            self.n_features_in_ = 2
            return check_edges(X)
        if self.affinity != "precomputed":
            raise ValueError(f"affinity is {self.affinity!r}; allowed are 'edges' and 'precomputed'.")
        matrix = validate_data(self, X, accept_sparse="csr", dtype="numeric", ensure_min_samples=2)
        if matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"A precomputed affinity is square; got shape {matrix.shape}.")
        table = coo_array(matrix)
        difference = abs(table - table.T)
        if difference.nnz and difference.max() > 1e-8 * abs(table).max():
            raise ValueError("The affinity is not symmetric; pass (X + X.T) / 2.")
        upper = table.row < table.col
        present = upper & (table.data != 0)
        return check_edges(np.stack([table.row[present], table.col[present]], axis=1), matrix.shape[0])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self.affinity == "precomputed"
        tags.input_tags.sparse = self.affinity == "precomputed"
        return tags
