"""One pass over the data: what it adds up, in memory for one batch and the vectors."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from eigengame.estimators.frames import Frame
from eigengame.estimators.streams import (
    check_finite,
    chunks,
    dense_rows,
    iterable_batches,
    pad_rows,
)

__all__ = ["Pass", "one_pass"]


_BLOCK = 256  # rows whose products are added up at once: they stay in the cache

_ROWS = 2**14  # rows that are added up in the type of the arithmetic; beyond, sums are in double precision


class _Sums(NamedTuple):
    """What a pass adds up, of rows minus a fixed shift."""

    products: Float[Array, "m d"]
    shift: Float[Array, " d"]
    squares: Float[Array, ""]


class Pass(NamedTuple):
    """What one pass found, in the frame.

    Attributes:
        products: C W' on rows, (m, d).
        mean: Mean of the rows; zero without centring.
        total: Total variance.
        num_rows: Number of rows.
        mark: C p for a fixed random p, by which two readings of a stream are told apart; empty for arrays.
    """

    products: NDArray
    mean: NDArray
    total: float
    num_rows: int
    mark: NDArray

    def distance(self, other: "Pass") -> float:
        """Return how far mean and covariance of two readings are apart, 0 for equal rows in any order.

        A random product sees any change of the covariance (Freivalds 1977), as its Frobenius norm does.
        """
        if not self.total or not self.mark.size:
            return 0.0
        moved = float(np.linalg.norm(self.mean - other.mean) / np.sqrt(self.total))
        if not other.mark.size:  # of which the mean alone is known
            return moved
        return max(moved, float(np.linalg.norm(self.mark - other.mark) / self.total))


@jax.jit
def _add_rows(sums: _Sums, W: Array, rows: Array, mean: Array, num_valid: Array) -> _Sums:
    """Add (rows - mean)' (rows - mean) W' and the moments of a batch; rows beyond num_valid do not count.

    Long sums of equal rows, of one-hot or sparse data, round the same way again and again: so in blocks.
    """
    n, d = rows.shape
    size = min(n, _BLOCK)

    def add(held: _Sums, part: tuple[Array, Array]) -> tuple[_Sums, None]:
        block, valid = part
        X = jnp.where(valid[:, None], block - mean, 0).astype(mean.dtype)
        return _Sums(
            held.products + (W @ X.T) @ X,
            held.shift + jnp.sum(X, axis=0),
            held.squares + jnp.sum(jnp.square(X)),
        ), None

    blocks = rows.reshape(-1, size, d), (jnp.arange(n) < num_valid).reshape(-1, size)
    return jax.lax.scan(add, sums, blocks)[0]


def one_pass(
    data: Any,
    W: Float[np.ndarray, "m d"],
    *,
    frame: Frame,
    shift: NDArray | None,
    batch_size: int,
    multiple: int,
    dtype: str,
) -> Pass:
    """Return products of vectors with the covariance of the data.

    Args:
        data: Array, memmap or CSR matrix, or a stream of batches.
        W: Vectors on rows.
        frame: Coordinates of the vectors; rows enter it first.
        shift: Guess of the mean in the frame, subtracted so that no digits cancel; None does not centre.
        batch_size: Rows at a time of a stream; of arrays as many as make 16 MB in single precision, at most
            16 384.
        multiple: W is padded to a multiple of this, so that few shapes are compiled and not one per size.
        dtype: Type of the arithmetic.

    Raises:
        ValueError: For rows that are not finite or of another width; names the batch.
    """
    d = W.shape[1]
    padded = np.pad(W, ((0, -W.shape[0] % multiple), (0, 0)))
    streamed = not hasattr(data, "shape")
    if streamed:  # what can change from one reading to the next
        padded = np.concatenate([padded, np.random.default_rng(0).standard_normal((1, d))])
    empty = sums = _Sums(jnp.zeros(padded.shape, dtype), jnp.zeros(d, dtype), jnp.zeros((), dtype))
    totals = [np.zeros(part.shape) for part in empty]
    start = np.zeros(d, dtype) if shift is None else shift.astype(dtype)
    device_W, count, pending = jnp.asarray(padded, dtype), 0, 0
    size = batch_size
    if not streamed:
        size = min(max(int(2**22 // d), _BLOCK), _ROWS, data.shape[0])
        batches: Iterable[NDArray] = (dense_rows(data, part) for part in chunks(data, size))
    else:
        batches = iterable_batches(data, batch_size)
    if size > _BLOCK:
        size += -size % _BLOCK
    for index, rows in enumerate(batches):
        if rows.shape[1] != d:
            raise ValueError(f"Batch {index} has {rows.shape[1]} features; the fit has {d}.")
        check_finite(rows, index)
        moved = pad_rows(frame.enter(rows, dtype), size)
        sums = _add_rows(sums, device_W, moved, start, np.int32(len(rows)))
        count, pending = count + len(rows), pending + len(rows)
        if pending >= _ROWS:
            totals, sums, pending = _added(totals, sums), empty, 0
    products, offset, squares = (part / count for part in _added(totals, sums))
    offset = np.zeros(d) if shift is None else offset
    products = products - np.outer(padded @ offset, offset)
    mark = products[-1] if streamed else np.zeros(0)
    return Pass(products[: W.shape[0]], start + offset, float(squares - offset @ offset), count, mark)


def _added(totals: list[NDArray], sums: _Sums) -> list[NDArray]:
    return [total + np.asarray(part, np.float64) for total, part in zip(totals, sums, strict=True)]
