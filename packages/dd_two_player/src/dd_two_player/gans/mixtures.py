"""Mixtures of Gaussians in the plane: their modes, and how well samples cover them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

__all__ = ["STANDARD_DEVIATION", "mixture_modes", "mixture_scores"]

STANDARD_DEVIATION = {"mog16": 0.02, "ring8": 0.02}
WITHIN = 3.0  # standard deviations: where 98.9 % of a Gaussian in the plane lies


def mixture_modes(name: str) -> Float[np.ndarray, "modes 2"]:
    """Return the means of a mixture of Gaussians in the plane.

    >>> mixture_modes("mog16")[0].tolist(), len(mixture_modes("ring8"))
    ([-1.5, -1.5], 8)
    """
    if name == "mog16":
        grid = np.array([-1.5, -0.5, 0.5, 1.5])
        return np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    angles = 2 * np.pi * np.arange(8) / 8
    return np.stack([np.cos(angles), np.sin(angles)], -1)


def mixture_scores(name: str, samples: Float[np.ndarray, "n 2"]) -> dict[str, float]:
    """Return how many modes samples cover and which share of them is of high quality.

    A sample is of high quality within three standard deviations of its nearest mode; a mode is covered when
    such a sample exists. Samples that are not finite are of no quality.

    Args:
        name: ``mog16`` or ``ring8``.
        samples: Points in the plane.

    Returns:
        ``modes_covered`` (a count), ``high_quality_share`` (of all samples), and ``coverage``, the share of
        modes times the share of samples: 1 for the data, up to the outer percent; the best checkpoint is
        chosen by it.

    Example:
        >>> mixture_scores("ring8", np.array([[1.0, 0.0], [0.0, 1.01], [5.0, 5.0], [1.02, 0.0]]))
        {'modes_covered': 2.0, 'high_quality_share': 0.75, 'coverage': 0.1875}
    """
    modes = mixture_modes(name)
    values = np.asarray(samples, np.float64)
    if values.ndim != 2 or values.shape[1] != 2 or not len(values):
        raise ValueError(f"samples have shape {values.shape}; {name} needs (n, 2) with n of at least 1.")
    distances = np.linalg.norm(values[:, None] - modes, axis=2)
    good = distances.min(1, initial=np.inf) <= WITHIN * STANDARD_DEVIATION[name]
    covered = len(np.unique(distances[good].argmin(1))) if good.any() else 0
    share = float(good.mean())
    return {
        "modes_covered": float(covered),
        "high_quality_share": share,
        "coverage": share * covered / len(modes),
    }
