"""The principal flow of a network: its velocity from Hessian-vector products alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Complex, Float
from scipy.linalg import eigh_tridiagonal

from dd_two_player.principal_flow.flow import CAP, check_gradient, check_rate, principal_coefficient

__all__ = ["principal_velocity"]

Vector = Float[np.ndarray, " dim"]


def principal_velocity(
    gradient: Vector,
    hessian_vector_product: Callable[[Vector], Vector],
    learning_rate: float,
    *,
    num_products: int = 20,
    cap: float = CAP,
) -> Complex[np.ndarray, " dim"]:
    """Return ``c(h H) g``, the velocity of the principal flow at one point.

    Lanczos' method starts at the gradient, so that only directions in which it has a part count. The result
    is exact once there are as many products as different eigenvalues among those directions.

    Args:
        gradient: Gradient ``g`` of the loss.
        hessian_vector_product: ``v -> H v`` over NumPy vectors.
        learning_rate: ``h`` of the gradient descent that is modelled.
        num_products: Largest number of Hessian-vector products.
        cap: Bound on ``c``, which is singular where ``h l = 1``; see `principal_coefficient`.

    Raises:
        ValueError: For a rate or number that is not positive, and for products that are not finite.

    Example:
        >>> values = np.array([2.0, 0.5])
        >>> velocity = principal_velocity(np.ones(2), lambda v: values * v, 0.25, num_products=2)
        >>> bool(np.allclose(velocity, np.log(1 - 0.25 * values) / (0.25 * values)))
        True
    """
    check_rate(learning_rate)
    if num_products < 1:
        raise ValueError(f"num_products is {num_products}; it must be at least 1.")
    start = check_gradient(gradient)
    size = np.linalg.norm(start)
    if size == 0:
        return np.zeros(start.shape, complex)
    basis, diagonal, beside = [start / size], [], []
    for _ in range(num_products):
        product = np.asarray(hessian_vector_product(basis[-1].copy()))  # it may write into its argument
        if product.shape != start.shape or np.iscomplexobj(product):
            raise ValueError(
                f"a Hessian-vector product is {product.dtype} of shape {product.shape}; it must be real, of "
                f"the shape {start.shape} of the gradient."
            )
        product = product.astype(float)
        if not np.isfinite(product).all():
            raise ValueError("a Hessian-vector product is not finite; the loss has no Hessian there.")
        scale, rows = np.linalg.norm(product), np.stack(basis)
        diagonal.append(basis[-1] @ product)
        for _ in range(2):  # against all earlier directions, twice: rounding must not bring them back
            product = product - rows.T @ (rows @ product)
        length = np.linalg.norm(product)
        if length <= 1e-10 * scale:
            break
        beside.append(length)
        basis.append(product / length)
    count = len(diagonal)
    values, vectors = eigh_tridiagonal(diagonal, beside[: count - 1])
    weights = vectors @ (principal_coefficient(learning_rate * values, cap) * vectors[0])
    velocity: np.ndarray = size * (np.stack(basis[:count]).T @ weights)
    return velocity
