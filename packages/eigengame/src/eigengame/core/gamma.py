"""gamma-EigenGame: top eigenvectors of a pencil, A v = lambda B v, from minibatches.

With a_i = v_i'A v_i and b_i = v_i'B v_i the direction of player i is reward - penalty, where::

    reward_i  = b_i A v_i - a_i B v_i
    penalty_i = sum_{j<i} (v_i'A v_j) / max(beta_j, rho) * (b_i w_j - (v_i'w_j) B v_i).

Deterministic: w_j = B v_j and beta_j = v_j'B v_j. Stochastic: w_j and beta_j are running averages,
updated after each step by plain SGD. The direction is always tangent to the sphere. It multiplies A
by B, so it is unbiased only when the two are estimated from independent batches.

A child can copy a parent whose value is not positive: penalties then reward the copy. Players with
generalised Rayleigh quotient <= 0 are therefore reported as unresolved by the estimators.

Source: Gemp et al. 2022 (arXiv 2206.04993), Algorithm 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from eigengame.core.trees import as_floating, checked_products, combine, gram, scale_rows, subtract

__all__ = ["Auxiliary", "diagonal_products", "gamma_direction", "generalized_rayleigh", "update_auxiliary"]


class Auxiliary(NamedTuple):
    """Running averages of the parents' products.

    Attributes:
        w: Average of B v_j, in the structure of the vectors.
        beta: Average of v_j'B v_j, shape (k,).
    """

    w: PyTree
    beta: Float[Array, " k"]


def diagonal_products(V: PyTree, W: PyTree) -> Float[Array, " k"]:
    """Return <v_i, w_i> for every player."""
    pairs = zip(jax.tree.leaves(V), jax.tree.leaves(W), strict=True)
    return jnp.asarray(sum(jnp.sum((v * w).reshape(v.shape[0], -1), axis=1) for v, w in pairs))


def gamma_direction(
    V: PyTree,
    AV: PyTree,
    BV: PyTree,
    aux: Auxiliary | None = None,
    rho: float = 1e-10,
) -> PyTree:
    """Return the gamma-EigenGame ascent direction for all players.

    Args:
        V: Unit vectors on rows, (k, d) or a pytree of leaves (k, ...).
        AV: Products A v_i, same structure.
        BV: Products B v_i, same structure, from a batch independent of the one in `AV`.
        aux: Running averages; None uses the current `BV` (exact operators).
        rho: Lower clip of beta_j.

    Example:
        At the unit vectors of a diagonal pencil every player is at rest:

        >>> import jax.numpy as jnp
        >>> bool(jnp.all(gamma_direction(jnp.eye(2), jnp.diag(jnp.array([3.0, 1.0])), jnp.eye(2)) == 0))
        True
    """
    V = jax.tree.map(as_floating, V)
    AV, BV = checked_products(V, AV), checked_products(V, BV)
    a, b = diagonal_products(V, AV), diagonal_products(V, BV)
    if aux is None:
        aux = Auxiliary(w=BV, beta=b)
    scaled = jnp.tril(gram(V, AV), -1) / jnp.maximum(aux.beta, rho)[None, :]
    pulled_back = a - jnp.sum(scaled * gram(V, aux.w), axis=1)
    towards = subtract(AV, combine(scaled, aux.w))
    return subtract(scale_rows(b, towards), scale_rows(pulled_back, BV))


def update_auxiliary(aux: Auxiliary, V: PyTree, BV: PyTree, rate: float | Array) -> Auxiliary:
    """Return the averages moved by `rate` towards B v and v'B v.

    Example:
        >>> import jax.numpy as jnp
        >>> start = Auxiliary(w=jnp.zeros((1, 2)), beta=jnp.zeros(1))
        >>> update_auxiliary(start, jnp.array([[1.0, 0.0]]), jnp.array([[2.0, 0.0]]), 0.5).beta
        Array([1.], dtype=float32)
    """
    w = jax.tree.map(lambda old, new: old + rate * (new - old), aux.w, BV)
    return Auxiliary(w=w, beta=aux.beta + rate * (diagonal_products(V, BV) - aux.beta))


def generalized_rayleigh(V: PyTree, AV: PyTree, BV: PyTree) -> Float[Array, " k"]:
    """Return v_i'A v_i / v_i'B v_i for every player; 0 where the denominator is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> generalized_rayleigh(jnp.eye(1), 3 * jnp.eye(1), 2 * jnp.eye(1))
        Array([1.5], dtype=float32)
    """
    V = jax.tree.map(as_floating, V)
    AV, BV = checked_products(V, AV), checked_products(V, BV)
    denominator = diagonal_products(V, BV)
    positive = denominator > 0
    return jnp.where(positive, diagonal_products(V, AV) / jnp.where(positive, denominator, 1), 0)
