"""Graph Laplacian products from edge lists, without an incidence or Laplacian matrix.

With one incidence row (+1, -1) per edge, L = X'X. Its bottom-k vectors are the top-k of
lambda_star I - L for any lambda_star at or above the largest eigenvalue; 2 max degree always is.
A minibatch of m edges gives the unbiased estimate L v ~ (|E| / m) sum over the sampled edges.

Source: Sec. 5.3 of Gemp et al. 2021b (spectral clustering of a social graph).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike, NDArray

__all__ = ["check_edges", "laplacian_product", "shifted_product", "top_value_bound"]


def check_edges(edges: ArrayLike, num_nodes: int | None = None) -> tuple[NDArray[np.int32], int]:
    """Return edges as an (m, 2) int32 array without self-loops, and the number of nodes.

    Raises:
        ValueError: For another shape, no edge, non-integers, or endpoints outside 0..num_nodes-1.

    Example:
        >>> check_edges([[0, 1], [1, 1]])[0]
        array([[0, 1]], dtype=int32)
    """
    array = np.asarray(edges)
    if array.ndim != 2 or array.shape[1] != 2 or array.shape[0] == 0:
        raise ValueError(f"edges has shape {array.shape}; pass one edge per row, shape (num_edges, 2).")
    if not np.issubdtype(array.dtype, np.integer):
        if array.dtype.kind != "f" or not np.array_equal(array, np.floor(array)):
            raise ValueError(f"edges has dtype {array.dtype} and fractional values; endpoints are integers.")
        if np.abs(array).max() >= 2 / np.finfo(array.dtype).eps:
            raise ValueError(
                f"edges has dtype {array.dtype}, which cannot tell such nodes apart; pass integers."
            )
        array = array.astype(np.int64)
    size = int(array.max()) + 1 if num_nodes is None else num_nodes
    if array.min() < 0 or array.max() >= size:
        raise ValueError(f"edge endpoints span {array.min()}..{array.max()}; allowed are 0..{size - 1}.")
    if size >= 2**31:
        raise ValueError(f"edges names node {size - 1}; number the nodes from 0, at most 2**31 - 1 of them.")
    kept = array[array[:, 0] != array[:, 1]]
    if kept.shape[0] == 0:
        raise ValueError("edges holds self-loops only; the Laplacian is zero.")
    return kept.astype(np.int32), size


@jax.jit
def laplacian_product(
    V: Float[Array, "k d"], edges: Int[Array, "m 2"], scale: float | Array = 1.0
) -> Float[Array, "k d"]:
    """Return V L, with L the sum over `edges` of (e_a - e_b)(e_a - e_b)', times `scale`.

    For m sampled out of |E| edges pass scale = |E| / m. Everything is NaN if an edge names a node outside
    0..d-1: compiled code cannot raise.

    Raises:
        ValueError: For arrays of other shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> laplacian_product(jnp.array([[1.0, 0.0]]), jnp.array([[0, 1]]))
        Array([[ 1., -1.]], dtype=float32)
    """
    if V.ndim != 2 or edges.ndim != 2 or edges.shape[1] != 2:
        raise ValueError(f"V has shape {V.shape} and edges {edges.shape}; pass (k, d) and (m, 2).")
    nodes = V.T
    difference = scale * (nodes[edges[:, 0]] - nodes[edges[:, 1]])
    ends = jnp.concatenate([edges[:, 0], edges[:, 1]])
    flows = jnp.concatenate([difference, -difference])
    product = jax.ops.segment_sum(flows, ends, num_segments=V.shape[1]).T
    return jnp.where(jnp.all((ends >= 0) & (ends < V.shape[1])), product, jnp.nan)


def shifted_product(
    edges: Int[Array, "m 2"], lambda_star: float, scale: float = 1.0
) -> Callable[[Float[Array, "k d"]], Float[Array, "k d"]]:
    """Return the map V -> lambda_star V - V L for `solver.step_operator`."""
    edges = jnp.asarray(edges)
    return lambda V: lambda_star * V - laplacian_product(V, edges, scale)


def top_value_bound(
    edges: Int[np.ndarray, "m 2"],
    num_nodes: int,
    lambda_star: float | None = None,
    weights: Float[np.ndarray, " m"] | None = None,
    iterations: int = 50,
) -> float:
    """Return lambda_star, by default 2 max degree, after checking it against power iteration.

    Raises:
        ValueError: If the given lambda_star is below the estimate of the largest eigenvalue.

    Example:
        >>> top_value_bound(np.array([[0, 1]]), 2)
        2.0
    """
    weights = np.ones(len(edges)) if weights is None else weights
    degree = np.bincount(edges.reshape(-1), np.repeat(weights, 2), num_nodes)
    bound = 2.0 * float(degree.max())
    if lambda_star is None:
        return bound
    v = np.random.default_rng(0).standard_normal(num_nodes)
    estimate, first, second = 0.0, edges[:, 0], edges[:, 1]
    for _ in range(iterations):
        v /= np.linalg.norm(v)
        flow = weights * (v[first] - v[second])
        v = np.asarray(np.bincount(first, flow, num_nodes) - np.bincount(second, flow, num_nodes), float)
        estimate = float(np.linalg.norm(v))
    if lambda_star < estimate * (1 - 1e-6):
        raise ValueError(
            f"lambda_star={lambda_star:g} is below the Laplacian's largest eigenvalue (at least "
            f"{estimate:g}): the order of the vectors would turn round. Use lambda_star >= {estimate:.4g}, "
            f"or leave it out for 2 * max degree = {bound:g}."
        )
    return float(lambda_star)
