"""How far two copies of a training run are apart, and how fast they got there.

Every distance takes two arrays (or tensors) of one shape and compares all their entries.

Source: Sec. 4.2 of Sun et al. 2022; the entries beyond its average relative L1 are standard.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

__all__ = [
    "accuracy_spread",
    "as_array",
    "average_relative_l1",
    "first_step_above",
    "growth_rate",
    "moving_average",
    "real_array",
    "relative_l2",
]


def average_relative_l1(a: ArrayLike, b: ArrayLike) -> float:
    """Return ``2 mean(|a - b| / (|a| + |b|))`` over all entries: 0 if equal, 2 if all signs are opposite.

    ``0 / 0`` counts as 0. NaN if an entry is not finite.

    >>> average_relative_l1([1.0, 0.0], [-1.0, 0.0])
    1.0
    """
    x, y = _pair(a, b)
    if max(np.abs(x).max(), np.abs(y).max()) > np.finfo(np.float64).max / 4:  # the sum may overflow
        x, y = x / 4, y / 4
    difference, size = np.abs(x - y), np.abs(x) + np.abs(y)
    return float(2 * np.mean(np.divide(difference, size, out=np.zeros_like(size), where=size != 0)))


def relative_l2(a: ArrayLike, b: ArrayLike) -> float:
    """Return ``2 |a - b| / (|a| + |b|)`` in the Euclidean norm; 0 if both vanish.

    >>> relative_l2([3.0, 4.0], [0.0, 0.0])
    2.0
    """
    x, y = _pair(a, b)
    shift = -np.frexp(max(np.abs(x).max(), np.abs(y).max()))[1]  # no square overflows or vanishes
    x, y = np.ldexp(x, shift), np.ldexp(y, shift)
    size = float(np.linalg.norm(x) + np.linalg.norm(y))
    return 2 * float(np.linalg.norm(x - y)) / size if size else 0.0


def moving_average(x: ArrayLike, window: int = 100) -> Float[np.ndarray, "m"]:
    """Return the means of the windows that start at 0, 1, ..., ``n - window - 1``.

    The last full window is left out, as in the paper's plots: the result has ``n - window`` entries.

    >>> moving_average([1.0, 2.0, 3.0, 4.0], window=2).tolist()
    [1.5, 2.5]
    """
    values = real_array(x, "x")
    if not 1 <= window <= values.shape[-1]:
        raise ValueError(
            f"window={window} does not fit {values.shape[-1]} values; pass 1 to {values.shape[-1]}."
        )
    windows = np.lib.stride_tricks.sliding_window_view(values, window, axis=-1)
    return np.asarray(windows[..., :-1, :].mean(axis=-1))


def first_step_above(divergence: ArrayLike, level: float) -> int:
    """Return the first index at which the curve exceeds ``level`` or is NaN (it blew up), or -1.

    >>> first_step_above([0.0, 1e-5, 1e-2], 1e-3), first_step_above([0.0], 1e-3)
    (2, -1)
    """
    above = ~(real_array(divergence, "divergence") <= level)
    return int(above.argmax()) if above.any() else -1


def growth_rate(divergence: ArrayLike, level_low: float, level_high: float) -> float:
    """Return the slope per step of log divergence between first exceeding the two levels, by least squares.

    A curve that blows up (NaN) reaches every level there. The slope is NaN if the curve never reaches
    ``level_high`` or has fewer than two positive points between.

    >>> round(growth_rate(1e-12 * np.exp(0.5 * np.arange(60)), 1e-10, 1e-3), 6)
    0.5
    """
    values = real_array(divergence, "divergence")
    start, end = first_step_above(values, level_low), first_step_above(values, level_high)
    if start < 0 or end - start < 2:
        return float("nan")
    steps = start + np.flatnonzero(values[start:end] > 0)  # back at equality, or not finite: no logarithm
    return float(np.polyfit(steps, np.log(values[steps]), 1)[0]) if len(steps) > 1 else float("nan")


def accuracy_spread(accuracies: ArrayLike, *, last: int = 10) -> dict[str, Float[np.ndarray, "n"]]:
    """Return the standard deviation (ddof 0) of final accuracies along each axis.

    The final accuracy of a run is its mean over the ``last`` epochs.

    Returns:
        A dictionary. ``over_perturbations`` has one entry per seed, the spread that rounding alone causes;
        ``over_seeds`` has one entry per perturbation, the spread that batch selection causes.

    >>> spread = accuracy_spread(np.array([[[90.0], [80.0]], [[92.0], [80.0]]]), last=1)
    >>> spread["over_perturbations"].tolist(), spread["over_seeds"].tolist()
    ([1.0, 0.0], [5.0, 6.0])
    """
    values = real_array(accuracies, "accuracies")
    if values.ndim != 3:
        raise ValueError(f"accuracies has shape {values.shape}; pass (perturbation, seed, epoch).")
    if not 1 <= last <= values.shape[2]:
        raise ValueError(f"last={last} does not fit {values.shape[2]} epochs.")
    final = values[:, :, -last:].mean(axis=2)
    return {"over_perturbations": final.std(axis=0), "over_seeds": final.std(axis=1)}


def as_array(values: Any) -> np.ndarray:
    """Return an array, or a tensor of any type with or without a graph, as an array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().resolve_conj()
        values = values.float() if values.dtype.itemsize < 4 and values.dtype.is_floating_point else values
    return np.asarray(values)


def real_array(values: Any, name: str) -> np.ndarray:
    """Return real numbers in float64, or raise ValueError if they are complex."""
    array = as_array(values)
    if np.iscomplexobj(array):
        raise ValueError(f"{name} is complex; pass its real and imaginary parts one after the other.")
    return array.astype(np.float64, copy=False)


def _pair(a: object, b: object) -> tuple[np.ndarray, np.ndarray]:
    arrays = [as_array(a), as_array(b)]
    if any(np.iscomplexobj(z) for z in arrays):
        arrays = [np.stack([z.real, z.imag]) for z in arrays]
    first, second = (z.astype(np.float64, copy=False) for z in arrays)
    if first.shape != second.shape:
        raise ValueError(f"shapes differ: {first.shape} and {second.shape}; pass two arrays of one shape.")
    if first.size == 0:
        raise ValueError("the arrays are empty; there is nothing to compare.")
    return first, second
