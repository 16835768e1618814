"""Linear algebra over pytrees whose leaves carry players or samples on their first axis.

A set of k vectors is an array (k, d), or a pytree of arrays (k, ...) whose leaves together hold one
vector per player; a batch of n samples is an array (n, d) or a pytree of the same structure with
leaves (n, ...). Inner products sum over leaves, so a plain array is the one-leaf case.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

__all__ = [
    "as_floating",
    "batch_size",
    "checked_batch",
    "checked_products",
    "combine",
    "gram",
    "num_players",
    "responses",
    "row_norms",
    "scale_rows",
    "subtract",
]


def _rows(leaf: Array) -> Array:
    return leaf.reshape(leaf.shape[0], -1)


def as_floating(leaf: Any) -> Array:
    """Return a leaf in a floating-point type: integers and booleans become float32.

    Raises:
        ValueError: For complex numbers.
    """
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "iu":
        leaf = leaf.astype(np.float32)  # JAX wraps what 32 bits do not hold
    array = jnp.asarray(leaf)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise ValueError(f"Complex data not supported: got {array.dtype}; pass real numbers.")
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(jnp.float32)


def _matmul(a: Array, b: Array) -> Array:
    """Multiply in a floating-point type that holds both and accumulate in at least float32."""
    dtype = jnp.promote_types(as_floating(a).dtype, as_floating(b).dtype)
    return jnp.matmul(
        a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.promote_types(dtype, jnp.float32)
    )


def num_players(V: PyTree) -> int:
    """Return k, the common length of the first axes of the leaves of `V`."""
    return int(jax.tree.leaves(V)[0].shape[0])


def batch_size(X: PyTree) -> int:
    """Return n, the common length of the first axes of the leaves of `X`."""
    return num_players(X)


def checked_batch(V: PyTree, X: PyTree) -> PyTree:
    """Return the leaves of a batch in floating-point types.

    Raises:
        ValueError: If the batch has not the structure of the vectors, holds no sample, or leaves disagree on
            their number.
    """
    found, expected = str(jax.tree.structure(X)), str(jax.tree.structure(V))
    if found != expected:
        raise ValueError(
            f"The batch has the structure {found[:80]} and the vectors {expected[:80]}; "
            "both are arrays, or pytrees with the same entries."
        )
    X = jax.tree.map(as_floating, X)
    given = [x.shape for x in jax.tree.leaves(X)]
    allowed = [("n", *v.shape[1:]) for v in jax.tree.leaves(V)]
    rows = {shape[:1] for shape in given}
    if len(rows) != 1 or rows <= {(), (0,)} or [s[1:] for s in given] != [s[1:] for s in allowed]:
        raise ValueError(f"The batch has shapes {given}; pass {allowed}, with one number n > 0 of samples.")
    return X


def checked_products(V: PyTree, AV: PyTree) -> PyTree:
    """Return products with vectors in floating-point types.

    Raises:
        ValueError: If they have not the shapes of the vectors, to which they would be broadcast.
    """
    AV = jax.tree.map(as_floating, AV)
    found, expected = (jax.tree.map(jnp.shape, tree) for tree in (AV, V))
    if found != expected:
        raise ValueError(f"Products have shapes {found}; those of the vectors are {expected}.")
    return AV


def responses(V: PyTree, X: PyTree) -> Float[Array, "k n"]:
    """Return V X', the response of every player to every sample (players on rows).

    Example:
        >>> import jax.numpy as jnp
        >>> responses(jnp.eye(2), jnp.array([[3.0, 4.0]]))
        Array([[3.],
               [4.]], dtype=float32)
    """
    products = [
        _matmul(_rows(v), _rows(x).T) for v, x in zip(jax.tree.leaves(V), jax.tree.leaves(X), strict=True)
    ]
    return sum(products[1:], start=products[0])


def gram(V: PyTree, W: PyTree) -> Float[Array, "k l"]:
    """Return V W', all inner products between the vectors of `V` and those of `W`."""
    return responses(V, W)


def combine(M: Float[Array, "k n"], X: PyTree) -> PyTree:
    """Return M X, for each row of `M` the weighted sum of the entries of `X`, in the structure of `X`."""
    return jax.tree.map(lambda x: _matmul(M, _rows(x)).reshape(M.shape[0], *x.shape[1:]), X)


def row_norms(V: PyTree) -> Float[Array, " k"]:
    """Return the Euclidean norm of every vector."""
    # squares of the entries of long vectors vanish in half precision
    wide = (_rows(v).astype(jnp.promote_types(v.dtype, jnp.float32)) for v in jax.tree.leaves(V))
    squares = [jnp.sum(jnp.square(v), axis=1) for v in wide]
    return jnp.sqrt(sum(squares[1:], start=squares[0]))


def scale_rows(scale: Float[Array, " k"], V: PyTree) -> PyTree:
    """Return diag(scale) V."""
    return jax.tree.map(lambda v: scale.astype(v.dtype).reshape(-1, *[1] * (v.ndim - 1)) * v, V)


def subtract(V: PyTree, W: PyTree) -> PyTree:
    """Return V - W leaf by leaf."""
    return jax.tree.map(jnp.subtract, V, W)
