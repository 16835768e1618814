"""Coordinates in which a problem has no units, and single precision holds the digits that matter."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpy.typing import DTypeLike, NDArray

from eigengame.estimators.streams import chunks

__all__ = ["CACHED", "Frame", "frame_of", "into", "mean_of", "out_of", "unit_rows"]

_ORDINARY = 2.0**20  # data of at most this size, and at least its inverse, are left in their unit

_SINGLE = 2.0**100  # rows of this size, and of its inverse, enter in double precision: the unit is one

_EXTREME = 2.0**505  # squares of data of this size, and of its inverse, are doubles with all their digits

CACHED = 256
"""Rows that are worked on at a time, so that those of a thousand columns stay in the cache."""

_EPS = float(np.finfo(np.float64).eps)

_WIDEST = 2048  # views of more columns are scaled column by column, not whitened: a (d, d) matrix is formed


@partial(jax.jit, static_argnames="dtype")
def _moved(X: jax.Array, shift: jax.Array, rest: jax.Array, unit: float, dtype: str) -> jax.Array:
    return ((X.astype(shift.dtype) - shift - rest) / unit).astype(dtype)


class Frame(NamedTuple):
    """Rows minus a shift near their mean, in a unit in which their squares neither overflow nor vanish.

    Attributes:
        shift: A mean of some rows, a number of single precision if the rows are; zero without centring.
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
        shift = mean_of(rows) if center else np.zeros(rows.shape[1])
        if np.can_cast(rows.dtype, np.float32):
            shift = shift.astype(np.float32).astype(np.float64)  # one subtraction is exact
        size = _largest(rows, shift) or _largest(rows, np.zeros_like(shift)) or 1.0
        if not 1 / _EXTREME < size < _EXTREME:
            raise ValueError(f"The data are of size {size:.1g}; 1e-152 to 1e152 is allowed. Scale them.")
        return cls(shift, 1.0 if 1 / _ORDINARY < size < _ORDINARY else 2.0 ** round(np.log2(size)))

    def enter(self, rows: Any, dtype: DTypeLike) -> Any:
        """Return rows (n, d) in the frame, in the given type; JAX arrays of usual size stay on device."""
        ordinary = 1 / _SINGLE < self.unit < _SINGLE
        on_device = isinstance(rows, jax.Array) and ordinary
        if on_device:
            wide = jnp.promote_types(rows.dtype, np.float32).type
        else:
            rows = np.asarray(rows)
            wide = np.float32 if ordinary and np.can_cast(rows.dtype, np.float32) else np.float64
        with np.errstate(over="ignore", invalid="ignore"):
            shift = self.shift.astype(wide)
            rest = (self.shift - shift).astype(wide)  # what single precision has lost of the shift
        if on_device:
            return _moved(rows, shift, rest, self.unit, str(dtype))
        moved = rows.astype(wide) - shift
        if rest.any():
            moved -= rest
        if self.unit != 1:
            moved /= wide(self.unit)
        return moved.astype(dtype, copy=False)


def mean_of(rows: NDArray) -> NDArray:
    """Return the mean of rows to the last digits of a double; that of a constant column is its value."""
    mean = rows[0].astype(np.float64)
    for _ in range(2):  # the second sum takes away the rounding of the first
        mean = mean + sum((rows[part] - mean).sum(axis=0) for part in chunks(rows, CACHED)) / len(rows)
    return np.asarray(mean)


def _largest(rows: NDArray, shift: NDArray) -> float:
    return max(float(np.abs(rows[part] - shift).max(initial=0)) for part in chunks(rows, CACHED))


def frame_of(view: NDArray, mean: NDArray, epsilon: float, *, whiten: bool) -> NDArray:
    """Return the frame in which a centred view has unit covariance, (r, d), or unit variances, (d,).

    In a frame a direction u of the samples F x stands for F' u: only the coordinates change, not the answer.
    Columns that do not vary beyond the rounding of their mean have weight zero, and directions without
    variance are left out of a whitening frame.

    Args:
        view: Rows, (n, d).
        mean: Of the columns.
        epsilon: Multiple of the identity added to the covariance.
        whiten: False scales column by column.
    """
    n, d = view.shape
    centred = view - mean
    largest = np.abs(centred).max(axis=0)
    varies = largest > 4 * _EPS * np.abs(mean)
    largest = np.where(varies, largest, 1)  # squares of the quotient neither overflow nor vanish
    scaled = np.where(varies, centred / largest, 0)
    size = np.where(varies, np.sqrt(np.square(scaled).mean(axis=0)), 1)
    unit = largest * size
    ridge = np.where(varies, np.square(np.sqrt(epsilon) / unit), 0)
    if not whiten or d > _WIDEST or n < 2:
        return np.where(varies, 1 / (unit * np.sqrt(1 + ridge)), 0)
    # singular values of the rows keep the digits that those of a covariance have lost
    scaled /= size
    rows = np.concatenate([scaled, np.diag(np.sqrt(n * ridge))]) if epsilon else scaled
    _, singular, vectors = np.linalg.svd(np.linalg.qr(rows, mode="r"), full_matrices=False)
    noise = _EPS * (10 * (d + np.sqrt(n)) + 4 * np.max(np.abs(mean) / unit, where=varies, initial=0))
    keep = singular > singular[0] * noise
    return np.asarray(vectors[keep] * (np.sqrt(n) / singular[keep])[:, None] * np.where(varies, 1 / unit, 0))


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
