"""The explicit scheme for the heat equation: von Neumann's stability limit in its simplest case.

``u_t = u_xx`` on ``num_points`` points one unit apart, both ends held at zero, started from a tent. One
explicit step is ``u_i += r (u_{i+1} - 2 u_i + u_{i-1})`` with ``r = time_step / dx**2``, the CFL number.

Axis order of this module: ``time_step, step, point``.

Source: Sec. 3 of Sun et al. 2022 (Fig. 1); the analysis is von Neumann's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

__all__ = [
    "VON_NEUMANN_LIMIT",
    "HeatSolution",
    "amplification_factor",
    "check_time_steps",
    "finite_limit",
    "legacy_step",
    "solve_exactly",
    "solve_heat",
    "tent",
]

VON_NEUMANN_LIMIT = 0.5
"""Largest CFL number at which no frequency grows, whatever the number of points."""


class HeatSolution(np.ndarray):
    """Profiles of the explicit scheme: ``(time_step, step, point)``, and where they stopped being finite.

    Slices are arrays of the same class without the two attributes, which describe the whole solution only.

    Attributes:
        time_steps: the step sizes, in the time unit of the equation (dx = 1).
        stopped_at: for each time step the first step with a non-finite value, or -1.
    """

    time_steps: Float[np.ndarray, "time_step"]
    stopped_at: Int[np.ndarray, "time_step"]


def tent(num_points: int) -> Float[np.ndarray, "point"]:
    """Return the start of Fig. 1: slope +1/10 up to the middle, slope -1/10 after it, zero at both ends.

    >>> tent(31)[[0, 14, 15, 30]]
    array([0. , 1.4, 1.5, 0. ])
    """
    if num_points < 3:
        raise ValueError(f"num_points={num_points} leaves no inner point; pass at least 3.")
    x = np.arange(num_points, dtype=np.float64)
    length = num_points - 1
    return np.where(x < length / 2, x, length - x) / 10


def amplification_factor(
    frequency: float | Float[np.ndarray, "*shape"], cfl_number: float
) -> float | Float[np.ndarray, "*shape"]:
    """Return ``1 - 4 r sin(frequency / 2)**2``, by which one step multiplies ``exp(i * frequency * x)``.

    Args:
        frequency: radians per grid point; pi is the zig-zag.
        cfl_number: ``r = time_step / dx**2``.

    >>> float(amplification_factor(np.pi, 0.8))  # the zig-zag grows and alternates
    -2.2
    """
    return 1 - 4 * cfl_number * np.sin(np.asarray(frequency) / 2) ** 2


def finite_limit(num_points: int) -> float:
    """Return the exact stability limit on ``num_points`` points with fixed ends.

    Slightly above 1/2, because the zig-zag itself does not fit between two zeros: the fastest mode that does
    has frequency ``pi (n - 1) / n`` for ``n = num_points - 1``.

    >>> round(finite_limit(31), 6)
    0.501373
    """
    intervals = num_points - 1
    return float(2 / (4 * np.sin(np.pi * (intervals - 1) / (2 * intervals)) ** 2))


def legacy_step(time: float, time_step: float) -> int:
    """Return the step that the original script draws as ``time``: ``int(time / time_step) + 1``.

    It is one step later than the label says, and ``int`` truncates the rounded quotient.

    >>> legacy_step(2.4, 0.4), legacy_step(4.0, 0.4)  # drawn at t = 2.4 and t = 4.4
    (6, 11)
    """
    return int(time / time_step) + 1


def check_time_steps(
    time_steps: float | Sequence[float] | np.ndarray, *, allow_unstable: bool
) -> Float[np.ndarray, "time_step"]:
    """Return ``time_steps`` as an array, or raise ValueError if one is not positive or, unasked, unstable."""
    steps = np.atleast_1d(np.asarray(time_steps, dtype=np.float64))
    if steps.ndim != 1 or steps.size == 0:
        raise ValueError(
            f"time_steps has shape {steps.shape}; pass one number or a non-empty list of numbers."
        )
    if not np.all(np.isfinite(steps) & (steps > 0)):
        raise ValueError(f"time_steps must be positive and finite, got {steps.tolist()}.")
    if steps.max() > VON_NEUMANN_LIMIT and not allow_unstable:
        raise ValueError(
            f"time_step {steps.max():g} exceeds the stability bound dx**2/2 = {VON_NEUMANN_LIMIT} of the "
            "explicit heat scheme: it will diverge. If that is the experiment, pass allow_unstable=True."
        )
    return steps


def solve_heat(
    time_steps: float | Sequence[float] | Float[np.ndarray, "time_step"],
    num_points: int,
    num_steps: int,
    *,
    allow_unstable: bool = False,
) -> HeatSolution:
    """Step the heat equation from the tent, for all time steps at once.

    Args:
        time_steps: explicit step sizes; with dx = 1 each is its own CFL number.
        num_points: points including the two fixed ends.
        num_steps: steps to take.
        allow_unstable: accept step sizes above the von Neumann limit.

    Returns:
        The profiles after 0, 1, ..., ``num_steps`` steps. A run that stops being finite is NaN from there on.

    Raises:
        ValueError: a step size is not positive, or exceeds the limit without ``allow_unstable``.

    >>> solution = solve_heat([0.4, 0.5], num_points=31, num_steps=100)
    >>> solution.shape, bool(solution[0, 100].max() < solution[0, 0].max())
    ((2, 101, 31), True)
    """
    steps = check_time_steps(time_steps, allow_unstable=allow_unstable)
    if num_steps < 0:
        raise ValueError(f"num_steps must not be negative, got {num_steps}.")
    profiles = np.empty((steps.size, num_steps + 1, num_points))
    profiles[:, 0] = tent(num_points)
    profiles[:, 1:, [0, -1]] = 0.0
    cfl_numbers = np.repeat(steps[:, None], num_points - 2, axis=1)
    by_step = profiles.swapaxes(0, 1)
    left, inner, right = by_step[:, :, :-2], by_step[:, :, 1:-1], by_step[:, :, 2:]
    second_difference = np.empty_like(cfl_numbers)
    with np.errstate(over="ignore", invalid="ignore"):
        for u_left, u, u_right, following in zip(left, inner, right, inner[1:], strict=False):
            np.multiply(u, -2.0, out=second_difference)
            np.add(second_difference, u_left, out=second_difference)
            np.add(second_difference, u_right, out=second_difference)
            np.multiply(second_difference, cfl_numbers, out=second_difference)
            np.add(u, second_difference, out=following)
    solution = profiles.view(HeatSolution)
    solution.time_steps, solution.stopped_at = steps, _stop_at_non_finite(profiles)
    return solution


def solve_exactly(
    cfl_number: float, num_points: int, steps: Sequence[int]
) -> Float[np.ndarray, "step point"]:
    """Return the state of the explicit scheme after the given steps without stepping.

    The sine modes of the discrete Laplacian are its eigenvectors, so step ``n`` is
    ``sum_j b_j (1 - 4 r sin(pi j / 2L)**2)**n sin(pi j x / L)`` with ``L = num_points - 1``: the oracle of
    ``solve_heat``, and the way to very late times.
    """
    intervals = num_points - 1
    x = np.arange(num_points)
    modes = np.sin(np.pi * np.outer(np.arange(1, intervals), x) / intervals)
    coefficients = 2 / intervals * modes @ tent(num_points)
    growth = amplification_factor(np.pi * np.arange(1, intervals) / intervals, cfl_number)
    amplitudes = coefficients * np.power(growth, np.asarray(steps)[:, None])
    return np.asarray(amplitudes @ modes)


def _stop_at_non_finite(profiles: np.ndarray) -> Int[np.ndarray, "time_step"]:
    bad = ~np.isfinite(profiles).all(axis=2)
    stopped_at = np.where(bad.any(axis=1), bad.argmax(axis=1), -1)
    for run, step in enumerate(stopped_at):
        if step >= 0:
            profiles[run, step:] = np.nan
    return stopped_at
