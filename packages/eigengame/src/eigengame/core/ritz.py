"""The best vectors in a span, how far they can be from the truth, and exact steps towards it.

Rayleigh-Ritz: among all combinations of given vectors the best eigenvectors are those of a small matrix.
With the residual r = A v - lambda B v of a unit vector and the gap to the other eigenvalues, the angle to
the true vector is at most about |r| / gap, and the eigenvalue is off by at most about |r|**2 / gap (Davis and
Kahan 1970; the gaps are those of the Ritz values, so the bound is an estimate).

`locally_optimal` improves a block of vectors by exact products only: each pass takes the best combination
of the vectors, their residuals and their last moves (Knyazev 2001). In NumPy on the host; the products may
come from anywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.linalg import eigh

__all__ = [
    "NOT_POSITIVE",
    "Block",
    "Quality",
    "locally_optimal",
    "orthogonal_rows",
    "quality",
    "rayleigh_ritz",
    "starting_block",
]

Products = Callable[[NDArray], tuple[NDArray, NDArray]]

NOT_POSITIVE = "B is not positive definite: {}. Pass epsilon > 0, which adds epsilon I to B."

_LOOSEST = 0.5  # radians: vectors that are further off tell nothing about the gaps

_DEPENDENT = 1e-3  # of the largest: directions below it in a normalised basis are rounding error


class Block(NamedTuple):
    """Vectors with their products and values, best first.

    Attributes:
        V: Vectors on rows with V B V' = I, (k, d).
        AV: Products A v_i.
        BV: Products B v_i.
        values: Rayleigh quotients, descending.
    """

    V: NDArray
    AV: NDArray
    BV: NDArray
    values: NDArray


@dataclass(frozen=True)
class Quality:
    """How near the leading vectors are to the true ones.

    Attributes:
        residuals: |A v - lambda B v|, (k,).
        angles: Estimated bound of the angle to the true vector in radians; pi / 2 where nothing is known, of
            vectors that are tied or unresolved too.
        value_errors: Estimated bound of the error of each value, rounding included.
        unresolved: Vectors without a value of their own: at rounding error of the largest.
        tied: Vectors whose value agrees with a neighbour's to rounding error: any rotation is as good.
        floor: Rounding error of a value.
    """

    residuals: Float[np.ndarray, " k"]
    angles: Float[np.ndarray, " k"]
    value_errors: Float[np.ndarray, " k"]
    unresolved: NDArray[np.int64]
    tied: NDArray[np.int64]
    floor: float

    def pending(self, tol: float) -> NDArray[np.int64]:
        """Return the vectors whose angle may exceed `tol` although their value is their own."""
        return np.setdiff1d(np.flatnonzero(self.angles > tol), np.union1d(self.unresolved, self.tied))


def _basis(V: NDArray, BV: NDArray, threshold: float) -> NDArray:
    """Return T with T (V B V') T' = I, one row per direction above the threshold.

    Raises:
        ValueError: If B is negative along a direction by more than rounding.
    """
    G = V @ BV.T
    G = (G + G.T) / 2
    squares = np.diagonal(G)
    lengths = np.sqrt(np.maximum(squares, 0))
    scale = np.where(lengths > 0, 1 / np.where(lengths > 0, lengths, 1), 0)
    values, mixing = eigh(scale[:, None] * G * scale)
    if min(squares.min() / (np.abs(squares).max() or 1), values[0] / (values[-1] or 1)) < -_DEPENDENT:
        raise ValueError(NOT_POSITIVE.format("v'Bv is negative along a vector v"))
    keep = values > threshold * max(values[-1], 0)
    return np.asarray((mixing[:, keep] / np.sqrt(values[keep])).T * scale)


def rayleigh_ritz(V: NDArray, AV: NDArray, BV: NDArray | None = None, threshold: float = 1e-12) -> Block:
    """Return the best vectors in the span of V, orthonormal in B and sorted; dependent rows are dropped.

    Args:
        V: Vectors on rows.
        AV: Products with the symmetric matrix A.
        BV: Products with the positive definite matrix B; None is the identity.
        threshold: Directions of the span shorter than this share of the longest are dropped.

    Example:
        >>> A = np.diag([1.0, 3.0])
        >>> block = rayleigh_ritz(np.array([[1.0, 1.0], [1.0, 0.9]]), np.array([[1.0, 1.0], [1.0, 0.9]]) @ A)
        >>> block.values.round(6), np.abs(block.V).round(6)
        (array([3., 1.]), array([[0., 1.],
               [1., 0.]]))
    """
    BV = V if BV is None else BV
    T = _basis(V, BV, threshold)
    M = T @ (AV @ V.T) @ T.T
    values, mixing = eigh((M + M.T) / 2)
    T = mixing[:, ::-1].T @ T
    return Block(T @ V, T @ AV, T @ BV, values[::-1])


def orthogonal_rows(V: NDArray, count: int) -> NDArray:
    """Return unit rows orthogonal to the orthonormal rows of V and to each other, the same at every call."""
    if not count:
        return np.zeros((0, V.shape[1]))
    draws = np.random.default_rng(0).standard_normal((count, V.shape[1]))
    for _ in range(2):
        draws = np.linalg.qr((draws - draws @ V.T @ V).T)[0].T
    return draws


def starting_block(V: NDArray, products: Products) -> Block:
    """Return a block of as many vectors as V has rows; rows that depend on others make way for new ones."""
    Q = _basis(V, V, _DEPENDENT) @ V
    Q = np.concatenate([Q, orthogonal_rows(Q, V.shape[0] - Q.shape[0])])
    return rayleigh_ritz(Q, *products(Q), threshold=_DEPENDENT)


def quality(block: Block, k: int, *, noise: float, size: float = 0.0, zero_is_null: bool = True) -> Quality:
    """Return how near the first k vectors are to the truth; the others only say where the gaps are.

    Args:
        block: From `rayleigh_ritz`.
        k: Number of vectors asked for.
        noise: Relative accuracy of the products; values and gaps below it times the largest are none.
        size: Largest absolute eigenvalue, if it may be above those of the block.
        zero_is_null: Whether a vector of value zero is no finding, as in PCA.
    """
    values, k = block.values, min(k, block.values.size)
    tiny = np.finfo(np.float64).tiny
    floor = noise * max(float(np.abs(values).max(initial=0)), size, tiny)
    lengths = np.maximum(np.linalg.norm(block.BV[:k], axis=1), tiny)
    residuals = np.linalg.norm(block.AV[:k] - values[:k, None] * block.BV[:k], axis=1) / lengths
    distances = np.abs(values[:k, None] - values[None, :])
    distances[np.arange(k), np.arange(k)] = np.inf
    gaps = distances.min(axis=1, initial=np.inf)
    safe = np.maximum(gaps, floor)
    angles = np.arcsin(np.minimum(residuals / safe, 1))
    if values.size == k < block.V.shape[1]:
        angles[-1] = np.pi / 2  # nothing is known of the values below the last
    null = (np.abs(values[:k]) <= floor) & zero_is_null
    tied = ~null & (gaps <= 10 * floor) & (residuals <= 10 * floor)
    return Quality(
        residuals=residuals,
        angles=np.where(tied | null, np.pi / 2, angles),
        value_errors=np.minimum(residuals, np.square(residuals) / safe) + floor,
        unresolved=np.flatnonzero(null),
        tied=np.flatnonzero(tied),
        floor=floor,
    )


def _against(W: NDArray, block: Block) -> NDArray:
    """Return the coefficients of W along the vectors of a block, in the inner product of B."""
    return np.asarray(W @ block.BV.T)


def _normalised(*arrays: NDArray, above: float = 0.0) -> list[NDArray]:
    """Return arrays with each row of all divided by its length in the first; shorter rows dropped."""
    lengths = np.linalg.norm(arrays[0], axis=1)
    keep = lengths > above
    return [array[keep] / lengths[keep, None] for array in arrays]


def locally_optimal(
    products: Products,
    start: Block,
    judge: Callable[[Block], Quality],
    *,
    tol: float,
    max_passes: int,
    precondition: Callable[[NDArray], NDArray] | None = None,
) -> tuple[Block, int]:
    """Return a block improved by exact products until the first k are within `tol`, and the passes.

    Args:
        products: Maps vectors W (m, d) to (A W, B W); one call is one pass.
        start: From `rayleigh_ritz` or `starting_block`; the result has its size, rows beyond k guard
            the gap.
        judge: `quality` with all but its first argument given.
        tol: Largest estimated angle in radians that is good enough; above 0.5 it counts as 0.5.
        max_passes: Limit of the calls.
        precondition: Maps residuals to moves, an approximate inverse of A or B.

    Example:
        >>> from functools import partial
        >>> A = np.diag(np.arange(1.0, 51))
        >>> V = np.random.default_rng(0).standard_normal((4, 50))
        >>> judge = partial(quality, k=2, noise=1e-14)
        >>> block, passes = locally_optimal(
        ...     lambda W: (W @ A, W), rayleigh_ritz(V, V @ A), judge, tol=1e-6, max_passes=60
        ... )
        >>> block.values[:2].round(6)
        array([50., 49.])
    """
    block, size = start, start.values.size
    moves: Block | None = None
    kept, best, floor, stalled = block, np.inf, np.inf, 0
    for passes in range(max_passes):
        state = judge(block)
        floor = min(floor, state.floor)
        pending = state.pending(min(tol, _LOOSEST))
        if not pending.size:
            return block, passes
        worst = float(state.residuals[pending].max())
        stalled = 0 if worst < 0.9 * best else stalled + 1
        if worst < best:
            best, kept = worst, block
        if stalled >= 5 and best <= 100 * floor:
            return kept, passes  # as good as the products: further moves would add up their rounding errors
        W = block.AV - block.values[:, None] * block.BV
        W = W if precondition is None else precondition(W)
        for _ in range(2):
            (W,) = _normalised(W)
            W = W - _against(W, block) @ block.V
        (W,) = _normalised(W)
        if not W.size:
            return block, passes
        W = _basis(W, W, _DEPENDENT) @ W
        AW, BW = products(W)
        S, AS, BS = (np.concatenate(pair) for pair in zip(block[:3], (W, AW, BW), strict=True))
        if moves is not None:
            S, AS, BS = (np.concatenate(pair) for pair in zip((S, AS, BS), moves[:3], strict=True))
        T = _basis(S, BS, _DEPENDENT)
        M = T @ (AS @ S.T) @ T.T
        values, mixing = eigh((M + M.T) / 2)
        C = (mixing[:, ::-1].T @ T)[:size]
        fresh = Block(C @ S, C @ AS, C @ BS, values[::-1][:size])
        C = C.copy()
        C[:, : block.values.size] = 0
        P, AP, BP = _normalised(C @ S, C @ AS, C @ BS)
        along = _against(P, fresh)
        P, AP, BP = P - along @ fresh.V, AP - along @ fresh.AV, BP - along @ fresh.BV
        P, AP, BP = _normalised(P, AP, BP, above=_DEPENDENT)
        moves = Block(P, AP, BP, np.empty(0))
        block = fresh
    return kept, max_passes
