"""Generalised eigenproblems from given operators, on the scikit-learn contract."""

import warnings
from collections.abc import Callable
from functools import partial
from numbers import Integral
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data

from eigengame.core.generalized import PencilConfig, pencil_init, repeat_pencil_step, unresolved_players
from eigengame.estimators.pencil import adam
from eigengame.exact import orient

__all__ = ["EigenGameGEVP"]

Operator = ArrayLike | Callable[[Any], Any]


def _matrix_products(V: Any, operators: Any) -> tuple[Any, Any]:
    A, B = operators
    return (A @ V.T).T, V if B is None else (B @ V.T).T


@partial(jax.jit, static_argnames="products")
def _apply(products: Callable[[Any, Any], Any], V: Any, operators: Any) -> tuple[Any, Any]:
    """Both products in one compiled piece instead of one per operation."""
    AV, BV = products(V, operators)
    return AV, BV


class _CallableProducts:
    """Products of operators given as functions of V; equal where the functions are the same."""

    def __init__(self, A: Callable[[Any], Any], B: Callable[[Any], Any] | None) -> None:
        self.pair = (A, B)

    def __hash__(self) -> int:
        return hash(self.pair)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _CallableProducts) and self.pair == other.pair

    def __call__(self, V: Any, _: Any) -> tuple[Any, Any]:
        A, B = self.pair
        return A(V), V if B is None else B(V)


class EigenGameGEVP(BaseEstimator):
    """Top-k solutions of A v = lambda B v for symmetric A and positive definite B.

    For linear discriminant analysis, normalised Laplacians (L, degrees) and other pencils that are
    given as matrices (dense or sparse) or as functions V (k, d) -> A V (k, d).

    Args:
        n_components: Number of vectors.
        n_iter: Steps of Adam; the second half decays by a cosine.
        learning_rate: Of Adam.
        epsilon: Multiple of the identity added to B.
        rho: Lower clip of v'B v.
        maximize: False looks for the smallest values.
        random_state: Seed of the initial vectors.

    Attributes:
        components_: Vectors on rows with v'B v = 1, largest-magnitude entry positive.
        eigenvalues_: Generalised Rayleigh quotients (of A, also when minimising).
        unresolved_: Players that found nothing of their own: the (sought) value is not positive, or the
            vector copies a parent. Add a multiple of B to A to lift the spectrum.

    Source: Gemp et al. 2022 (arXiv 2206.04993).

    Example:
        >>> model = EigenGameGEVP(n_components=1, random_state=0)
        >>> model.fit(np.diag([2.0, 3.0, 1.0]), B=np.diag([1.0, 3.0, 1.0])).eigenvalues_.round(3)
        array([2.], dtype=float32)
    """

    def __init__(
        self,
        n_components: int = 1,
        *,
        n_iter: int = 2000,
        learning_rate: float = 0.1,
        epsilon: float = 0.0,
        rho: float = 1e-10,
        maximize: bool = True,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.n_iter = n_iter
        self.learning_rate = learning_rate
        self.epsilon = epsilon
        self.rho = rho
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
            ValueError: If shapes do not fit, entries are not finite, or k exceeds d.
        """
        for name in ("n_components", "n_iter"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be an integer of at least 1.")
        products, operators, dim = self._operators(X, B, dim)
        if self.n_components > dim:
            raise ValueError(
                f"n_components={self.n_components} exceeds n_features={dim}; ask for at most {dim}."
            )
        config = PencilConfig(
            adam(float(self.learning_rate), int(self.n_iter)),
            products,
            exact=True,
            rho=float(self.rho),
            epsilon=float(self.epsilon),
            maximize=bool(self.maximize),
        )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self._probe(products, operators, dim, seed)
        state = pencil_init(jax.random.key(seed), int(self.n_components), dim, config)
        state, finite = repeat_pencil_step(state, operators, config, int(self.n_iter))
        if not finite:
            raise ValueError(
                f"The iteration left the finite numbers; lower learning_rate={self.learning_rate}."
            )
        self._finish(np.asarray(state.V), products, operators)
        self.n_iter_ = int(self.n_iter)
        return self

    def _operators(self, A: Operator, B: Operator | None, dim: int | None) -> tuple[Any, Any, int]:
        if callable(A):
            if dim is None or not (B is None or callable(B)):
                raise ValueError(
                    "With A as a function pass dim= (the dimension d), and B as a function or None."
                )
            self.n_features_in_ = dim
            return _CallableProducts(A, B), (), dim
        matrix = validate_data(self, A, accept_sparse="csr", dtype="numeric")
        d = matrix.shape[0]
        if matrix.shape[1] != d:
            raise ValueError(f"A has shape {matrix.shape}; a symmetric matrix is square.")
        if B is None:
            return _matrix_products, (self._device(matrix), None), d
        shape: Any = getattr(B, "shape", None) or np.shape(np.asarray(B))
        if callable(B) or shape != (d, d):
            raise ValueError(f"B must be a matrix of shape {(d, d)} like A; got {shape}.")
        return _matrix_products, (self._device(matrix), self._device(B)), d

    @staticmethod
    def _device(matrix: Any) -> Any:
        if hasattr(matrix, "tocsr"):
            return sparse.BCOO.from_scipy_sparse(matrix.astype(np.float32))
        return jnp.asarray(np.asarray(matrix, np.float32))

    def _probe(self, products: Any, operators: Any, dim: int, seed: int) -> None:
        """Warn where u'Av and v'Au differ, or v'Bv is not positive, for random u and v."""
        U = np.random.default_rng(seed).standard_normal((2, dim)).astype(np.float32)
        for name, product in zip("AB", _apply(products, U, operators), strict=True):
            table = np.asarray(U @ np.asarray(product).T, np.float64)
            if abs(table[0, 1] - table[1, 0]) > 1e-3 * max(np.abs(table).max(), 1e-30):
                warnings.warn(
                    f"{name} is not symmetric: u'{name}v = {table[0, 1]:.4g} but v'{name}u = "
                    f"{table[1, 0]:.4g} for random u, v. Pass ({name} + {name}') / 2.",
                    UserWarning,
                    stacklevel=3,
                )

    def _finish(self, V: NDArray, products: Any, operators: Any) -> None:
        AV, BV = (np.asarray(product, np.float64) for product in _apply(products, V, operators))
        BV = BV + self.epsilon * V
        norms = np.sum(V * BV, axis=1)
        if np.any(norms <= self.rho):
            warnings.warn(
                f"v'Bv is at most rho={self.rho} for {int(np.sum(norms <= self.rho))} players: B is not "
                "positive. Pass epsilon > 0, which adds epsilon I to B.",
                UserWarning,
                stacklevel=3,
            )
        safe = np.where(norms > self.rho, norms, 1)
        self.eigenvalues_: NDArray = (np.sum(V * AV, axis=1) / safe).astype(V.dtype)
        self.components_: Float[np.ndarray, "k d"] = orient((V / np.sqrt(safe)[:, None]).astype(V.dtype))
        sought = self.eigenvalues_ if self.maximize else -self.eigenvalues_
        self.unresolved_: NDArray = unresolved_players(sought, V @ BV.T)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = True
        tags.input_tags.sparse = True
        return tags
