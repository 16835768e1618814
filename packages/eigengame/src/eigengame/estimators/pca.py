"""Streaming PCA on the scikit-learn contract."""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from numbers import Integral
from typing import Any, Literal, Self

import jax
import numpy as np
import optax
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from eigengame import checkpoint
from eigengame.core.directions import Algorithm
from eigengame.core.learning_rate import auto_learning_rate, nesterov, with_learning_rate
from eigengame.core.solver import Config, State, init, initial_vectors, step
from eigengame.estimators.streams import (
    Batch,
    array_batches,
    check_finite,
    chunks,
    dense_rows,
    is_stream,
    iterable_batches,
    pad_rows,
)
from eigengame.exact import orient
from eigengame.metrics import angles

__all__ = ["EigenGame"]

_COUNTERS = (
    "n_features_in_",
    "n_samples_seen_",
    "n_iter_",
    "learning_rate_",
    "_seed",
    "_rows",
    "_distinct",
)

Data = ArrayLike | Iterable[ArrayLike] | Callable[[], Iterable[ArrayLike]]


class EigenGame(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Top principal components from minibatches.

    Memory is O(batch_size * d + n_components * d): data may be larger than memory or never end. When
    a (d, d) matrix fits in memory, `sklearn.decomposition.PCA` is usually faster.

    Args:
        n_components: Number of components; None takes min(rows of the first batch, d).
        algorithm: `"mu"` (unbiased), `"alpha"`, `"gha"` or `"oja"`.
        learning_rate: Number, optax schedule, or `"auto"` = c / lambda_1 of the first batch, c growing
            with the batch size up to 1.
        batch_size: Rows per step.
        n_epochs: Passes of `fit` over the data.
        momentum: Nesterov momentum of SGD.
        center: `"running"` subtracts the mean of all samples seen up to and including the batch; None
            does not centre.
        optimizer: optax transformation instead of SGD; then `learning_rate` must stay `"auto"` and is
            not used.
        mesh: Device layout from `eigengame.sharding.make_mesh`.
        random_state: Seed of the initial vectors and of the order of the rows.
        tol: Stop `fit` after an epoch in which every Rayleigh quotient changed by less than `tol`
            relative to the largest and every vector turned by less than `tol` radians. A signal without
            ground truth: slow progress looks like convergence.
        dtype: `"float32"` or `"float64"` (needs `jax.enable_x64`).
        warm_start: Let `fit` start from the components of the fit before it instead of random ones. With
            a larger `n_components` the new players start at random; with a smaller one the first stay.
            Mean, variances and momentum start anew.

    Attributes:
        components_: Unit vectors on rows, (n_components, d); largest-magnitude entry positive.
        explained_variance_: Running Rayleigh quotients (step t weighted by t), with n - 1 in the
            denominator as in scikit-learn's PCA.
        explained_variance_ratio_: The same divided by the running total variance.
        mean_: Mean of the samples seen.
        n_samples_seen_: Rows processed, repeats of later epochs included.
        n_iter_: Steps taken.
        learning_rate_: The number in use, or None with a schedule or an own optimizer.
        unresolved_: Indices of players whose variance vanishes; their vectors mean nothing.

    Source: Gemp et al. 2021b (arXiv 2102.04152), Algorithm 1.

    Example:
        >>> X = np.random.default_rng(0).standard_normal((2000, 5)) * np.array([5.0, 3.0, 1.0, 1.0, 1.0])
        >>> model = EigenGame(n_components=2, batch_size=100, n_epochs=5, random_state=0).fit(X)
        >>> np.abs(model.components_.argmax(axis=1))
        array([0, 1])
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        algorithm: Algorithm = "mu",
        learning_rate: float | Callable[[Any], Any] | Literal["auto"] = "auto",
        batch_size: int = 256,
        n_epochs: int = 1,
        momentum: float = 0.9,
        center: Literal["running"] | None = "running",
        optimizer: optax.GradientTransformation | None = None,
        mesh: Any = None,
        random_state: Any = None,
        tol: float | None = None,
        dtype: str = "float32",
        warm_start: bool = False,
    ) -> None:
        self.n_components = n_components
        self.algorithm = algorithm
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.momentum = momentum
        self.center = center
        self.optimizer = optimizer
        self.mesh = mesh
        self.random_state = random_state
        self.tol = tol
        self.dtype = dtype
        self.warm_start = warm_start

    def fit(self, X: Data, y: None = None) -> Self:
        """Learn the components, from scratch or, with `warm_start`, from those of the last fit.

        Args:
            X: Array, memmap or CSR matrix (n, d); or an iterator of batches (one epoch), or a callable
                that returns a fresh iterable of batches for every epoch. A list of rows is an array.
            y: Ignored.

        Raises:
            ValueError: For bad settings, or data that are non-finite (names the batch; the state before
                it is kept), too narrow, or empty.
        """
        self._check_settings()
        former = self.components_ if self.warm_start and hasattr(self, "_state") else None
        self._forget()
        self._former = former
        if is_stream(X):
            return self._fit_stream(X)  # type: ignore[arg-type]
        rows = self._validated(X, reset=True)
        self._seed = self._draw_seed()
        self._rows = min(self.batch_size, rows.shape[0])
        for epoch in range(self.n_epochs):
            before = self._snapshot()
            for batch in array_batches(rows, self._rows, seed=self._seed, epoch=epoch, dtype=self.dtype):
                self._absorb(batch)
            if self._converged(before):
                break
        self._distinct = rows.shape[0]
        return self

    def partial_fit(self, X: ArrayLike, y: None = None) -> Self:
        """Continue with more rows, in chunks of at most `batch_size`.

        An array that already lives on the device and has `batch_size` rows is used as it is.

        Args:
            X: Array or CSR matrix (n, d).
            y: Ignored.

        Raises:
            ValueError: As `fit`; the state before the offending batch is kept.
        """
        first = not hasattr(self, "_state")
        if first:
            self._check_settings()
            self._forget()
            self._seed = self._draw_seed()
        if isinstance(X, jax.Array) and X.ndim == 2 and not first and X.shape[0] == self._rows:
            if X.shape[1] != self.n_features_in_:
                raise ValueError(
                    f"X has {X.shape[1]} features, but {type(self).__name__} is expecting "
                    f"{self.n_features_in_} features as input."
                )
            self._absorb(Batch(X, X.shape[0], self.n_iter_))  # type: ignore[arg-type]
            return self
        rows = self._validated(X, reset=first)
        if first:
            self._rows = min(self.batch_size, rows.shape[0])
        for part in chunks(rows, self.batch_size):
            dense = dense_rows(rows, part, self.dtype)
            size = self._rows if dense.shape[0] <= self._rows else self.batch_size
            self._absorb(Batch(pad_rows(dense, size), dense.shape[0], self.n_iter_))
        return self

    def _fit_stream(self, source: Callable[[], Iterable[ArrayLike]] | Iterator[ArrayLike]) -> Self:
        if not callable(source) and self.n_epochs > 1:
            raise ValueError(
                f"n_epochs={self.n_epochs} but X is an iterator, which can be read once. "
                "Pass a callable that returns a fresh iterator for every epoch."
            )
        self._seed = self._draw_seed()
        self._rows = self.batch_size
        for _ in range(self.n_epochs):
            before, seen = self._snapshot(), self.n_samples_seen_
            for batch in iterable_batches(source, self.batch_size, dtype=self.dtype):
                self.n_features_in_ = batch.rows.shape[1]
                self._absorb(batch)
            self._distinct = self.n_samples_seen_ - seen
            if self._converged(before):
                break
        return self

    def _check_settings(self) -> None:
        for name in ("batch_size", "n_epochs"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be an integer of at least 1.")
        k: Any = self.n_components
        if k is not None and not (isinstance(k, Integral) and k >= 1):  # type: ignore[operator]  # Integral has no order
            raise ValueError(f"n_components is {k!r}; it must be an integer of at least 1.")
        momentum: Any = self.momentum
        if not (isinstance(momentum, int | float) and 0 <= momentum < 1):
            raise ValueError(f"momentum is {momentum!r}; it must lie in [0, 1).")
        center: Any = self.center
        if center not in ("running", None):
            raise ValueError(f"center is {center!r}; allowed are 'running' and None.")
        rate: Any = self.learning_rate
        if not (rate == "auto" or callable(rate) or (isinstance(rate, int | float) and 0 < rate < math.inf)):
            raise ValueError(f"learning_rate is {rate!r}; pass a positive number, a schedule or 'auto'.")
        if self.optimizer is not None and rate != "auto":
            raise ValueError("Pass either optimizer or learning_rate; an optimizer brings its own step size.")
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype is {self.dtype!r}; allowed are 'float32' and 'float64'.")
        if self.dtype == "float64" and not jax.config.read("jax_enable_x64"):
            raise ValueError(
                "dtype='float64' needs 64-bit JAX: run inside `with jax.enable_x64(True):` "
                "or set JAX_ENABLE_X64=1."
            )

    def _draw_seed(self) -> int:
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _forget(self) -> None:
        for name in ("_state", "_distinct", "_former"):
            self.__dict__.pop(name, None)
        self.n_samples_seen_, self.n_iter_ = 0, 0

    def _validated(self, X: Any, *, reset: bool) -> Any:
        # finiteness is checked batch by batch, so that a file larger than memory is read once only
        rows = validate_data(
            self, X, reset=reset, accept_sparse="csr", dtype="numeric", ensure_all_finite=False
        )
        if isinstance(X, np.memmap) and not isinstance(rows, np.memmap):
            rows = X
        return rows

    def _config(self) -> Config:
        schedule = self.learning_rate if callable(self.learning_rate) else None
        return Config(
            optimizer=self.optimizer or nesterov(float(self.momentum), schedule),
            algorithm=self.algorithm,
            center=self.center == "running",
            moments=True,
            mesh=self.mesh,
        )

    def _start(self, batch: Batch) -> None:
        n, d = batch.num_valid, batch.rows.shape[1]
        k = min(n, d) if self.n_components is None else int(self.n_components)
        if k > d:
            raise ValueError(f"n_components={k} exceeds n_features={d}; ask for at most {d} components.")
        config = self._config()
        key = jax.random.key(self._seed)
        V = self._first_vectors(key, k, d)
        state = init(key, k, d, config.optimizer, V=V, moments=True, dtype=self.dtype, mesh=self.mesh)
        self.learning_rate_ = None
        if self.optimizer is None and not callable(self.learning_rate):
            rows = np.asarray(batch.rows[:n])
            check_finite(rows, batch.position)
            rate = (
                auto_learning_rate(rows, float(self.momentum), center=config.center)
                if self.learning_rate == "auto"
                else float(self.learning_rate)
            )
            state = with_learning_rate(state, rate)
            self.learning_rate_ = rate
        self._state: State = state

    def _first_vectors(self, key: jax.Array, k: int, d: int) -> NDArray | None:
        former: NDArray | None = self.__dict__.pop("_former", None)
        if former is None:
            return None
        if former.shape[1] != d:
            raise ValueError(
                f"warm_start=True, but the last fit had {former.shape[1]} features and X has {d}; "
                "use a new estimator, or warm_start=False."
            )
        return np.concatenate([former[:k], np.asarray(initial_vectors(key, k, d, self.dtype))[len(former) :]])

    def _absorb(self, batch: Batch) -> None:
        if not hasattr(self, "_state"):
            self._start(batch)
        state, metrics = step(self._state, batch.rows, self._config(), np.int32(batch.num_valid))
        if not metrics["finite"]:
            check_finite(np.asarray(batch.rows), batch.position)
            raise ValueError(
                f"The update on batch {batch.position} is not finite although the data are: "
                f"learning_rate={self.learning_rate_} is too large. The state before it was kept."
            )
        self._state = state
        self.n_samples_seen_ += batch.num_valid
        self.n_iter_ += 1

    def _snapshot(self) -> tuple[NDArray, NDArray] | None:
        return (self.components_, self.explained_variance_) if hasattr(self, "_state") else None

    def _converged(self, before: tuple[NDArray, NDArray] | None) -> bool:
        if self.tol is None or before is None:
            return False
        change = np.abs(self.explained_variance_ - before[1]).max() / max(
            self.explained_variance_.max(), 1e-30
        )
        return bool(change < self.tol and angles(self.components_, before[0]).max() < self.tol)

    def save(self, path: str | os.PathLike[str], extra: dict[str, Any] | None = None) -> None:
        """Write the fit so far to a file without pickle; `load` continues from it bit for bit.

        Args:
            path: File name, by convention ending in `.npz`.
            extra: JSON values to keep with it, such as the position in the data.

        Raises:
            ValueError: If a setting cannot be written: an optimizer, mesh, schedule or generator object.
        """
        check_is_fitted(self)
        params = self.get_params()
        for name, value in params.items():
            if not isinstance(value, int | float | str | None):
                raise ValueError(f"{name}={value!r} cannot be saved; save State with eigengame.checkpoint.")
        counters = {name: getattr(self, name) for name in _COUNTERS if hasattr(self, name)}
        meta = {"params": params, "counters": counters, "k": self._state.k, "extra": extra or {}}
        checkpoint.save(path, self._state, meta)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> tuple[Self, dict[str, Any]]:
        """Return a saved estimator, and the values saved with it.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is not one that `save` wrote.
        """
        arrays, meta = checkpoint.read(path)
        if not {"params", "counters", "k"} <= set(meta):
            raise ValueError(
                f"{path} holds a State but no estimator; read it with eigengame.checkpoint.load."
            )
        model = cls(**meta["params"])
        for name, value in meta["counters"].items():
            setattr(model, name, value)
        optimizer = model._config().optimizer
        like = init(
            jax.random.key(0), meta["k"], model.n_features_in_, optimizer, moments=True, dtype=model.dtype
        )
        model._state = checkpoint.from_arrays(arrays, like)
        return model, meta["extra"]

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_state")

    @property
    def components_(self) -> Float[np.ndarray, "k d"]:
        """Unit vectors on rows."""
        V = np.array(self._state.vectors)
        norms = np.linalg.norm(V, axis=1, keepdims=True)
        return orient(V / np.where(norms > 0, norms, 1))

    @property
    def n_components_(self) -> int:
        """Number of components."""
        return self._state.k

    @property
    def mean_(self) -> Float[np.ndarray, " d"]:
        """Mean of the samples seen (zero without centring)."""
        return np.asarray(self._state.mean)

    def _unbiased(self) -> float:
        distinct = getattr(self, "_distinct", self.n_samples_seen_)
        return distinct / (distinct - 1) if self.center == "running" and distinct > 1 else 1.0

    @property
    def explained_variance_(self) -> Float[np.ndarray, " k"]:
        """Variance along each component."""
        return np.asarray(self._state.aux.along)[: self._state.k] * self._unbiased()

    @property
    def explained_variance_ratio_(self) -> Float[np.ndarray, " k"]:
        """Share of the total variance along each component."""
        total = float(self._state.aux.total) * self._unbiased()
        return self.explained_variance_ / total if total > 0 else np.zeros_like(self.explained_variance_)

    @property
    def unresolved_(self) -> NDArray[np.int64]:
        """Players without variance."""
        variance = self.explained_variance_
        floor = 10 * np.finfo(variance.dtype).eps * max(float(variance.max()), 0.0)
        return np.flatnonzero(variance <= floor)

    @property
    def _n_features_out(self) -> int:
        return self._state.k

    def transform(self, X: ArrayLike) -> Float[np.ndarray, "n k"]:
        """Return (X - mean) V', a chunk of rows at a time (sparse rows are not densified).

        Products are taken in double precision: in single precision a large mean would cancel digits, and the
        coordinates of a row would depend on its position in X by a unit in the last place.
        """
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, accept_sparse="csr", dtype="numeric")
        axes = self.components_.T.astype(np.float64)
        offset = self.mean_ @ axes
        parts = [rows[part].astype(np.float64, copy=False) @ axes - offset for part in chunks(rows, 1024)]
        return np.concatenate(parts).astype(self.dtype, copy=False)

    def inverse_transform(self, X: ArrayLike) -> Float[np.ndarray, "n d"]:
        """Return Z V + mean, the reconstruction from coordinates Z."""
        check_is_fitted(self)
        return np.asarray(np.asarray(X, self.dtype) @ self.components_ + self.mean_)

    def score(self, X: ArrayLike, y: None = None) -> float:
        """Return the share of the variance of X that the components capture, 1 for all of it.

        Measured as 1 - squared reconstruction error / squared deviation from the mean, with the
        orthogonal projection on the span of the components.
        """
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, accept_sparse="csr", dtype="numeric")
        basis = np.linalg.qr(self.components_.T)[0]
        captured = total = 0.0
        for part in chunks(rows, 8192):
            centred = dense_rows(rows, part, np.float64) - self.mean_
            captured += float(np.sum(np.square(centred @ basis)))
            total += float(np.sum(np.square(centred)))
        return captured / total if total > 0 else 1.0

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags
