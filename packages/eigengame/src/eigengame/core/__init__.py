"""The functional core in one import: directions, utilities, state and steps. Pure and jittable.

Rows are vectors and rows are samples. Arrays may be pytrees with leading axes k and n.
"""

from eigengame.core.directions import (
    alpha_direction,
    direction_from_products,
    gha_direction,
    mu_direction,
    oja_direction,
    parent_mask,
    penalty_weights,
    project_to_tangent,
)
from eigengame.core.gamma import Auxiliary, gamma_direction, generalized_rayleigh, update_auxiliary
from eigengame.core.solver import (
    Config,
    Moments,
    State,
    init,
    initial_vectors,
    retract,
    sample_steps,
    scan_steps,
    step,
    step_operator,
)
from eigengame.core.values import rayleigh, utilities

__all__ = [
    # state and steps
    "Auxiliary",
    "Config",
    "Moments",
    "State",
    # directions
    "alpha_direction",
    "direction_from_products",
    "gamma_direction",
    # what the players maximise
    "generalized_rayleigh",
    "gha_direction",
    "init",
    "initial_vectors",
    "mu_direction",
    "oja_direction",
    "parent_mask",
    "penalty_weights",
    "project_to_tangent",
    "rayleigh",
    "retract",
    "sample_steps",
    "scan_steps",
    "step",
    "step_operator",
    "update_auxiliary",
    "utilities",
]
