"""What the players maximise: the two utilities and the Rayleigh quotients."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from eigengame.core.directions import Reduction, check_reduction, safe_reciprocal
from eigengame.core.trees import batch_size, checked_batch, gram, responses

__all__ = ["rayleigh", "utilities"]


def utilities(
    V: PyTree,
    X: PyTree,
    kind: Literal["alpha", "mu"] = "alpha",
    *,
    reduction: Reduction = "mean",
) -> Float[Array, " k"]:
    """Return the utility of every player on a batch.

    With S = V C V' and C = X'X / n (mean) or X'X (sum):
    alpha: u_i = S_ii - sum_{j<i} S_ij**2 / S_jj, what the published pseudo-code calls `utility`;
    mu: u_i = S_ii - sum_{j<i} <v_i, v_j> S_ij, that is v_i'(I - sum_j v_j v_j') C v_i.

    Args:
        V: Unit vectors on rows, (k, d) or a pytree of leaves (k, ...).
        X: Samples on rows, (n, d) or a pytree of leaves (n, ...).
        kind: `"alpha"` or `"mu"`.
        reduction: `"mean"` divides by n, `"sum"` does not.

    Raises:
        ValueError: For an unknown `kind` or `reduction`.

    Source: Eq. (6) of Gemp et al. 2021a (alpha); Sec. 3 of Gemp et al. 2021b (mu).

    Example:
        >>> import jax.numpy as jnp
        >>> utilities(jnp.eye(2), jnp.array([[2.0, 0.0], [0.0, 1.0]]), "mu", reduction="sum")
        Array([4., 1.], dtype=float32)
    """
    if kind not in ("alpha", "mu"):
        raise ValueError(f"kind is {kind!r}; allowed are 'alpha' and 'mu'.")
    check_reduction(reduction)
    V = jax.tree.map(jnp.asarray, V)
    X = checked_batch(V, X)
    Y = responses(V, X)
    S = Y @ Y.T
    values = utilities_from_products(S, gram(V, V), kind)
    return values if reduction == "sum" else values / batch_size(X)


def utilities_from_products(
    S: Float[Array, "k k"], overlap: Float[Array, "k k"], kind: Literal["alpha", "mu"]
) -> Float[Array, " k"]:
    """Return the utilities given S = V C V' and the overlaps V V'."""
    penalty = overlap * S
    if kind == "alpha":
        penalty = jnp.square(S) * safe_reciprocal(jnp.diagonal(S))[None, :]
    values: Array = jnp.diagonal(S) - jnp.sum(jnp.tril(penalty, -1), axis=1)
    return values


def rayleigh(V: PyTree, X: PyTree) -> Float[Array, " k"]:
    """Return v_i' C v_i / v_i'v_i with C = X'X / n, the variance of the batch along each vector.

    Example:
        >>> import jax.numpy as jnp
        >>> rayleigh(jnp.eye(2), jnp.array([[2.0, 1.0]]))
        Array([4., 1.], dtype=float32)
    """
    V = jax.tree.map(jnp.asarray, V)
    X = checked_batch(V, X)
    Y = responses(V, X)
    values: Array = jnp.mean(jnp.square(Y), axis=1) / jnp.diagonal(gram(V, V))
    return values
