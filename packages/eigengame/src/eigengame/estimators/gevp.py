"""Generalised eigenproblems from given operators, on the scikit-learn contract."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse
from jaxtyping import Float
from numpy.linalg import LinAlgError
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.linalg.lapack import dpocon
from scipy.sparse import csr_array, diags_array, eye_array
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_array

from eigengame.core.generalized import PencilConfig, pencil_init, repeat_pencil_step
from eigengame.core.learning_rate import decaying_adam
from eigengame.core.ritz import NOT_POSITIVE, locally_optimal, quality, starting_block
from eigengame.core.solver import initial_vectors
from eigengame.estimators.settings import COUNT, POSITIVE
from eigengame.estimators.streams import real_numbers, validated
from eigengame.estimators.warn import warn_of_angles
from eigengame.exact import orient

__all__ = ["EigenGameGEVP"]

_ASYMMETRIC = 1e-6  # of the largest entry: more than rounding in single precision
_MIX = np.array([[2, 1], [-1, 3]], np.float32)
_NOISE = 1e3 * float(np.finfo(np.float64).eps)  # relative accuracy of products of matrices

Operator = ArrayLike | Callable[[Any], Any]


@dataclass(frozen=True)
class _Products:
    """Products divided by given sizes of A and B; compiled once for all matrices of one shape."""

    functions: Any = None

    def __call__(self, V: Any, operators: Any) -> tuple[Any, Any]:
        *matrices, size_a, size_b = operators
        A, B = self.functions or [M if M is None else partial(_times, M) for M in matrices]
        return A(V) / size_a, (V if B is None else B(V)) / size_b


def _times(M: Any, V: Any) -> Any:
    return (M @ V.T).T


def _scaled(M: Any, scale: NDArray) -> Any:
    """Return scale_i M_ij scale_j."""
    if hasattr(M, "tocsr"):
        return csr_array(diags_array(scale) @ M @ diags_array(scale))
    return scale[:, None] * M * scale


def _unit_size(M: Any) -> tuple[Any, float]:
    """Return a matrix in double precision divided by its largest entry, and this."""
    M = csr_array(M, dtype=np.float64) if hasattr(M, "tocsr") else np.asarray(M, np.float64)
    size = float(abs(M).max()) or 1.0
    return M / size, size


def _symmetric(M: Any, name: str) -> Any:
    """Return (M + M') / 2, which differs from M by rounding only.

    Raises:
        ValueError: If it differs by more.
    """
    if abs(M - M.T).max() > _ASYMMETRIC * abs(M).max():
        raise ValueError(f"{name} is not symmetric; pass ({name} + {name}.T) / 2 if it should be.")
    return (M + M.T) / 2


@partial(jax.jit, static_argnames="products")
def _apply(products: Callable[[Any, Any], Any], V: Any, operators: Any) -> tuple[Any, Any]:
    """Both products in one compiled piece instead of one per operation."""
    AV, BV = products(V, operators)
    return AV, BV


class EigenGameGEVP(BaseEstimator):
    """Top-k solutions of A v = lambda B v for symmetric A and positive definite B.

    For linear discriminant analysis, normalised Laplacians (L, degrees) and other pencils that are
    given as matrices (dense or sparse; what is asymmetric by rounding is averaged) or as functions
    V (k, d) -> A V (k, d).

    A short game gives the start; exact products then improve all players at once until the estimated angle of
    each vector is below `tol` (`core.ritz.locally_optimal`). Both work in coordinates in which a dense B is
    the identity and a sparse one has ones on its diagonal, so units do not matter.

    Args:
        n_components: Number of vectors.
        n_iter: Steps of the game, Adam; the second half decays by a cosine.
        learning_rate: Of Adam, for operators scaled to unit size.
        tol: Largest estimated angle in radians that counts as converged; what is not is said in a
            ConvergenceWarning.
        max_passes: Limit of the exact products after the game.
        epsilon: Multiple of the identity added to B.
        maximize: False looks for the smallest values.
        random_state: Seed of the initial vectors.

    Attributes:
        components_: Vectors on rows with v'B v = 1, largest-magnitude entry positive.
        eigenvalues_: Generalised Rayleigh quotients, in the order sought (ascending when minimising).
        angle_bounds_: Estimated bound of the angle to the true vector, in radians; with matrices in the
            coordinates named above.
        residuals_: |A v - lambda B v| / |B v|, in the same coordinates.
        n_passes_: Exact products taken.
        unresolved_: Vectors that B does not see: their v'B v is not positive.

    Source: Gemp et al. 2022 (arXiv 2206.04993) for the game; Knyazev 2001 for the exact steps.

    Example:
        >>> model = EigenGameGEVP(n_components=1, random_state=0)
        >>> model.fit(np.diag([2.0, 3.0, 1.0]), B=np.diag([1.0, 3.0, 1.0])).eigenvalues_.round(3)
        array([2.])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [COUNT],
        "n_iter": [COUNT],
        "learning_rate": [POSITIVE],
        "tol": [POSITIVE],
        "max_passes": [COUNT],
        "epsilon": [Interval(Real, 0, None, closed="left")],
        "maximize": ["boolean"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        n_iter: int = 100,
        learning_rate: float = 0.1,
        tol: float = 1e-3,
        max_passes: int = 1000,
        epsilon: float = 0.0,
        maximize: bool = True,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.n_iter = n_iter
        self.learning_rate = learning_rate
        self.tol = tol
        self.max_passes = max_passes
        self.epsilon = epsilon
        self.maximize = maximize
        self.random_state = random_state

    def fit(self, X: Operator, y: None = None, *, B: Operator | None = None, dim: int | None = None) -> Self:
        """Solve the pencil (X, B).

        Args:
            X: The matrix A, (d, d) dense or sparse, or a function V -> A V traced by JAX.
            y: Ignored, so that pipelines may pass one; a second matrix in its place is refused.
            B: As `X`; None is the identity. Both must be functions, or both matrices.
            dim: Dimension d; needed with functions only.

        Raises:
            ValueError: If shapes do not fit, entries are not finite, A or B is not symmetric, B is not
                positive along the vectors, or k exceeds d.
        """
        self._validate_params()
        if callable(y) or len(getattr(y, "shape", ())) == 2:
            raise ValueError("y is a second matrix, and ignored; pass it by name: fit(A, B=B).")
        if callable(X):
            if not (isinstance(dim, int | np.integer) and (B is None or callable(B))):
                raise ValueError(
                    "With A as a function pass dim= (the dimension d, an integer), "
                    "and B as a function or None."
                )
            dim = int(dim)
            self.n_features_in_, (unit, way_back, rounding) = dim, (1.0, lambda V: V, 0.0)
            products, operators = _Products((X, B)), (None, None, 1.0, 1.0)
        else:
            X, B, unit, way_back, rounding = self._matrices(X, B)
            if dim not in (None, self.n_features_in_):
                raise ValueError(
                    f"dim={dim}, but A has {self.n_features_in_} rows; leave dim out with matrices."
                )
            dim = self.n_features_in_
            products, operators = _Products(), (self._device(X), self._device(B), 1.0, 1.0)
        epsilon = float(self.epsilon) if callable(X) else 0.0
        if self.n_components > dim:
            raise ValueError(
                f"n_components={self.n_components} exceeds n_features={dim}; ask for at most {dim}."
            )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        scales = self._probe(products, operators, dim, seed)
        V = self._play(products, operators, dim, seed, scales, epsilon)
        sign = 1 if self.maximize else -1

        def exact(W: NDArray) -> tuple[NDArray, NDArray]:
            if callable(X):
                pair = _apply(products, jnp.asarray(W, jnp.float32), operators)
            else:
                pair = products(W, (X, B, 1.0, 1.0))
            AW, BW = (np.asarray(product, np.float64) for product in pair)
            return sign * AW, (W if B is None else BW) + epsilon * W

        k = int(self.n_components)
        noise = 10 * float(np.finfo(np.float32).eps) if callable(X) else _NOISE
        judge = partial(quality, k=k, noise=noise, size=scales[0] / scales[1], zero_is_null=False)
        block, self.n_passes_ = locally_optimal(
            exact,
            starting_block(V, exact),
            judge,
            tol=float(self.tol),
            max_passes=int(self.max_passes),
        )
        found = judge(block)
        found = replace(found, angles=np.minimum(found.angles + rounding, np.pi / 2))
        self.eigenvalues_: NDArray = sign * unit * block.values[:k]
        self.components_: Float[np.ndarray, "k d"] = orient(way_back(block.V[:k]))
        self.residuals_, self.angle_bounds_ = unit * found.residuals, found.angles
        self.unresolved_: NDArray = np.arange(min(k, block.values.size), k)
        self.n_iter_ = int(self.n_iter)
        warn_of_angles(
            "Vectors", found, float(self.tol), "raise max_passes, or epsilon if B is nearly singular"
        )
        return self

    def _play(
        self, products: Any, operators: Any, dim: int, seed: int, scales: tuple[float, float], epsilon: float
    ) -> NDArray:
        """Return the vectors of a short game on operators scaled to unit size; a few more than asked for."""
        config = PencilConfig(
            decaying_adam(float(self.learning_rate), int(self.n_iter)),
            products,
            exact=True,
            epsilon=epsilon / scales[1],
            maximize=bool(self.maximize),
        )
        players = min(int(self.n_components) + max(8, int(self.n_components) // 2), dim)
        state = pencil_init(jax.random.key(seed), players, dim, config)
        state, finite = repeat_pencil_step(state, operators[:2] + scales, config, int(self.n_iter))
        if finite:
            return np.asarray(state.V, np.float64)
        return np.asarray(initial_vectors(jax.random.key(seed), players, dim), np.float64)

    def _matrices(self, A: Any, B: Any) -> tuple[Any, Any, float, Callable[[NDArray], NDArray], float]:
        """Return A and B in coordinates without units, the unit of the values, the way back, its rounding.

        A dense B becomes the identity, which is None; a sparse one gets ones on its diagonal.
        """
        A = validated(self, A, accept_sparse="csr")
        if A.shape[0] != A.shape[1]:
            raise ValueError(f"A has shape {A.shape}; a symmetric matrix is square.")
        A, unit = _unit_size(A)
        if B is None:
            size = 1 + float(self.epsilon)
            return _symmetric(A, "A"), None, unit / size, lambda V: V / np.sqrt(size), 0.0
        B = real_numbers(B, "B") if not callable(B) else B
        if callable(B) or np.shape(B) != A.shape:
            given = "a function" if callable(B) else np.shape(B)
            raise ValueError(f"B must be a matrix of shape {A.shape} like A; got {given}.")
        B = check_array(B, accept_sparse="csr", dtype="numeric", input_name="B")
        B, size = _unit_size(real_numbers(B, "B"))
        if self.epsilon:
            eye = eye_array if hasattr(B, "tocsr") else np.eye
            B = B + float(self.epsilon) / size * eye(B.shape[0])
        diagonal = B.diagonal()
        if diagonal.min() <= 0:
            raise ValueError(NOT_POSITIVE.format("its diagonal is not positive"))
        scale = 1 / np.sqrt(diagonal)
        A, B = _symmetric(_scaled(A, scale), "A"), _symmetric(_scaled(B, scale), "B")
        scale /= np.sqrt(size)
        if hasattr(B, "tocsr"):
            A, larger = _unit_size(A)
            return A, B, unit / size * larger, lambda V: V * scale, 0.0
        try:
            factor = cholesky(B, lower=True)
        except LinAlgError as error:
            raise ValueError(NOT_POSITIVE.format("its Cholesky factorisation fails")) from error
        half = solve_triangular(factor, A.toarray() if hasattr(A, "tocsr") else A, lower=True)
        A = solve_triangular(factor, half.T, lower=True)
        A, larger = _unit_size((A + A.T) / 2)
        share = float(dpocon(factor, np.abs(B).sum(axis=0).max(), uplo="L")[0])  # 1 / condition
        return (
            A,
            None,
            unit / size * larger,
            lambda V: solve_triangular(factor, V.T, trans="T", lower=True).T * scale,
            10 * float(np.finfo(np.float64).eps) / max(share, float(np.finfo(np.float64).tiny)),
        )

    @staticmethod
    def _device(matrix: Any) -> Any:
        if hasattr(matrix, "tocsr"):
            return sparse.BCOO.from_scipy_sparse(matrix.astype(np.float32))
        return matrix if matrix is None else jnp.asarray(matrix, np.float32)

    def _probe(self, products: Any, operators: Any, dim: int, seed: int) -> tuple[float, float]:
        """Return the sizes of A and B, which are refused unless they are linear and symmetric."""
        U = np.random.default_rng(seed).standard_normal((2, dim)).astype(np.float32)
        sizes = []
        try:
            pair = _apply(products, U, operators)
            mixed = _apply(products, _MIX @ U, operators)
        except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
            raise ValueError(
                "A or B turns what JAX traces into a number or an array of NumPy; write it with jax.numpy, "
                "or call it through jax.pure_callback."
            ) from error
        for name, product, other in zip("AB", pair, mixed, strict=True):
            if np.shape(product) != U.shape or not np.isfinite(product).all():
                found = "values that are not finite" if np.shape(product) == U.shape else np.shape(product)
                raise ValueError(
                    f"{name} maps V of shape {U.shape} to {found}; return {name} V of V's shape."
                )
            table = np.asarray(U @ np.asarray(product).T, np.float64)
            if abs(table[0, 1] - table[1, 0]) > 1e-3 * max(np.abs(table).max(), 1e-30):
                raise ValueError(
                    f"{name} is not symmetric: u'{name}v = {table[0, 1]:.4g} but v'{name}u = "
                    f"{table[1, 0]:.4g} for random u, v. Pass ({name} + {name}') / 2."
                )
            wide = np.asarray(product, np.float64)
            apart = np.asarray(other, np.float64) - _MIX @ wide
            if not np.linalg.norm(apart) <= 1e-2 * max(float(np.linalg.norm(wide)), 1e-30):
                raise ValueError(
                    f"{name} is not linear: {name} (2 u + v) is not 2 {name} u + {name} v for random u, v, "
                    "or its rows depend on each other. Return the product with one fixed matrix."
                )
            size = float(np.linalg.norm(wide) / np.linalg.norm(U))
            sizes.append(size if 0 < size < np.inf else 1.0)
        return sizes[0], sizes[1]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = True
        tags.input_tags.sparse = True
        return tags
