"""Extreme eigenpairs of a symmetric operator: power iteration and restarted Lanczos.

SciPy's `eigsh` is not used, because it misses copies of multiple eigenvalues; see `lanczos`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float

Vector = Float[np.ndarray, " dim"]
Matvec = Callable[[Any], Any]  # (dim,) -> (dim,); `Any` admits arrays of other frameworks on return
Which = Literal["LA", "SA", "LM", "BE"]

MISS_PROBABILITY = 1e-5  # of overlooking an eigenvalue, per search of `lanczos`; see there
BREAKDOWN = 1e-13  # relative size below which a new Krylov direction is rounding error


@dataclass(frozen=True)
class Eigenpair:
    """An approximate eigenpair: `residual` is the 2-norm of ``A v - value v`` with unit `vector`."""

    value: float
    vector: Vector
    iterations: int
    residual: float


@dataclass(frozen=True)
class Eigenpairs:
    """Approximate eigenpairs in descending order of `values`, with orthonormal columns `vectors`.

    Attributes:
        values: Eigenvalues.
        vectors: Eigenvectors, column i belongs to ``values[i]``.
        residuals: Measured 2-norms of ``A v - value v``.
        num_matvecs: Products spent, those for the residuals included.
    """

    values: Float[np.ndarray, " k"]
    vectors: Float[np.ndarray, "dim k"]
    residuals: Float[np.ndarray, " k"]
    num_matvecs: int


@dataclass(frozen=True)
class Tridiagonal:
    """The k-step Lanczos factorisation ``basis' A basis = T`` of a symmetric operator.

    Attributes:
        diagonal: Of T.
        off_diagonal: Of T.
        basis: Orthonormal columns, the first one the normalised start vector.
    """

    diagonal: Float[np.ndarray, " steps"]
    off_diagonal: Float[np.ndarray, " steps-1"]
    basis: Float[np.ndarray, "dim steps"]


class ConvergenceError(RuntimeError):
    """The tolerance was not reached within the allowed number of products."""


class _Operator:
    """A matvec that checks what it returns and counts its calls.

    It is handed a copy, and its answer is copied: it may write into its argument, return the same
    buffer each time, or return an array that cannot be written to, as JAX's are.
    """

    def __init__(self, matvec: Matvec, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"dim is {dim}; the operator must act on at least one dimension.")
        self.matvec, self.dim, self.calls = matvec, dim, 0

    def __call__(self, vector: Vector) -> Vector:
        self.calls += 1
        product = np.array(self.matvec(vector.copy()))
        if np.iscomplexobj(product):
            raise ValueError("matvec returned complex numbers; the operator must be real and symmetric.")
        product = product.astype(np.float64, copy=False)
        if product.shape != (self.dim,):
            raise ValueError(
                f"matvec returned shape {product.shape}; it must map ({self.dim},) to ({self.dim},)."
            )
        if not np.isfinite(product).all():
            raise ValueError("matvec returned NaN or infinity; check the parameters it is evaluated at.")
        return product


def _orthogonal_random(basis: Float[np.ndarray, "dim k"], generator: np.random.Generator) -> Vector:
    vector = generator.standard_normal(len(basis))
    for _ in range(2):  # the second pass removes what rounding left in the first
        vector -= basis @ (basis.T @ vector)
        vector /= np.linalg.norm(vector)
    return vector


def _unit_start(start: Any, dim: int, generator: np.random.Generator) -> Vector:
    if start is None:
        return _orthogonal_random(np.empty((dim, 0)), generator)
    vector = np.array(start, dtype=np.float64)
    norm = float(np.linalg.norm(vector))
    if vector.shape != (dim,) or not math.isfinite(norm) or norm == 0:
        raise ValueError(
            f"start has shape {vector.shape}, norm {norm:g}; pass a finite non-zero vector of shape ({dim},)."
        )
    return vector / norm


def power_iteration(
    matvec: Matvec,
    dim: int,
    *,
    generator: np.random.Generator,
    tol: float = 1e-6,
    max_iterations: int = 1000,
    start: Any = None,
) -> Eigenpair:
    """Find the eigenvalue of largest magnitude by repeated multiplication.

    `lanczos` needs far fewer products; this is the textbook method, and two vectors of memory.

    Args:
        matvec: Symmetric operator, (dim,) to (dim,).
        dim: Its dimension.
        generator: Draws the start vector.
        tol: Accept when the residual is at most `tol` times the magnitude of the eigenvalue.
        max_iterations: Largest number of products.
        start: Start vector instead of a random one, for instance the result for nearby parameters.

    Raises:
        ConvergenceError: If `max_iterations` do not suffice. Two eigenvalues of equal magnitude
            and opposite sign never converge; use `lanczos`.

    >>> pair = power_iteration(lambda v: [1.0, -3.0] * v, 2, generator=np.random.default_rng(0), tol=1e-9)
    >>> round(pair.value, 12)
    -3.0
    """
    operator = _Operator(matvec, dim)
    vector = _unit_start(start, dim, generator)
    value, residual = 0.0, math.inf
    while operator.calls < max_iterations:
        product = operator(vector)
        value = float(vector @ product)
        residual = float(np.linalg.norm(product - value * vector))
        if residual <= tol * abs(value) or not product.any():
            return Eigenpair(value, vector, operator.calls, residual)
        vector = product / np.linalg.norm(product)
    raise ConvergenceError(
        f"power iteration: residual {residual:.2g} at eigenvalue {value:.6g} after {max_iterations} "
        "products; raise tol or max_iterations, or use lanczos."
    )


def lanczos_tridiagonal(
    matvec: Matvec, dim: int, num_steps: int, *, generator: np.random.Generator, start: Any = None
) -> Tridiagonal:
    """Run `num_steps` Lanczos steps with full reorthogonalisation, without restarts.

    Stops early, with fewer steps, when the Krylov space of the start vector is exhausted.

    Source: Golub and Van Loan, Matrix Computations (4th ed.), algorithm 10.1.1.

    Args:
        matvec: Symmetric operator, (dim,) to (dim,).
        dim: Its dimension.
        num_steps: Steps, at most `dim` are made.
        generator: Draws the start vector.
        start: Start vector instead of a random one.

    >>> steps = lanczos_tridiagonal(
    ...     lambda v: [0.0, 2.0] * v, 2, 5, generator=np.random.default_rng(0), start=[1.0, 1.0])
    >>> steps.diagonal, steps.off_diagonal
    (array([1., 1.]), array([1.]))
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; make at least one.")
    operator = _Operator(matvec, dim)
    basis = np.empty((dim, min(num_steps, dim)), order="F")
    diagonal, off_diagonal = [], []
    vector, scale = _unit_start(start, dim, generator), 0.0
    for step in range(basis.shape[1]):
        basis[:, step] = vector
        product = operator(vector)
        diagonal.append(float(vector @ product))
        scale = max(scale, float(np.linalg.norm(product)))
        done = basis[:, : step + 1]
        for _ in range(2):
            product -= done @ (done.T @ product)
        norm = float(np.linalg.norm(product))
        if norm <= BREAKDOWN * scale or step + 1 == basis.shape[1]:
            break
        off_diagonal.append(norm)
        vector = product / norm
    return Tridiagonal(np.array(diagonal), np.array(off_diagonal), basis[:, : len(diagonal)])


