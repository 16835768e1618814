"""Coordinates in which a problem has no units, and single precision holds the digits that matter."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpy.typing import DTypeLike, NDArray

__all__ = ["Frame", "frame_of", "into", "out_of", "unit_rows"]

_ORDINARY = 2.0**20  # data of at most this size, and at least its inverse, are left in their unit

_EXTREME = 2.0**505  # squares of data of this size, and of its inverse, are doubles with all their digits

_WIDEST = 2048  # views of more columns are scaled column by column, not whitened: a (d, d) matrix is formed


@partial(jax.jit, static_argnames="dtype")
def _moved(X: jax.Array, shift: jax.Array, unit: float, dtype: str) -> jax.Array:
    wide = X.astype(jnp.promote_types(X.dtype, jnp.float32))
    return ((wide - shift.astype(wide.dtype)) / unit).astype(dtype)


class Frame(NamedTuple):
    """Rows minus a shift near their mean, in a unit in which their squares neither overflow nor vanish.

    Attributes:
        shift: A mean of some rows; zero without centring.
        unit: A power of two, so that dividing by it loses nothing; 1 for data of ordinary size.
    """

    shift: Float[np.ndarray, " d"]
    unit: float

    @classmethod
    def of(cls, rows: NDArray, *, center: bool) -> "Frame":
        """Return the frame of the first rows, all finite.

        Raises:
            ValueError: If their variances are beyond double precision.
        """
        wide = rows.astype(np.float64)
        shift = wide.mean(axis=0) if center else np.zeros(rows.shape[1])
        if np.abs(shift).max(initial=0) < np.finfo(np.float32).max:
            shift = shift.astype(np.float32).astype(np.float64)  # the same for rows in either precision
        size = float(np.abs(wide - shift).max(initial=0) or np.abs(wide).max(initial=0)) or 1.0
        if not 1 / _EXTREME < size < _EXTREME:
            raise ValueError(f"The data are of size {size:.1g}; 1e-152 to 1e152 is allowed. Scale them.")
        return cls(shift, 1.0 if 1 / _ORDINARY < size < _ORDINARY else 2.0 ** round(np.log2(size)))

    def enter(self, rows: Any, dtype: DTypeLike) -> Any:
        """Return rows (n, d) in the frame, in the given type; arrays of JAX stay on their device."""
        if isinstance(rows, jax.Array):
            return _moved(rows, jnp.asarray(self.shift, np.float32), self.unit, str(dtype))
        wide = np.float32 if np.can_cast(rows.dtype, np.float32) else np.float64
        moved = rows.astype(wide) - self.shift.astype(wide)
        if self.unit != 1:
            moved /= wide(self.unit)
        return moved.astype(dtype, copy=False)


def frame_of(view: NDArray, epsilon: float, *, whiten: bool) -> NDArray:
    """Return the frame in which a centred view has unit covariance, (r, d), or unit variances, (d,).

    In a frame a direction u of the samples F x stands for F' u: only the coordinates change, not the answer.
    Directions without variance are left out of a whitening frame.

    Raises:
        ValueError: If all columns are constant.
    """
    n, d = view.shape
    largest = np.abs(view).max(axis=0, initial=0)
    if not largest.any():
        raise ValueError("A view has no variance: all its columns are constant. Pass data that vary.")
    largest = np.where(largest > 0, largest, 1)  # squares of the quotient neither overflow nor vanish
    unit = largest * np.sqrt(np.square(view / largest).mean(axis=0))
    ridge = np.square(np.sqrt(epsilon) / np.where(unit > 0, unit, 1))
    if not whiten or d > _WIDEST or n < 2:
        deviation = np.where(unit > 0, unit, 1) * np.sqrt((unit > 0) + ridge)
        return np.where(deviation > 0, 1 / np.where(deviation > 0, deviation, 1), 1)
    unit = np.where(unit > 0, unit, 1)
    scaled = view / unit
    if n < d and not epsilon:
        _, singular, vectors = np.linalg.svd(scaled, full_matrices=False)
        values = np.square(singular) / n
        keep = values > values[0] * n * np.finfo(np.float64).eps
        return np.asarray((vectors[keep].T / np.sqrt(values[keep])).T / unit)
    values, vectors = np.linalg.eigh(scaled.T @ scaled / n + np.diag(ridge))
    keep = values > values[-1] * d * np.finfo(np.float64).eps
    return np.asarray((vectors[:, keep] / np.sqrt(values[keep])).T / unit)


def unit_rows(V: NDArray) -> NDArray:
    """Return rows of any size divided by their lengths; rows of zeros stay."""
    largest = np.abs(V).max(axis=1, keepdims=True)
    scaled = V / np.where(largest > 0, largest, 1)  # squares of these are representable
    lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
    return np.asarray(scaled / np.where(lengths > 0, lengths, 1))


def into(frame: NDArray, rows: NDArray) -> NDArray:
    """Return the coordinates of centred samples on rows, (n, r)."""
    return np.asarray(rows * frame if frame.ndim == 1 else rows @ frame.T)


def out_of(frame: NDArray, vectors: NDArray) -> NDArray:
    """Return what directions in the frame stand for in the coordinates of the data, (k, d)."""
    return np.asarray(vectors * frame if frame.ndim == 1 else vectors @ frame)
