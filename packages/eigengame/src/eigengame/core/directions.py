"""Ascent directions of the players: mu-EigenGame, alpha-EigenGame, generalised Hebbian, Oja.

Notation: V (k, d) has one unit vector per row, X (n, d) one sample per row, Y = V X' the responses,
G = Y X and S = Y Y'. Player i is penalised by its parents j < i only. All directions are ASCENT
directions; an optax optimiser descends and is fed the negated direction. `reduction="mean"` divides by
n, as the papers' algorithms do; `"sum"` does not, as the published pseudo-code does.

Everything is computed for all players at once by matrix products; no array of size k**2 * d exists.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from eigengame.core.trees import (
    batch_size,
    checked_batch,
    checked_products,
    combine,
    gram,
    num_players,
    responses,
    scale_rows,
    subtract,
)

__all__ = [
    "Algorithm",
    "Reduction",
    "alpha_direction",
    "check_reduction",
    "direction_and_gram",
    "direction_from_products",
    "direction_from_responses",
    "gha_direction",
    "gram_of_responses",
    "mu_direction",
    "oja_direction",
    "parent_mask",
    "penalty_weights",
    "project_to_tangent",
    "safe_reciprocal",
]

Algorithm = Literal["mu", "alpha", "gha", "oja"]
Reduction = Literal["mean", "sum"]

_FLOOR = 1e-12  # of the largest S_jj: below it a parent carries no variance and its penalty is dropped


def penalty_weights(k: int) -> Float[Array, "k k"]:
    """Return the matrix of the pseudo-code: 1 on the diagonal, -1 strictly below, 0 above.

    Example:
        >>> penalty_weights(2)
        Array([[ 1.,  0.],
               [-1.,  1.]], dtype=float32)
    """
    return 2 * jnp.eye(k) - jnp.tril(jnp.ones((k, k)))


def parent_mask(k: int) -> Float[Array, "k k"]:
    """Return 1 where column j is a parent of row i (j < i), else 0."""
    return jnp.tril(jnp.ones((k, k)), -1)


def safe_reciprocal(values: Float[Array, " k"]) -> Float[Array, " k"]:
    """Return 1 / values, and 0 where a value is below 1e-12 of the largest."""
    positive = values > _FLOOR * jnp.max(values)
    return jnp.where(positive, 1 / jnp.where(positive, values, 1), 0)


def direction_from_responses(
    algorithm: Algorithm,
    V: PyTree,
    X: PyTree,
    Y: Float[Array, "k n"],
    Y_own: Float[Array, "own n"],
    S: Float[Array, "own k"],
    diagonal: Float[Array, " k"],
    weights: Float[Array, "own k"],
) -> PyTree:
    """Return the summed direction of the `own` players, given the responses of all k.

    This is the form that the sharded path shares with the single-device functions: there `own` is the
    block of players of one device, here it is all of them.

    Args:
        algorithm: Which update.
        V: All k vectors.
        X: Batch.
        Y: Responses of all players.
        Y_own: Responses of the own players.
        S: Y_own Y', for alpha summed over the whole global batch.
        diagonal: Diagonal of the full S (read by alpha only).
        weights: Own rows of `penalty_weights`.
    """
    S = S.astype(Y.dtype)
    if algorithm == "mu":
        return subtract(combine(Y_own, X), combine((weights < 0) * S, V))
    if algorithm == "alpha":
        mixing = (weights < 0) * S * safe_reciprocal(diagonal)[None, :]
        return combine(2 * (Y_own - mixing @ Y), X)
    if algorithm == "gha":
        return subtract(combine(Y_own, X), combine(jnp.abs(weights) * S, V))
    if algorithm == "oja":
        return combine(Y_own, X)
    raise ValueError(f"Unknown algorithm {algorithm!r}. Allowed: 'mu', 'alpha', 'gha', 'oja'.")


def direction_from_products(algorithm: Algorithm, V: PyTree, AV: PyTree) -> PyTree:
    """Return the direction for the symmetric operator A, given its products A v_i with all vectors.

    Same formulas as for a batch, with G = A V and S = G V'. For Hessians, kernels and graphs.

    Example:
        >>> import jax.numpy as jnp
        >>> A = jnp.diag(jnp.array([2.0, 1.0]))
        >>> direction_from_products("mu", jnp.eye(2), A)
        Array([[2., 0.],
               [0., 1.]], dtype=float32)
    """
    AV = checked_products(V, AV)
    if algorithm == "oja":
        return AV
    S = gram(AV, V)
    below = jnp.tril(S, -1)
    if algorithm == "mu":
        return subtract(AV, combine(below, V))
    if algorithm == "gha":
        return subtract(AV, combine(jnp.tril(S), V))
    if algorithm == "alpha":
        mixing = below * safe_reciprocal(jnp.diagonal(S))[None, :]
        return jax.tree.map(lambda g: 2 * g, subtract(AV, combine(mixing, AV)))
    raise ValueError(f"Unknown algorithm {algorithm!r}. Allowed: 'mu', 'alpha', 'gha', 'oja'.")


def gram_of_responses(V: PyTree, X: PyTree, Y: Float[Array, "k n"]) -> Float[Array, "k k"]:
    """Return S = Y Y', computed as G V' instead where the batch has more samples than dimensions.

    G = Y X is needed anyway, and the compiler computes the repeated product once.
    """
    dim = sum(v.size for v in jax.tree.leaves(V)) // num_players(V)
    return jnp.matmul(Y, Y.T) if batch_size(X) <= dim else gram(combine(Y, X), V)


def direction_and_gram(
    algorithm: Algorithm, V: PyTree, X: PyTree, weights: Float[Array, "k k"] | None = None
) -> tuple[PyTree, Float[Array, "k k"]]:
    """Return the summed direction of all players and S = Y Y' on one device."""
    weights = penalty_weights(num_players(V)) if weights is None else weights
    Y = responses(V, X)
    S = gram_of_responses(V, X, Y)
    return direction_from_responses(algorithm, V, X, Y, Y, S, jnp.diagonal(S), weights), S