def lanczos(
    matvec: Matvec,
    dim: int,
    num_eigenpairs: int,
    *,
    generator: np.random.Generator,
    which: Which = "LA",
    tol: float = 1e-8,
    max_iterations: int = 10_000,
    basis_size: int | None = None,
    start: Any = None,
) -> Eigenpairs:
    """Find extreme eigenpairs with their multiplicity.

    Thick-restart Lanczos with full reorthogonalisation. A Krylov space of one vector holds one
    vector of each eigenspace, so further copies of a multiple eigenvalue enter by rounding error
    only, and a search that stops at a tolerance usually stops before: for the three largest
    eigenvalues of the 31 x 31 discrete Laplacian `scipy.sparse.linalg.eigsh` missed a copy in 30 of
    30 random starts at ``tol=1e-6`` and in 26 at 1e-10 (SciPy 1.17). Therefore what was found is
    locked and the search repeated from a fresh random vector in its complement, until such a
    search brings nothing new. It ends when the complement's extreme pair has converged to
    max(`tol`, 1e-5), or when the probability that an eigenvalue hides beyond the gap observed is
    below 1e-5 by the bound ``1.648 sqrt(dim) exp(-sqrt(gap) (2 steps - 1))`` of Kuczynski and
    Wozniakowski (gap relative to the spread of the spectrum; proved without restarts). With
    ``num_eigenpairs=1`` copies do not matter and the search is made once.

    Members of a cluster narrower than the tolerance are not told apart from each other.
    Convergence is relative to the largest magnitude met, an estimate of the operator's norm, so
    that eigenvalues at or near zero are found like any other (eigsh asks for a residual relative
    to each eigenvalue).

    Source: Wu and Simon, SIAM J. Matrix Anal. Appl. 22 (2000); Kuczynski and Wozniakowski, SIAM J.
    Matrix Anal. Appl. 13 (1992), theorem on the randomised Lanczos algorithm.

    Args:
        matvec: Symmetric operator, (dim,) to (dim,).
        dim: Its dimension.
        num_eigenpairs: k, from 1 to `dim`.
        generator: Draws start vectors.
        which: ``"LA"`` largest, ``"SA"`` smallest, ``"LM"`` largest in magnitude, ``"BE"`` from both
            ends, one more from the high end if k is odd.
        tol: Accepted residual estimate, relative to the largest magnitude met; the residuals measured
            at the end exceed it by a third at most in our tests.
        max_iterations: Largest number of products.
        basis_size: Vectors of length `dim` held in memory; default max(2 k + 1, 32). More of them help
            when the wanted end is crowded.
        start: Start vector instead of a random one.

    Returns:
        Values (descending for every `which`), orthonormal vectors, measured residuals.

    Raises:
        ConvergenceError: If `max_iterations` products do not suffice.
        ValueError: If an argument is out of range, or `matvec` returns another shape or NaN.

    >>> diagonal = np.array([5.0, 5.0, 5.0, 1.0, 0.0, -7.0])
    >>> pairs = lanczos(lambda v: diagonal * v, 6, 4, generator=np.random.default_rng(0))
    >>> pairs.values.round(9).tolist()
    [5.0, 5.0, 5.0, 1.0]
    """
    if not 1 <= num_eigenpairs <= dim:
        raise ValueError(f"num_eigenpairs is {num_eigenpairs}; pass 1 to dim={dim}.")
    if which not in get_args(Which):
        raise ValueError(f"which is {which!r}; pass one of {', '.join(get_args(Which))}.")
    if not tol > 0:
        raise ValueError(f"tol is {tol}; pass a positive number such as 1e-8.")
    size = max(2 * num_eigenpairs + 1, 32) if basis_size is None else basis_size
    if size <= num_eigenpairs + 1:
        raise ValueError(f"basis_size is {size}; it must exceed num_eigenpairs + 1 = {num_eigenpairs + 1}.")
    search = _ThickRestart(
        _Operator(matvec, dim), min(size, dim), _unit_start(start, dim, generator), generator
    )
    locked = None
    while True:
        wanted = search.run(num_eigenpairs, which, tol, max_iterations, locked)
        values = np.sort(search.ritz_values[wanted])[::-1]
        if (
            num_eigenpairs == 1
            or search.is_complete
            or (locked is not None and _same(values, locked, tol * search.scale))
        ):
            return search.measure(wanted)
        locked = values
        search.restart(wanted, from_random=True)


