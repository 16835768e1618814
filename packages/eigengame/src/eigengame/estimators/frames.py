"""Coordinates in which a problem of two views or of sources has no units."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["frame_of", "into", "out_of"]

_WIDEST = 2048  # views of more columns are scaled column by column, not whitened: a (d, d) matrix is formed


def frame_of(view: NDArray, epsilon: float, *, whiten: bool) -> NDArray:
    """Return the frame in which a centred view has unit covariance, (r, d), or unit variances, (d,).

    In a frame a direction u of the samples F x stands for F' u: only the coordinates change, not the answer.
    Directions without variance are left out of a whitening frame.
    """
    n, d = view.shape
    if not whiten or d > _WIDEST or n < 2:
        deviation = np.sqrt(np.square(view).mean(axis=0) + epsilon)
        return np.where(deviation > 0, 1 / np.where(deviation > 0, deviation, 1), 1)
    unit = np.sqrt(np.square(view).mean(axis=0))
    unit = np.where(unit > 0, unit, 1)
    if n < d and not epsilon:
        _, singular, vectors = np.linalg.svd(view / unit, full_matrices=False)
        values = np.square(singular) / n
        keep = values > values[0] * n * np.finfo(np.float64).eps
        return np.asarray((vectors[keep].T / np.sqrt(values[keep])).T / unit)
    scaled = view / unit
    values, vectors = np.linalg.eigh(scaled.T @ scaled / n + np.diag(epsilon / unit**2))
    keep = values > values[-1] * d * np.finfo(np.float64).eps
    return np.asarray((vectors[:, keep] / np.sqrt(values[keep])).T / unit)


def into(frame: NDArray, rows: NDArray) -> NDArray:
    """Return the coordinates of centred samples on rows, (n, r)."""
    return np.asarray(rows * frame if frame.ndim == 1 else rows @ frame.T)


def out_of(frame: NDArray, vectors: NDArray) -> NDArray:
    """Return what directions in the frame stand for in the coordinates of the data, (k, d)."""
    return np.asarray(vectors * frame if frame.ndim == 1 else vectors @ frame)
