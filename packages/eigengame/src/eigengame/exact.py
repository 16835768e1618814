"""Exact solvers to compare with: covariance and eigh, generalised eigh. In float64 on the host.

They need a (d, d) matrix and d**3 operations. Where that fits in memory they are usually faster than
any streaming method; see "Which solver when" in the README.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray

__all__ = ["Eigenpairs", "covariance", "pca", "pencil"]


class Eigenpairs(NamedTuple):
    """Eigenvalues in descending order and their vectors on rows.

    Attributes:
        values: Shape (k,).
        vectors: Shape (k, d).
    """

    values: NDArray
    vectors: NDArray


def refuse_rounded(values: NDArray, name: str) -> None:
    """Refuse integers that double precision would turn into others.

    Example:
        >>> refuse_rounded(np.array([2**60]), "X")
        >>> refuse_rounded(np.array([2**60 + 1]), "X")
        Traceback (most recent call last):
        ValueError: X holds integers that double precision rounds (beyond 2**53): subtract a constant first.
    """
    if values.dtype.kind not in "iu" or not values.size or -(2**53) <= values.min() <= values.max() <= 2**53:
        return
    with np.errstate(invalid="ignore"):  # 2**64, to which the largest are rounded, has no such type
        same = np.array_equal(values.astype(np.float64).astype(values.dtype), values)
    if not same:
        raise ValueError(
            f"{name} holds integers that double precision rounds (beyond 2**53): subtract a constant first."
        )


def doubles(X: Any, name: str) -> NDArray:
    """Return X in double precision.

    Raises:
        ValueError: For masked, complex or sparse entries, or integers that it rounds.
    """
    if np.ma.is_masked(X) or np.iscomplexobj(X) or hasattr(X, "toarray"):
        raise ValueError(f"{name} has masked, complex or sparse entries; pass a dense array of real numbers.")
    refuse_rounded(np.asarray(X), name)
    return np.asarray(X, np.float64)


def symmetric(A: Any, name: str) -> NDArray:
    """Return a square matrix in double precision.

    Raises:
        ValueError: If it is not square, or not symmetric to rounding error of single precision.
    """
    matrix = doubles(A, name)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"{name} has shape {matrix.shape}; a symmetric matrix is square.")
    if not np.abs(matrix - matrix.T).max() <= 1e-6 * np.abs(matrix).max():
        raise ValueError(
            f"{name} is not symmetric, or not finite; pass ({name} + {name}.T) / 2 if it should be."
        )
    return matrix


def orient(V: NDArray) -> NDArray:
    """Return the rows with the sign that makes the largest-magnitude entry of each positive.

    Example:
        >>> orient(np.array([[1.0, -2.0]]))
        array([[-1.,  2.]])
    """
    flat = V.reshape(V.shape[0], -1)
    peak = flat[np.arange(flat.shape[0]), np.argmax(np.abs(flat), axis=1)]
    signs = np.where(peak < 0, -1, 1).astype(V.dtype)
    return np.asarray(V * signs.reshape(-1, *[1] * (V.ndim - 1)))


def covariance(
    X: ArrayLike, *, center: bool = True, ddof: int = 0, chunk: int = 8192
) -> tuple[Float[np.ndarray, "d d"], Float[np.ndarray, " d"]]:
    """Return the covariance of the rows and their mean, reading `chunk` rows at a time.

    Raises:
        ValueError: For no table of finite numbers, or no more rows than `ddof`.

    Example:
        >>> covariance([[1.0], [3.0]])[0]
        array([[1.]])
    """
    rows: Any = X if hasattr(X, "shape") else np.asarray(X)
    if len(rows.shape) != 2 or rows.shape[0] <= ddof or chunk < 1:
        raise ValueError(
            f"X has shape {tuple(rows.shape)}, ddof={ddof}, chunk={chunk}; pass samples on rows, (n, d) "
            "with n > ddof, and chunk > 0."
        )
    n, d = rows.shape
    total, second = np.zeros(d), np.zeros((d, d))
    shift = doubles(rows[: min(n, chunk)], "X").mean(axis=0) if center else np.zeros(d)
    for start in range(0, n, chunk):
        part = doubles(rows[start : start + chunk], "X") - shift
        total += part.sum(axis=0)
        second += part.T @ part
    if not np.isfinite(second).all():
        raise ValueError("X holds entries that are NaN or infinite, or whose squares are; clean or scale it.")
    if not center:
        return second / (n - ddof), np.zeros(d)
    mean = total / n
    return (second - n * np.outer(mean, mean)) / (n - ddof), mean + shift


def pca(X: ArrayLike, k: int, *, center: bool = True, ddof: int = 0) -> Eigenpairs:
    """Return the top-k eigenpairs of the covariance of the rows.

    Example:
        >>> pca([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]], 2).values
        array([2. , 0.5])
    """
    return pencil(covariance(X, center=center, ddof=ddof)[0], k=k)


def pencil(A: ArrayLike, B: ArrayLike | None = None, *, k: int | None = None) -> Eigenpairs:
    """Return the top-k solutions of A v = lambda B v, with v'Bv = 1 (unit vectors without B).

    Raises:
        ValueError: For matrices that are not symmetric, or k outside 1..d.

    Example:
        >>> pencil(np.diag([2.0, 3.0]), np.diag([1.0, 3.0])).values
        array([2., 1.])
    """
    from scipy.linalg import eigh

    matrix = symmetric(A, "A")
    size = matrix.shape[0]
    k = size if k is None else k
    if not 1 <= k <= size:
        raise ValueError(f"k={k} is outside 1..{size}, the size of the matrix.")
    values, vectors = eigh(
        matrix, None if B is None else symmetric(B, "B"), subset_by_index=(size - k, size - 1)
    )
    return Eigenpairs(values[::-1], orient(vectors[:, ::-1].T))
