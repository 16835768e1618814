"""Generalised eigenproblems from given operators, on the scikit-learn contract."""

from collections.abc import Callable
from dataclasses import dataclass
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
from scipy.linalg import cho_factor, cho_solve
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
from eigengame.estimators.warn import warn_of_angles, warn_user
from eigengame.exact import orient

__all__ = ["EigenGameGEVP"]

_ASYMMETRIC = 1e-6  # of the largest entry: more than rounding in single precision

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
    each vector is below `tol` (`core.ritz.locally_optimal`). With a dense B the directions are preconditioned
    by its Cholesky factor, so its condition does not slow them.

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
        angle_bounds_: Estimated bound of the angle to the true vector, in radians.
        residuals_: |A v - lambda B v| / |B v|.
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
            y: Ignored.
            B: As `X`; None is the identity. Both must be functions, or both matrices.
            dim: Dimension d; needed with functions only.

        Raises:
            ValueError: If shapes do not fit, entries are not finite, A or B is not symmetric, B is not
                positive along the vectors, or k exceeds d.
        """
        self._validate_params()
        if callable(X):
            if not (isinstance(dim, int | np.integer) and (B is None or callable(B))):
                raise ValueError(
                    "With A as a function pass dim= (the dimension d, an integer), "
                    "and B as a function or None."
                )
            dim = int(dim)
            self.n_features_in_, (size_a, size_b) = dim, (1.0, 1.0)
            products, operators = _Products((X, B)), (None, None, 1.0, 1.0)
        else:
            (X, B), (size_a, size_b) = self._matrices(X, B)
            if dim not in (None, self.n_features_in_):
                raise ValueError(
                    f"dim={dim}, but A has {self.n_features_in_} rows; leave dim out with matrices."
                )
            dim = self.n_features_in_
            products, operators = _Products(), (self._device(X), self._device(B), 1.0, 1.0)
        epsilon = float(self.epsilon) / size_b
        if self.n_components > dim:
            raise ValueError(
                f"n_components={self.n_components} exceeds n_features={dim}; ask for at most {dim}."
            )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        scales = self._probe(products, operators, dim, seed)
        V = self._play(products, operators, dim, seed, scales, epsilon)
        exact, noise, precondition = self._exact(X, B, products, operators, epsilon)
        start = starting_block(V, exact)
        k = int(self.n_components)
        judge = partial(quality, k=k, noise=noise, size=scales[0] / scales[1], zero_is_null=False)
        block, self.n_passes_ = locally_optimal(
            exact,
            start,
            judge,
            tol=float(self.tol),
            max_passes=int(self.max_passes),
            precondition=precondition,
        )
        found = judge(block)
        unit = size_a / size_b if self.maximize else -size_a / size_b
        self.eigenvalues_: NDArray = unit * block.values[:k]
        self.components_: Float[np.ndarray, "k d"] = orient(block.V[:k]) / np.sqrt(size_b)
        self.residuals_, self.angle_bounds_ = abs(unit) * found.residuals, found.angles
        self.unresolved_: NDArray = np.arange(min(k, block.values.size), k)
        self.n_iter_ = int(self.n_iter)
        warn_of_angles("Vectors", found, float(self.tol), "raise max_passes")
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

    def _exact(
        self, A: Any, B: Any, products: Any, operators: Any, epsilon: float
    ) -> tuple[Callable[[NDArray], tuple[NDArray, NDArray]], float, Callable[[NDArray], NDArray] | None]:
        """Return products with sign and epsilon, their relative accuracy, and a preconditioner."""
        sign = 1 if self.maximize else -1
        if callable(A):

            def traced(V: NDArray) -> tuple[NDArray, NDArray]:
                pair = _apply(products, jnp.asarray(V, jnp.float32), operators)
                AV, BV = (np.asarray(product, np.float64) for product in pair)
                return sign * AV, (V if B is None else BV) + epsilon * V

            return traced, 10 * float(np.finfo(np.float32).eps), None

        def in_double(V: NDArray) -> tuple[NDArray, NDArray]:
            BV = V if B is None else np.asarray((B @ V.T).T)
            return sign * np.asarray((A @ V.T).T), BV + epsilon * V

        noise = 1e3 * float(np.finfo(np.float64).eps)
        if B is None:
            return in_double, noise, None
        if hasattr(B, "tocsr"):
            diagonal = B.diagonal() + epsilon
            if diagonal.min() <= 0:
                raise ValueError(NOT_POSITIVE.format("its diagonal is not positive"))
            return in_double, noise, lambda R: R / diagonal
        try:
            factor = cho_factor(B + epsilon * np.eye(B.shape[0]))
        except LinAlgError as error:
            raise ValueError(NOT_POSITIVE.format("its Cholesky factorisation fails")) from error
        return in_double, noise, lambda R: np.asarray(cho_solve(factor, R.T).T)

    def _matrices(self, A: Any, B: Any) -> tuple[list[Any], list[float]]:
        """Return A and B in double precision divided by their largest entries, and these."""
        pair: list[Any] = [validated(self, A, accept_sparse="csr"), None]
        shape = pair[0].shape
        if shape[0] != shape[1]:
            raise ValueError(f"A has shape {shape}; a symmetric matrix is square.")
        if B is not None:
            B = real_numbers(B, "B") if not callable(B) else B
            if callable(B) or np.shape(B) != shape:
                given = "a function" if callable(B) else np.shape(B)
                raise ValueError(f"B must be a matrix of shape {shape} like A; got {given}.")
            B = check_array(B, accept_sparse="csr", dtype="numeric", input_name="B")
            pair[1] = real_numbers(B, "B")
        pair = [M if M is None else M.astype(np.float64) for M in pair]
        sizes = [1.0 if M is None else float(abs(M).max()) or 1.0 for M in pair]
        pair = [M if M is None else M / size for M, size in zip(pair, sizes, strict=True)]
        for name, M in zip("AB", pair, strict=True):
            if M is not None and abs(M - M.T).max() > _ASYMMETRIC:
                raise ValueError(f"{name} is not symmetric; pass ({name} + {name}.T) / 2 if it should be.")
        return [M if M is None else (M + M.T) / 2 for M in pair], sizes

    @staticmethod
    def _device(matrix: Any) -> Any:
        if hasattr(matrix, "tocsr"):
            return sparse.BCOO.from_scipy_sparse(matrix.astype(np.float32))
        return matrix if matrix is None else jnp.asarray(matrix, np.float32)

    def _probe(self, products: Any, operators: Any, dim: int, seed: int) -> tuple[float, float]:
        """Return the sizes of A and B, and warn where u'Av and v'Au differ for random u and v."""
        U = np.random.default_rng(seed).standard_normal((2, dim)).astype(np.float32)
        sizes = []
        try:
            pair = _apply(products, U, operators)
        except jax.errors.TracerArrayConversionError as error:
            raise ValueError(
                "A or B turns what JAX traces into an array of NumPy; write it with jax.numpy, or call it "
                "through jax.pure_callback."
            ) from error
        for name, product in zip("AB", pair, strict=True):
            if np.shape(product) != U.shape or not np.isfinite(product).all():
                found = "values that are not finite" if np.shape(product) == U.shape else np.shape(product)
                raise ValueError(
                    f"{name} maps V of shape {U.shape} to {found}; return {name} V of V's shape."
                )
            table = np.asarray(U @ np.asarray(product).T, np.float64)
            if abs(table[0, 1] - table[1, 0]) > 1e-3 * max(np.abs(table).max(), 1e-30):
                warn_user(
                    f"{name} is not symmetric: u'{name}v = {table[0, 1]:.4g} but v'{name}u = "
                    f"{table[1, 0]:.4g} for random u, v. Pass ({name} + {name}') / 2.",
                    UserWarning,
                )
            size = float(np.linalg.norm(np.asarray(product, np.float64)) / np.linalg.norm(U))
            sizes.append(size if 0 < size < np.inf else 1.0)
        return sizes[0], sizes[1]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = True
        tags.input_tags.sparse = True
        return tags
