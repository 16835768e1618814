"""How close vectors are to the truth: angles, streak, subspace distance, assignment.

Vectors on rows; signs never matter. Everything runs in NumPy in float64, outside compiled code.
"""

import math

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray

from eigengame.exact import doubles, symmetric
from gdyn_common import spectral

__all__ = [
    "angles",
    "captured_value_ratio",
    "clustering_accuracy",
    "cosine_similarities",
    "longest_correct_eigenvector_streak",
    "match_vectors",
    "subspace_distance",
]


def _unit_rows(V: ArrayLike, name: str) -> NDArray:
    rows = doubles(V, name)
    if rows.ndim != 2 or not rows.size:
        raise ValueError(f"{name} has shape {rows.shape}; pass one vector per row, shape (k, d).")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.all(np.isfinite(norms)) or np.any(norms == 0):
        raise ValueError(f"{name} contains a zero or non-finite row; angles are undefined.")
    return np.asarray(rows / norms)


def _pair(V: ArrayLike, reference: ArrayLike) -> tuple[NDArray, NDArray]:
    rows, truth = _unit_rows(V, "V"), _unit_rows(reference, "reference")
    if rows.shape[1] != truth.shape[1]:
        hint = " (transpose it: rows are vectors)" if truth.shape[0] == rows.shape[1] else ""
        raise ValueError(f"V has dimension {rows.shape[1]} but reference has {truth.shape[1]}{hint}.")
    if truth.shape[0] < rows.shape[0]:
        raise ValueError(f"V has {rows.shape[0]} vectors but reference only {truth.shape[0]}.")
    return rows, truth[: rows.shape[0]]


def angles(V: ArrayLike, reference: ArrayLike) -> Float[np.ndarray, " k"]:
    """Return the angle in [0, pi/2] between v_i and the i-th reference vector, whatever the signs.

    Computed as atan2(||v - <v,e> e||, |<v,e>|), exact also far below 1e-8 rad where arccos fails.

    Raises:
        ValueError: For shapes that do not fit or zero rows.

    Example:
        >>> angles([[1.0, 1.0]], [[-1.0, 0.0]]).round(4)
        array([0.7854])
    """
    rows, truth = _pair(V, reference)
    cosines = np.sum(rows * truth, axis=1, keepdims=True)
    sines = np.linalg.norm(rows - cosines * truth, axis=1)
    return np.asarray(np.arctan2(sines, np.abs(cosines[:, 0])))


def longest_correct_eigenvector_streak(
    V: ArrayLike, reference: ArrayLike, threshold: float = math.pi / 8
) -> int:
    """Return how many leading vectors are within `threshold` of their reference before the first miss.

    Source: Sec. 5 of Gemp et al. 2021b.

    Example:
        >>> import numpy as np
        >>> theta = np.array([np.pi / 16, np.pi / 4])
        >>> longest_correct_eigenvector_streak(np.c_[np.cos(theta), np.sin(theta)], [[1, 0], [1, 0]])
        1
    """
    return streak_of_angles(angles(V, reference), threshold)


def streak_of_angles(theta: ArrayLike, threshold: float = math.pi / 8) -> int:
    """Return the number of leading angles strictly below `threshold`.

    Example:
        >>> streak_of_angles([math.pi / 16, math.pi / 4, math.pi / 10])
        1
    """
    wrong = np.flatnonzero(~(np.asarray(theta) < threshold))
    return int(wrong[0]) if wrong.size else len(np.asarray(theta))


