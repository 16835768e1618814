"""Continuous-time models of plain gradient descent and what they suggest: the principal flow, IGR, DAL.

Source: Rosca et al. 2023, "On a continuous time model of gradient descent dynamics and instability in deep
learning" (arXiv 2302.01952).
"""

from dd_two_player.principal_flow.adjusted_rate import dal, exact_hvp, finite_difference_hvp
from dd_two_player.principal_flow.coefficients import StabilityCoefficients, stability_coefficients
from dd_two_player.principal_flow.flow import (
    gradient_descent,
    gradient_flow,
    igr_flow,
    integrate_principal_flow,
    principal_coefficient,
    principal_field,
    quadratic_principal_flow,
    third_order_flow,
)
from dd_two_player.principal_flow.matrix_free import principal_velocity

__all__ = [
    "StabilityCoefficients",
    "dal",
    "exact_hvp",
    "finite_difference_hvp",
    "gradient_descent",
    "gradient_flow",
    "igr_flow",
    "integrate_principal_flow",
    "principal_coefficient",
    "principal_field",
    "principal_velocity",
    "quadratic_principal_flow",
    "stability_coefficients",
    "third_order_flow",
]
