"""Lyapunov exponents of a map by its exact tangent.

The tangent of the step is carried beside the state by forward-mode differentiation: no separation has to be
chosen, nothing saturates. Several directions are kept apart by a QR decomposition after each step.

Source: Benettin et al. 1980 for the exponents; Sec. 5.3 of Sun et al. 2022 for what they say about rounding.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from gdyn_common.errors import require_count
from instability.exponents.result import LyapunovExponents
from instability.exponents.tangent import Map, State, by_differences, by_jvp, has_tangent
from instability.streams import RandomStreams

__all__ = ["lyapunov_exponents"]

STEPS_PER_WINDOW, MAX_WINDOWS = 5, 20
COARSEST = 1e-4


def lyapunov_exponents(
    step: Map,
    state: State | Tensor,
    *,
    num_steps: int,
    k: int = 1,
    transient: int = 0,
    seed: int = 0,
) -> LyapunovExponents:
    """Return the ``k`` largest Lyapunov exponents of a map, with error bars.

    Args:
        step: maps state and step number to the next state, by torch operations. Random numbers that it draws
            are the same for every direction. Without a forward derivative central differences take over.
        state: named floating tensors at the start; a single tensor is named ``"x"``. Take float64.
        num_steps: steps to average over.
        k: how many exponents; each costs one evaluation of the step.
        transient: steps made before, so that directions and orbit settle.
        seed: of the first directions.

    Raises:
        ValueError: an argument is out of range, or the step is no function of state and number.
        FloatingPointError: state or tangent is no longer finite; the step is named.

    >>> logistic = lambda s, _: {"x": 4 * s["x"] * (1 - s["x"])}  # exponent log 2
    >>> start = torch.tensor([0.3], dtype=torch.float64)
    >>> found = lyapunov_exponents(logistic, start, num_steps=2000)
    >>> bool(abs(found.exponents[0] - math.log(2)) < 1e-2)
    True
    """
    now = {"x": state} if isinstance(state, Tensor) else dict(state)
    now = {name: value.detach().clone() for name, value in now.items()}
    dim = sum(value.numel() for value in now.values())
    require_count("k", k, most=dim)
    require_count("num_steps", num_steps)
    require_count("transient", transient, 0)
    if not all(value.is_floating_point() for value in now.values()):
        raise ValueError(
            "the state holds tensors that are not floating; keep those that vary, and of complex ones the "
            "real and imaginary parts."
        )
    if coarse := {str(v.dtype) for v in now.values() if torch.finfo(v.dtype).eps > COARSEST}:
        raise ValueError(f"the state is {coarse.pop()}, too coarse for a tangent; call model.double().")
    generator = torch.Generator().manual_seed(seed)
    like = next(iter(now.values()))
    start = torch.randn(dim, k, generator=generator, dtype=torch.float64).to(like.device)
    directions = torch.linalg.qr(start)[0]
    growth = []
    exact = getattr(step, "has_tangent", None)
    if exact is None:
        exact = has_tangent(step, now, _split(directions[:, 0], now), 0)
    push = by_jvp if exact else by_differences
    for number in range(transient + num_steps):
        streams = RandomStreams.now()
        columns = []
        for column in directions.T:
            streams.restore()
            after, tangent = push(step, now, _split(column, now), number)
            columns.append(tangent)
        now = after
        image = torch.stack(columns, dim=1)
        if not (image.isfinite().all() and all(value.isfinite().all() for value in now.values())):
            raise FloatingPointError(
                f"step {number + 1}: state or tangent is not finite; the exponent is not defined beyond."
            )
        directions, upper = torch.linalg.qr(image)
        if number >= transient:
            growth.append(upper.diagonal().abs().log().cpu().numpy())
    curves = np.array(growth)
    exponents = curves.mean(axis=0)
    return LyapunovExponents(exponents, _standard_error(curves), curves, exact, now)


def _split(column: Tensor, state: State) -> dict[str, Tensor]:
    """Return a direction in the form of the state."""
    pieces = zip(state.items(), column.split([value.numel() for value in state.values()]), strict=True)
    return {name: piece.reshape(value.shape).to(value.dtype) for (name, value), piece in pieces}


def _standard_error(growth: np.ndarray) -> np.ndarray:
    """From the means over windows, which unlike single steps are nearly independent."""
    windows = min(MAX_WINDOWS, len(growth) // STEPS_PER_WINDOW)
    if windows < 2:
        return np.full(growth.shape[1], np.nan)
    means = np.array([part.mean(axis=0) for part in np.array_split(growth, windows)])
    with np.errstate(invalid="ignore"):  # an exponent of minus infinity has none
        return np.asarray(means.std(axis=0, ddof=1) / math.sqrt(windows))