def subspace_distance(V: ArrayLike, reference: ArrayLike, B: ArrayLike | None = None) -> float:
    """Return 1 - tr(U P) / k in [0, 1], with U and P the projectors on the two row spaces.

    In O(d k**2), from orthonormal bases of the two factors; without B no (d, d) matrix is formed. For a
    rank-deficient V (players that collapsed onto one another) the lost directions count as wrong.

    Args:
        V: Vectors on rows, (k, d); need not be orthogonal.
        reference: Linearly independent vectors on rows, at least k; the first k are used.
        B: Positive definite (d, d) inner product; default the Euclidean one.

    Raises:
        ValueError: For shapes that do not fit, dependent reference vectors, or B not positive.

    Source: Sec. 5 of Gemp et al. 2021b.

    Example:
        >>> subspace_distance([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]], [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        0.5
    """
    rows, truth = _pair(V, reference)
    if B is not None:
        root = _root(B)
        rows, truth = _pair(rows @ root, truth @ root)
    _, values, right = np.linalg.svd(rows, full_matrices=False)
    basis = right[values > values[0] * max(rows.shape) * np.finfo(np.float64).eps]
    distance = spectral.subspace_distance(basis.T, truth.T)
    lost = 1 - basis.shape[0] / rows.shape[0]
    return float(lost + (1 - lost) * distance)


def _root(B: ArrayLike) -> NDArray:
    """Return R with R R' = B: vectors v'R have the Euclidean products that v have in B."""
    values, vectors = np.linalg.eigh(symmetric(B, "B"))
    if values[0] < -1e-10 * abs(values[-1]):
        raise ValueError("B is not positive: it has negative eigenvalues and defines no inner product.")
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))


def cosine_similarities(V: ArrayLike, reference: ArrayLike) -> Float[np.ndarray, " k"]:
    """Return |<v_i, e_i>| of the unit vectors (absolute, so that a flipped vector counts as found).

    Example:
        >>> cosine_similarities([[0.0, -2.0]], [[0.0, 1.0]])
        array([1.])
    """
    rows, truth = _pair(V, reference)
    return np.asarray(np.abs(np.sum(rows * truth, axis=1)))


def match_vectors(V: ArrayLike, reference: ArrayLike) -> NDArray[np.int64]:
    """Return for each reference vector the row of V assigned to it, maximising total |cosine|.

    For methods that find only a subspace: match first, then take angles.

    Example:
        >>> match_vectors([[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]])
        array([1, 0])
    """
    from scipy.optimize import linear_sum_assignment

    rows, truth = _pair(V, reference)
    players, places = linear_sum_assignment(-np.abs(rows @ truth.T))
    return np.asarray(players[np.argsort(places)], dtype=np.int64)


def captured_value_ratio(values: ArrayLike, reference: ArrayLike) -> float:
    """Return sum(values) / sum(reference) over the leading entries.

    Raises:
        ValueError: For tables, or more values than there are in the reference.

    Example:
        >>> captured_value_ratio([2.0, 1.0], [2.0, 2.0, 1.0])
        0.75
    """
    found, truth = doubles(values, "values"), doubles(reference, "reference")
    if found.ndim != 1 or truth.ndim != 1 or not 0 < found.size <= truth.size:
        raise ValueError(
            f"values has shape {found.shape} and reference {truth.shape}; pass (k,) and (l,), 1 <= k <= l."
        )
    return float(np.sum(found) / np.sum(truth[: found.size]))


def clustering_accuracy(labels: ArrayLike, truth: ArrayLike) -> float:
    """Return the share of correct labels under the best assignment of clusters to classes.

    Raises:
        ValueError: If the two are not vectors of one length.

    Example:
        >>> clustering_accuracy([1, 1, 0, 0], [0, 0, 1, 0])
        0.75
    """
    from scipy.optimize import linear_sum_assignment

    if np.ndim(labels) != 1 or np.shape(labels) != np.shape(truth) or not np.size(labels):
        raise ValueError(
            f"labels has shape {np.shape(labels)} and truth {np.shape(truth)}; pass one label a sample, (n,)."
        )
    found, classes = np.unique(labels, return_inverse=True)[1], np.unique(truth, return_inverse=True)[1]
    table = np.zeros((found.max() + 1, classes.max() + 1), dtype=np.int64)
    np.add.at(table, (found, classes), 1)
    rows, columns = linear_sum_assignment(-table)
    return float(table[rows, columns].sum() / found.size)
