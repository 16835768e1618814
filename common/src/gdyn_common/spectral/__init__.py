"""Eigenvalues, traces, spectral densities and subspaces of operators known by their products.

Conventions of all functions here:

- An operator is a callable `matvec` that maps a real vector of shape ``(dim,)`` to its product,
  again ``(dim,)``, linear and symmetric. It receives float64; computing in float32 inside is
  fine, with a tolerance to match (about 1e-5).
- A set of vectors is a matrix of shape ``(dim, k)``: **vectors are columns**.
- Eigenvalues are in descending order.
- Randomness comes from the `generator` passed in, see `gdyn_common.seeding.generator`.
"""

from gdyn_common.spectral.eigenpairs import (
    ConvergenceError,
    Eigenpair,
    Eigenpairs,
    Matvec,
    Tridiagonal,
    lanczos,
    lanczos_tridiagonal,
    power_iteration,
)
from gdyn_common.spectral.subspaces import principal_angles, subspace_distance
from gdyn_common.spectral.trace import (
    Estimate,
    SpectralDensity,
    hutchinson_trace,
    stochastic_lanczos_density,
)

__all__ = [
    "ConvergenceError",
    "Eigenpair",
    "Eigenpairs",
    "Estimate",
    "Matvec",
    "SpectralDensity",
    "Tridiagonal",
    "hutchinson_trace",
    "lanczos",
    "lanczos_tridiagonal",
    "power_iteration",
    "principal_angles",
    "stochastic_lanczos_density",
    "subspace_distance",
]
