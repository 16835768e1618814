"""Stochastic estimates of the trace and of the spectral density of an operator."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.linalg import eigh_tridiagonal

from gdyn_common.display import Axes, Figure, axes_for
from gdyn_common.spectral.eigenpairs import Matvec, _Operator, lanczos_tridiagonal


@dataclass(frozen=True)
class Estimate:
    """A mean over independent samples and its standard error."""

    value: float
    standard_error: float


def _estimate(samples: Float[np.ndarray, " n"]) -> Estimate:
    return Estimate(float(samples.mean()), float(samples.std(ddof=1) / math.sqrt(len(samples))))


def _check_count(name: str, count: int) -> None:
    if count < 2:
        raise ValueError(f"{name} is {count}; a standard error needs at least 2.")


def hutchinson_trace(
    matvec: Matvec, dim: int, *, num_samples: int, generator: np.random.Generator
) -> Estimate:
    """Estimate the trace without bias from products with random signs.

    Each sample ``z' A z`` has mean tr A and variance 2 (||A||_F^2 - sum_i A_ii^2) for symmetric A:
    exact for a diagonal operator.

    Source: Hutchinson, Commun. Stat. Simul. Comput. 18 (1989).

    Args:
        matvec: Operator, (dim,) to (dim,).
        dim: Its dimension.
        num_samples: Products to spend, at least 2.
        generator: Draws the signs.

    >>> hutchinson_trace(lambda v: [1.0, 2.0, 4.0] * v, 3, num_samples=2, generator=np.random.default_rng(0))
    Estimate(value=7.0, standard_error=0.0)
    """
    _check_count("num_samples", num_samples)
    operator = _Operator(matvec, dim)
    signs = (generator.choice([-1.0, 1.0], size=dim) for _ in range(num_samples))
    return _estimate(np.array([z @ operator(z) for z in signs]))


@dataclass(frozen=True)
class SpectralDensity:
    """A spectral density: a quadrature rule per probe vector, and their smoothed mean.

    Attributes:
        grid: Points of the eigenvalue axis.
        density: Gaussian-smoothed density there; it integrates to 1 over the axis.
        nodes: Ritz values of each probe.
        weights: Their weights; each row sums to 1. Unused entries have weight 0.
    """

    grid: Float[np.ndarray, " points"]
    density: Float[np.ndarray, " points"]
    nodes: Float[np.ndarray, "probes steps"]
    weights: Float[np.ndarray, "probes steps"]

    def integrate(self, f: Callable[[np.ndarray], np.ndarray]) -> Estimate:
        """Estimate ``tr f(A) / dim``, f acting on arrays, with the standard error over probes.

        Unsmoothed: without bias for polynomials of degree below twice the number of steps.
        """
        return _estimate(np.sum(self.weights * f(self.nodes), axis=1))

    def plot(self, axes: Axes | None = None) -> Figure:
        """Draw the density, into axes of matplotlib or a new figure, and return the figure."""
        axes = axes_for(axes)
        axes.semilogy(self.grid, np.maximum(self.density, 1e-8 * self.density.max()))
        axes.set(title="Spectral density", xlabel="eigenvalue", ylabel="density")
        return axes.figure


def stochastic_lanczos_density(
    matvec: Matvec,
    dim: int,
    *,
    num_probes: int,
    num_steps: int,
    generator: np.random.Generator,
    bandwidth: float | None = None,
    num_points: int = 1000,
) -> SpectralDensity:
    """Estimate the density of eigenvalues by stochastic Lanczos quadrature.

    Costs `num_probes` times `num_steps` products and `num_steps` vectors of memory.

    Source: Lin, Saad and Yang, SIAM Review 58 (2016), section 3.2; Ghorbani, Krishnan and Xiao 2019.

    Args:
        matvec: Symmetric operator, (dim,) to (dim,).
        dim: Its dimension.
        num_probes: Independent random sign vectors, at least 2.
        num_steps: Lanczos steps for each.
        generator: Draws the probes.
        bandwidth: Standard deviation of the smoothing; default 1 % of the range of Ritz values.
        num_points: Of the grid, which spans the Ritz values and 5 bandwidths on either side.

    >>> spectrum = np.array([1.0, 1.0, 1.0, 5.0])
    >>> density = stochastic_lanczos_density(
    ...     lambda v: spectrum * v, 4, num_probes=2, num_steps=4, generator=np.random.default_rng(0))
    >>> estimate = density.integrate(np.square)  # (1 + 1 + 1 + 25) / 4
    >>> round(estimate.value, 12), round(estimate.standard_error, 12)
    (7.0, 0.0)
    """
    _check_count("num_probes", num_probes)
    if num_points < 2 or (bandwidth is not None and not bandwidth > 0):
        raise ValueError(
            f"num_points is {num_points}, bandwidth {bandwidth}; pass at least 2 and a positive width."
        )
    nodes = np.zeros((num_probes, min(num_steps, dim)))
    weights = np.zeros_like(nodes)
    for i in range(num_probes):
        signs = generator.choice([-1.0, 1.0], size=dim)
        factors = lanczos_tridiagonal(matvec, dim, num_steps, generator=generator, start=signs)
        values, vectors = eigh_tridiagonal(factors.diagonal, factors.off_diagonal)
        nodes[i] = values[-1]  # an exhausted Krylov space leaves the tail at weight 0
        nodes[i, : len(values)] = values
        weights[i, : len(values)] = vectors[0] ** 2
    low, high = float(nodes.min()), float(nodes.max())
    width = bandwidth or 0.01 * ((high - low) or abs(high) or 1.0)
    grid = np.linspace(low - 5 * width, high + 5 * width, num_points)
    density = np.zeros(num_points)
    for probe_nodes, probe_weights in zip(nodes, weights, strict=True):
        bumps = np.exp(-0.5 * ((grid[:, None] - probe_nodes) / width) ** 2) / (width * math.sqrt(2 * math.pi))
        density += bumps @ probe_weights / num_probes
    return SpectralDensity(grid, density, nodes, weights)
