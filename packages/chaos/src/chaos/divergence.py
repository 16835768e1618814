"""Growth of the distance between perturbed trainings: ``d(t) = sqrt(a t + b t^2 + d_0^2)``.

a is a random walk's rate, b that of linear divergence. Squared distances are linear in (a, b), so the fit is
closed form.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import nnls


@dataclass(frozen=True)
class DivergenceFit:
    """Fitted growth law.

    Attributes:
        a: Rate of the random walk, distance^2 per step.
        b: Rate of linear divergence, distance^2 per step^2.
        r2: Share of the variance of the *distances* that the curve explains.
        curve: Fitted distances at the given times.
    """

    a: float
    b: float
    r2: float
    curve: np.ndarray


def fit_divergence(
    t: Float[np.ndarray, " T"],
    distance: Float[np.ndarray, " T"],
    initial_distance: float,
    nonnegative: bool = True,
) -> DivergenceFit:
    """Least squares of ``d^2 - d_0^2`` on (t, t^2).

    Args:
        t: Steps since the perturbation.
        distance: Distances to the unperturbed model.
        initial_distance: d_0.
        nonnegative: Constrain a, b >= 0, the range in which both have a meaning.

    Raises:
        ValueError: For shapes that differ, fewer than two points, negative distances or non-finite values.

    Source: Sec. 5 of Herrmann et al. 2022.

    Example:
        >>> t = np.arange(10.0)
        >>> fit = fit_divergence(t, np.sqrt(2 * t + 3 * t**2 + 0.01), 0.1)
        >>> round(fit.a, 9), round(fit.b, 9), round(fit.r2, 9)
        (2.0, 3.0, 1.0)
    """
    t, distance = np.asarray(t, float), np.asarray(distance, float)
    if t.shape != distance.shape or t.ndim != 1 or len(t) < 2:
        raise ValueError(
            f"t has shape {t.shape} and distance {distance.shape}; "
            "pass two equal vectors of at least two points."
        )
    if not np.isfinite(distance).all():
        raise ValueError("distance holds non-finite values; cut the curve before the training diverged.")
    if not (distance.min() >= 0 and initial_distance >= 0):
        raise ValueError("distance or initial_distance is negative or NaN; a distance is at least 0.")
    with np.errstate(over="ignore", invalid="ignore"):
        design, target = np.stack([t, t**2], 1), distance**2 - initial_distance**2
    if not (np.isfinite(design).all() and np.isfinite(target).all()):
        raise ValueError(
            "t, distance or initial_distance is not finite, or its square is not; scale them down."
        )
    scale = np.abs(design).max(0)
    scale[scale == 0] = 1.0
    if nonnegative:
        solution = nnls(design / scale, target)[0]
    else:
        solution = np.linalg.lstsq(design / scale, target, rcond=None)[0]
    a, b = solution / scale
    curve = np.sqrt(np.maximum(a * t + b * t**2 + initial_distance**2, 0.0))
    spread = ((distance - distance.mean()) ** 2).sum()
    r2 = 1 - ((distance - curve) ** 2).sum() / spread if spread > 0 else float("nan")
    return DivergenceFit(float(a), float(b), float(r2), curve)


def fit_theoretical_bound(
    y_data: Float[np.ndarray, " T"], log_interval_scaling: float = 1, initial_distance: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """The original's fit of a distance curve: same name, same result.

    Its (a, b) are per sample index and unconstrained; the log interval only scales the returned axis.

    Args:
        y_data: Measured distances.
        log_interval_scaling: Steps between samples.
        initial_distance: Distance at the start.

    Returns:
        (t, fitted distances).
    """
    index = np.arange(len(y_data), dtype=float)
    fit = fit_divergence(index, y_data, initial_distance, nonnegative=False)
    return index * log_interval_scaling, fit.curve


def exponential_bounds(
    t: Float[np.ndarray, " T"], initial_distance: float, exponents: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """``d_0 exp(lambda t)`` for the smallest and the largest exponent.

    Example:
        >>> low, high = exponential_bounds(np.array([0.0, 1.0]), 0.1, (-1.0, 0.0))
        >>> high.tolist()
        [0.1, 0.1]
    """
    t = np.asarray(t, float)
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # nothing has grown at t = 0, at an infinite rate neither
        low, high = (initial_distance * np.exp(np.where(t == 0, 0, rate * t)) for rate in sorted(exponents))
    return low, high
