"""Eigenproblems A v = lambda B v that arise from data, as products estimated from batches.

=================  =======================================  ===============  ===================
problem            A                                        B                independent batches
=================  =======================================  ===============  ===================
CCA                off-diagonal blocks of cov([x, y])       diagonal blocks  2
PLS                as CCA                                   diag(C_xx, I)    2
ICA                ``E[|x|**2 x x'] - tr(C) C - 2 C**2``      C                3
PCA                C                                        I                1
top of an inverse  I                                        C                1
=================  =======================================  ===============  ===================

Each function maps (vectors, batches) to (A V, B V). With fewer batches than the table says the same
batch is used twice and the gamma direction is biased. Data must be centred. C**2 v is computed as
C (C v) with independent batches; no (d, d) matrix is formed. Two views are a pair (x, y) of arrays.

Source: Table 1 and Sec. 3 of Gemp et al. 2022 (arXiv 2206.04993).
"""

from collections.abc import Sequence
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from eigengame.core.trees import batch_size, combine, responses

__all__ = ["cca_products", "ica_products", "inverse_products", "pca_products", "pls_products"]

Products: TypeAlias = tuple[PyTree, PyTree]
Pair: TypeAlias = tuple[Float[Array, "n dx"], Float[Array, "n dy"]]


def _covariance_product(V: PyTree, X: PyTree) -> PyTree:
    return combine(responses(V, X) / batch_size(X), X)


def _cross_products(V: PyTree, batch: Pair) -> PyTree:
    (x, y), (vx, vy), n = batch, V, batch_size(batch)
    return combine(responses(vy, y) / n, x), combine(responses(vx, x) / n, y)


def cca_products(V: PyTree, batches: Sequence[Pair]) -> Products:
    """Return the products of canonical correlation analysis; eigenvalues are the correlations.

    Example:
        >>> x = jnp.array([[1.0], [-1.0]])
        >>> AV, BV = cca_products((jnp.ones((1, 1)), jnp.ones((1, 1))), [(x, x)])
        >>> float(AV[0][0, 0]), float(BV[0][0, 0])
        (1.0, 1.0)
    """
    (vx, vy), (x, y) = V, batches[-1]
    return _cross_products(V, batches[0]), (_covariance_product(vx, x), _covariance_product(vy, y))


def pls_products(V: PyTree, batches: Sequence[Pair]) -> Products:
    """Return the products of partial least squares, B = diag(C_xx, I)."""
    (vx, vy), (x, _) = V, batches[-1]
    return _cross_products(V, batches[0]), (_covariance_product(vx, x), vy)


def ica_products(V: PyTree, batches: Sequence[PyTree]) -> Products:
    """Return the products of independent component analysis by fourth-order moments.

    The eigenvalue of a source of unit variance is its excess kurtosis; maximise -A (`maximize=False`)
    for sources flatter than a Gaussian.

    Example:
        For signs (excess kurtosis -2) A = E[x**4] - tr(C) C - 2 C**2 is -2:

        >>> signs = jnp.array([[1.0], [-1.0]])
        >>> ica_products(jnp.ones((1, 1)), [signs])[0]
        Array([[-2.]], dtype=float32)
    """
    first, second, last = batches[0], batches[min(1, len(batches) - 1)], batches[-1]
    # squares of bytes and of half precision overflow
    square_norms = jnp.sum(jnp.square(first.astype(jnp.promote_types(first.dtype, jnp.float32))), axis=1)
    fourth = combine(responses(V, first) * (square_norms / batch_size(first)), first)
    CV = _covariance_product(V, second)
    trace = jnp.mean(square_norms)
    AV = fourth - trace * CV - 2 * _covariance_product(CV, first)
    return AV, _covariance_product(V, last)


def pca_products(V: PyTree, batches: Sequence[PyTree]) -> Products:
    """Return C V and V: principal components as a pencil with B = I."""
    return _covariance_product(V, batches[0]), V


def inverse_products(V: PyTree, batches: Sequence[PyTree]) -> Products:
    """Return V and C V: the top of the inverse of C is the bottom of C, found without inverting."""
    return V, _covariance_product(V, batches[0])