def _batch_direction(
    algorithm: Algorithm, V: PyTree, X: PyTree, reduction: Reduction, weights: Float[Array, "k k"] | None
) -> PyTree:
    check_reduction(reduction)
    V = jax.tree.map(jnp.asarray, V)
    X = checked_batch(V, X)
    direction, _ = direction_and_gram(algorithm, V, X, weights)
    if reduction == "sum":
        return direction
    return jax.tree.map(lambda g: g / batch_size(X), direction)


def check_reduction(reduction: str) -> None:
    """Refuse anything but "mean" and "sum"."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}; allowed are 'mean' (divide by n) and 'sum'.")


def mu_direction(
    V: PyTree,
    X: PyTree,
    *,
    reduction: Reduction = "mean",
    weights: Float[Array, "k k"] | None = None,
) -> PyTree:
    """Return the mu-EigenGame direction G - tril(S, -1) V.

    Linear in the sample covariance, hence unbiased under minibatching. It is the gradient of the mu
    utility with the right-hand copy of v_i held fixed.

    Args:
        V: Unit vectors on rows, (k, d) or a pytree of leaves (k, ...).
        X: Samples on rows, (n, d) or a pytree of leaves (n, ...).
        reduction: `"mean"` divides by n, `"sum"` does not.
        weights: Penalty matrix; default `penalty_weights(k)`. Negative entries mark parents.

    Source: Algorithm 1 of Gemp et al. 2021b (EigenGame Unloaded, arXiv 2102.04152).

    Example:
        >>> import jax.numpy as jnp
        >>> mu_direction(jnp.eye(2), jnp.array([[2.0, 1.0]]))
        Array([[4., 2.],
               [0., 1.]], dtype=float32)
    """
    return _batch_direction("mu", V, X, reduction, weights)


def alpha_direction(
    V: PyTree,
    X: PyTree,
    *,
    reduction: Reduction = "mean",
    weights: Float[Array, "k k"] | None = None,
) -> PyTree:
    """Return the alpha-EigenGame direction 2 (Y - L Y) X with L = tril(S / diag(S), -1).

    The exact gradient of the alpha utility, factor 2 included. The division by S_jj makes it biased
    under minibatching; a parent without variance (S_jj below 1e-12 of the largest) is not penalised.

    Args:
        V: Unit vectors on rows, (k, d) or a pytree of leaves (k, ...).
        X: Samples on rows, (n, d) or a pytree of leaves (n, ...).
        reduction: `"mean"` divides by n, `"sum"` does not.
        weights: Penalty matrix; default `penalty_weights(k)`.

    Source: Gemp et al. 2021a (arXiv 2010.00554), Algorithm 1.

    Example:
        >>> import jax.numpy as jnp
        >>> alpha_direction(jnp.eye(2), jnp.array([[2.0, 1.0]]))
        Array([[8., 4.],
               [0., 0.]], dtype=float32)
    """
    return _batch_direction("alpha", V, X, reduction, weights)


def gha_direction(
    V: PyTree,
    X: PyTree,
    *,
    reduction: Reduction = "mean",
    weights: Float[Array, "k k"] | None = None,
) -> PyTree:
    """Return Sanger's generalised Hebbian direction G - tril(S) V.

    Equals the mu direction minus S_ii v_i. Rows are afterwards clipped into the unit ball, not
    normalised (`eigengame.core.solver.retract`).

    Args:
        V: Vectors on rows, (k, d) or a pytree of leaves (k, ...).
        X: Samples on rows, (n, d) or a pytree of leaves (n, ...).
        reduction: `"mean"` divides by n, `"sum"` does not.
        weights: Penalty matrix; default `penalty_weights(k)`.

    Source: Sanger 1989; as baseline in Sec. 5 of Gemp et al. 2021b.

    Example:
        >>> import jax.numpy as jnp
        >>> gha_direction(jnp.eye(2), jnp.array([[2.0, 1.0]]))
        Array([[0., 2.],
               [0., 0.]], dtype=float32)
    """
    return _batch_direction("gha", V, X, reduction, weights)


def oja_direction(V: PyTree, X: PyTree, *, reduction: Reduction = "mean") -> PyTree:
    """Return Oja's direction G; the step is followed by a QR factorisation of V.

    Args:
        V: Orthonormal vectors on rows, (k, d) or a pytree of leaves (k, ...).
        X: Samples on rows, (n, d) or a pytree of leaves (n, ...).
        reduction: `"mean"` divides by n, `"sum"` does not.

    Source: Oja 1982 in the block form with QR; baseline in Sec. 5 of Gemp et al. 2021b.

    Example:
        >>> import jax.numpy as jnp
        >>> oja_direction(jnp.eye(2), jnp.array([[2.0, 1.0]]))
        Array([[4., 2.],
               [2., 1.]], dtype=float32)
    """
    return _batch_direction("oja", V, X, reduction, None)


def project_to_tangent(V: PyTree, direction: PyTree) -> PyTree:
    """Return g_i - <g_i, v_i> v_i, the part of each direction that is tangent to the unit sphere.

    Example:
        >>> import jax.numpy as jnp
        >>> project_to_tangent(jnp.array([[1.0, 0.0]]), jnp.array([[3.0, 4.0]]))
        Array([[0., 4.]], dtype=float32)
    """
    k = num_players(V)
    leaves = zip(jax.tree.leaves(direction), jax.tree.leaves(V), strict=True)
    radial = sum(jnp.sum((g * v).reshape(k, -1), axis=1) for g, v in leaves)
    return subtract(direction, scale_rows(jnp.asarray(radial), V))
