"""Stability coefficients: what each Hessian direction contributes to the change of the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dd_two_player.principal_flow.flow import check_gradient, check_rate, principal_coefficient
from gdyn_common.spectral import lanczos

__all__ = ["StabilityCoefficients", "stability_coefficients"]

Vector = Float[np.ndarray, " dim"]


@dataclass(frozen=True)
class StabilityCoefficients:
    """One row per eigen-direction, largest eigenvalue first.

    Attributes:
        eigenvalues: ``l_i`` of the Hessian.
        eigenvectors: Columns ``u_i``.
        projections: ``u_i . g``.
        scaled: ``h l_i``; above 2 the direction is unstable.
        coefficients: ``Re c(h l_i)``, negative where the flow descends.
        contributions: ``Re c(h l_i) (u_i . g)^2``, the terms of ``dE/dt`` along the principal flow.
    """

    eigenvalues: Float[np.ndarray, " k"]
    eigenvectors: Float[np.ndarray, "dim k"]
    projections: Float[np.ndarray, " k"]
    scaled: Float[np.ndarray, " k"]
    coefficients: Float[np.ndarray, " k"]
    contributions: Float[np.ndarray, " k"]

    def __repr__(self) -> str:
        unstable = int((self.scaled > 2).sum())
        counts = f"{len(self.scaled)} directions, {unstable} of them unstable"
        return f"{counts} (largest h l = {self.scaled[0]:.4g}); dE/dt = {self.loss_derivative:.4g}"

    @property
    def loss_derivative(self) -> float:
        """Return the part of ``dE/dt`` that these directions explain (the real case)."""
        return float(self.contributions.sum())


def stability_coefficients(
    gradient: Vector,
    hessian_vector_product: Callable[[Vector], Vector],
    learning_rate: float,
    *,
    num_directions: int,
    generator: np.random.Generator,
) -> StabilityCoefficients:
    """Measure the stability coefficients of the leading Hessian directions by Lanczos' method.

    Args:
        gradient: Gradient of the loss.
        hessian_vector_product: ``v -> H v`` over NumPy vectors.
        learning_rate: Of the gradient descent that is studied.
        num_directions: How many of the largest eigenvalues.
        generator: Draws the start of the iteration.

    Example:
        >>> table = stability_coefficients(np.ones(3), lambda v: np.array([3.0, 1.0, 0.1]) * v, 1.0,
        ...                                num_directions=2, generator=np.random.default_rng(0))
        >>> table
        2 directions, 1 of them unstable (largest h l = 3); dE/dt = -34.71
        >>> table.scaled.round(6).tolist(), [bool(c > 0) for c in table.coefficients]
        ([3.0, 1.0], [True, False])
    """
    check_rate(learning_rate)
    g = check_gradient(gradient)
    pairs = lanczos(hessian_vector_product, g.size, num_directions, generator=generator)
    scaled = learning_rate * pairs.values
    coefficients = principal_coefficient(scaled).real
    projections = pairs.vectors.T @ g
    return StabilityCoefficients(
        pairs.values, pairs.vectors, projections, scaled, coefficients, coefficients * projections**2
    )