def _same(values: np.ndarray, locked: np.ndarray, accuracy: float) -> bool:
    return bool(np.abs(values - locked).max() <= 2 * accuracy)


def _select(ritz: np.ndarray, k: int, which: Which) -> tuple[np.ndarray, np.ndarray, float]:
    """Return indices of the k wanted among ascending values, of the runners-up, and the gap between."""
    if which == "LM":
        order = np.argsort(-np.abs(ritz), kind="stable")
        magnitudes = np.abs(ritz[order])
        gap = float(magnitudes[k - 1] - magnitudes[k]) if k < len(ritz) else math.inf
        return order[:k], order[k : k + 1], gap
    num_high = {"LA": k, "SA": 0, "BE": (k + 1) // 2}[which]
    num_low = k - num_high
    index = np.arange(len(ritz))
    wanted = np.concatenate([index[len(ritz) - num_high :], index[:num_low]])
    runners_up, gap = [], math.inf
    if k < len(ritz) and num_high:
        runners_up.append(len(ritz) - num_high - 1)
        gap = float(ritz[runners_up[-1] + 1] - ritz[runners_up[-1]])
    if k < len(ritz) and num_low:
        runners_up.append(num_low)
        gap = min(gap, float(ritz[num_low] - ritz[num_low - 1]))
    return wanted, np.array(runners_up, dtype=int), gap


class _ThickRestart:
    """An orthonormal basis, the operator's projection on it, and the direction to add next."""

    def __init__(self, operator: _Operator, size: int, start: Vector, generator: np.random.Generator) -> None:
        self.operator, self.generator = operator, generator
        self.basis = np.empty((operator.dim, size), order="F")
        self.projection = np.zeros((size, size))
        self.count = 0  # columns of the basis in use
        self.steps = 0  # products since the last random vector
        self.scale = 0.0  # largest magnitude met, a lower bound of the operator's norm
        self.direction = start
        self.direction_norm = 0.0  # of the direction before normalisation: couples it to the basis
        self.ritz_values = np.empty(0)
        self.ritz_vectors = np.empty((0, 0))

    @property
    def is_complete(self) -> bool:
        return self.count == self.operator.dim

    def run(
        self, k: int, which: Which, tol: float, max_products: int, locked: np.ndarray | None
    ) -> np.ndarray:
        """Extend and restart until the k wanted pairs converge; return their indices."""
        while True:
            self.extend()
            if self.count >= k:
                wanted, runners_up, gap = _select(self.ritz_values, k, which)
                residuals = self.direction_norm * np.abs(self.ritz_vectors[-1])
                if self.is_complete:
                    return wanted
                if (residuals[wanted] <= tol * self.scale).all():
                    values = np.sort(self.ritz_values[wanted])[::-1]
                    if locked is None or not _same(values, locked, tol * self.scale):
                        return wanted
                    probed = (residuals[runners_up] <= max(tol, MISS_PROBABILITY) * self.scale).all()
                    if self.count > k and (probed or self.miss_probability(gap) <= MISS_PROBABILITY):
                        return wanted
                if self.operator.calls >= max_products:
                    num_left = int((residuals[wanted] > tol * self.scale).sum())
                    raise ConvergenceError(
                        f"lanczos ({which}): after {max_products} products {num_left} of {k} eigenpairs miss "
                        "the tolerance or the search for copies is not over; raise max_iterations, "
                        "basis_size or tol."
                    )
            if self.count == self.basis.shape[1]:
                self.restart(_select(self.ritz_values, k + (self.count - k) // 2, which)[0])

    def extend(self) -> None:
        """Add the next direction to the basis, and find the one after it."""
        vector, n = self.direction, self.count + 1
        self.basis[:, self.count] = vector
        self.count, self.steps = n, self.steps + 1
        basis = self.basis[:, :n]
        product = self.operator(vector)
        self.scale = max(self.scale, float(np.linalg.norm(product)))
        coupling = basis.T @ product
        self.projection[:n, n - 1] = self.projection[n - 1, :n] = coupling
        product -= basis @ coupling
        product -= basis @ (basis.T @ product)
        self.direction_norm = float(np.linalg.norm(product))
        if self.is_complete:
            self.direction_norm = 0.0
        elif self.direction_norm <= BREAKDOWN * self.scale:  # invariant subspace: go on elsewhere
            self.direction, self.direction_norm, self.steps = (
                _orthogonal_random(basis, self.generator),
                0.0,
                0,
            )
        else:
            self.direction = product / self.direction_norm
        self.ritz_values, self.ritz_vectors = np.linalg.eigh(self.projection[:n, :n])

    def restart(self, keep: np.ndarray, *, from_random: bool = False) -> None:
        """Shrink the basis to the Ritz vectors `keep`; go on with the residual or a random vector."""
        n = len(keep)
        self.basis[:, :n] = self.basis[:, : self.count] @ self.ritz_vectors[:, keep]
        self.projection[:n, :n] = np.diag(self.ritz_values[keep])
        self.count = n
        basis = self.basis[:, :n]
        if from_random:
            self.direction, self.steps = _orthogonal_random(basis, self.generator), 0
        else:
            self.direction -= basis @ (basis.T @ self.direction)
            self.direction /= np.linalg.norm(self.direction)

    def miss_probability(self, gap: float) -> float:
        """Bound the probability that a random start left an eigenvalue beyond `gap` unseen."""
        spread = float(self.ritz_values[-1] - self.ritz_values[0])
        relative = gap / spread if spread > 0 else 0.0
        exponent = math.sqrt(max(relative, 0.0)) * (2 * self.steps - 1)
        return 1.648 * math.sqrt(self.operator.dim) * math.exp(-exponent)

    def measure(self, wanted: np.ndarray) -> Eigenpairs:
        """Return the wanted pairs with their residuals, measured."""
        order = wanted[np.argsort(-self.ritz_values[wanted], kind="stable")]
        values = self.ritz_values[order]
        vectors = self.basis[:, : self.count] @ self.ritz_vectors[:, order]
        residuals = [
            float(np.linalg.norm(self.operator(vector) - value * vector))
            for value, vector in zip(values, vectors.T, strict=True)
        ]
        return Eigenpairs(values, vectors, np.array(residuals), self.operator.calls)
