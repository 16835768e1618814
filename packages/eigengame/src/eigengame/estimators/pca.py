"""Streaming PCA on the scikit-learn contract."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, Self
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from eigengame import checkpoint, exact
from eigengame.core.directions import Algorithm
from eigengame.core.learning_rate import auto_gain, nesterov, with_learning_rate
from eigengame.core.ritz import Block, Quality, locally_optimal, orthogonal_rows, quality, rayleigh_ritz
from eigengame.core.solver import Config, Moments, State, init, initial_vectors, step
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
from eigengame.estimators.warn import warn_of_angles
from eigengame.exact import orient
from eigengame.sharding import gather

__all__ = ["EigenGame"]

log = logging.getLogger(__name__)

_COUNTERS = (
    "n_features_in_",
    "n_samples_seen_",
    "n_iter_",
    "n_passes_",
    "solver_",
    "_seed",
    "_rows",
    "_distinct",
    "_wanted",
)
_MAX_PASSES = 50  # over the data with n_epochs="auto"; a spectral gap of 1 % takes about 20
_COLLAPSED = 0.01  # directions in which the averaged players span less than this share are not their finding
_SMALL = 4096  # the exact solver of algorithm="auto" forms a square matrix of at most this side

# what follows from an estimator's state, apart from it: reading an attribute does not change the estimator
_SOLUTIONS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

Data = ArrayLike | Iterable[ArrayLike] | Callable[[], Iterable[ArrayLike]]
Source = Callable[[], Iterator[Batch]]


class _Sums(NamedTuple):
    """What one pass over the data adds up, of rows minus a fixed shift."""

    products: Float[Array, "m d"]
    shift: Float[Array, " d"]
    squares: Float[Array, ""]


@jax.jit
def _add_rows(sums: _Sums, W: Array, rows: Array, mean: Array, num_valid: Array) -> _Sums:
    """Add (rows - mean)' (rows - mean) W' and the moments of a batch; rows beyond num_valid do not count."""
    X = jnp.where((jnp.arange(rows.shape[0]) < num_valid)[:, None], rows - mean, 0).astype(mean.dtype)
    return _Sums(
        sums.products + (W @ X.T) @ X, sums.shift + jnp.sum(X, axis=0), sums.squares + jnp.sum(jnp.square(X))
    )


class EigenGame(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Top principal components from minibatches, with an estimate of how right they are.

    Memory is O(batch_size * d + n_components * d): data may be larger than memory or never end. `fit` plays
    one epoch of the game on minibatches and then, if the data can be read again, takes exact passes. In each
    all players move to the best vectors in the span of where they are, where the game pulls them, and where
    they came from, until the estimated error is below `tol`. What has not converged is said in a warning.

    A few players more than `n_components` take part. They are children of the others, so they change none of
    them; they show how far the next component is.

    Args:
        n_components: Number of components; None takes min(n, d) (of the first batch for streams). A float
            in (0, 1) takes as many as explain this share of the variance (`fit` of data read again).
        algorithm: `"mu"` (unbiased), `"alpha"`, `"gha"` or `"oja"`; `"auto"` solves data with min(n, d) of at
            most 4096 exactly, without the game, and plays `"mu"` on others; `solver_` says which it was.
        learning_rate: Number, optax schedule, or `"auto"`: relative to the top variance of the stream so far,
            smaller for batches below 256 rows, decaying.
        batch_size: Rows per step.
        n_epochs: `"auto"`, or a number of passes of the game on minibatches without exact passes after them.
        momentum: Nesterov momentum of SGD.
        center: `"running"` subtracts the mean of all samples seen up to and including the batch; None
            does not centre.
        optimizer: optax transformation instead of SGD; then `learning_rate` must stay `"auto"` and is
            not used. Directions are projected onto the tangent space first: an optimiser that rescales
            coordinates would otherwise turn the vectors towards its own rest point.
        mesh: Device layout from `eigengame.sharding.make_mesh`.
        random_state: Seed of the initial vectors and of the order of the rows.
        tol: Largest estimated angle in radians between a component and the true one (of the data, not of the
            distribution behind them) that counts as converged; None never warns.
        dtype: `"float32"` or `"float64"` (needs `jax.enable_x64`).
        warm_start: Let `fit` start from the components of the fit before it instead of random ones. With
            a larger `n_components` the new players start at random; with a smaller one the first stay.
            Mean, variances and momentum start anew.
        whiten: Divide the scores by the standard deviation of their component.

    Attributes:
        components_: Orthonormal vectors on rows, (n_components, d); largest-magnitude entry positive.
        explained_variance_: Variance along each, with n - 1 in the denominator as in scikit-learn's PCA.
        explained_variance_ratio_: The same divided by the total variance.
        singular_values_: Of the centred data, sqrt((n - 1) * variance).
        residuals_: |C v - lambda v| of each component.
        angle_bounds_: Estimated bound of the angle to the true component in radians (residual over gap).
        variance_errors_: Estimated bound of the error of each explained variance.
        converged_: Whether every component with variance is within `tol`.
        mean_: Mean of the samples seen.
        n_samples_seen_: Rows processed by steps, repeats of later epochs included.
        n_iter_: Steps taken.
        n_passes_: Passes over the data by `fit`, those of the game and exact ones.
        solver_: `"game"` or `"exact"`.
        learning_rate_: The number in use, or None with a schedule or an own optimizer.
        unresolved_: Indices of components without variance; any vectors orthogonal to the others do.

    Source: Gemp et al. 2021b (arXiv 2102.04152), Algorithm 1, for the game.

    Example:
        >>> X = np.random.default_rng(0).standard_normal((2000, 5)) * np.array([5.0, 3.0, 1.0, 1.0, 1.0])
        >>> model = EigenGame(n_components=2, random_state=0).fit(X)
        >>> from sklearn.decomposition import PCA
        >>> bool(np.allclose(np.abs(model.components_), np.abs(PCA(2).fit(X).components_), atol=1e-3))
        True
    """

    _state: State
    _wanted: Any
    n_samples_seen_: int
    n_passes_: int

    def __init__(
        self,
        n_components: int | float | None = None,
        *,
        algorithm: Algorithm | Literal["auto"] = "mu",
        learning_rate: float | Callable[[Any], Any] | Literal["auto"] = "auto",
        batch_size: int = 256,
        n_epochs: int | Literal["auto"] = "auto",
        momentum: float = 0.9,
        center: Literal["running"] | None = "running",
        optimizer: optax.GradientTransformation | None = None,
        mesh: Any = None,
        random_state: Any = None,
        tol: float | None = 0.02,
        dtype: str = "float32",
        warm_start: bool = False,
        whiten: bool = False,
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
        self.whiten = whiten

    def fit(self, X: Data, y: None = None) -> Self:
        """Learn the components, from scratch or, with `warm_start`, from those of the last fit.

        Args:
            X: Array, memmap, data frame or sparse matrix (n, d); or an iterator of batches (read once), an
                iterable of batches, or a callable that returns a fresh iterable of batches for every pass.
                A list of rows is an array.
            y: Ignored.

        Raises:
            ValueError: For bad settings, or data that are non-finite (names the batch; the state before
                it is kept), too narrow, or empty.
        """
        self._check_settings()
        former = self.components_ if self.warm_start and hasattr(self, "_state") else None
        share = self.n_components if isinstance(self.n_components, float) else None
        again = not isinstance(X, Iterator) or hasattr(X, "shape")
        if share is not None and not (again and self.n_epochs == "auto"):
            raise ValueError(
                f"n_components={share} needs data that can be read again and n_epochs='auto'; "
                "pass an integer."
            )
        if not again and self.n_epochs not in ("auto", 1):
            raise ValueError(
                f"n_epochs={self.n_epochs} but X is an iterator, which can be read once. "
                "Pass a callable that returns a fresh iterator for every epoch."
            )
        rows = None if is_stream(X) else self._validated(X, reset=True)
        seed = self._draw_seed()
        wanted = 16 if share is not None else self.n_components
        while True:
            self._forget()
            self._former, self._seed, self._wanted = former, seed, wanted
            self._play(X, rows)
            if self.n_epochs == "auto" and again:
                self.refine(X if rows is None else rows)
            if share is None:
                break
            enough = np.flatnonzero(np.cumsum(self.explained_variance_ratio_) >= share)
            if enough.size or self._wanted >= self.n_features_in_:
                self._wanted = int(enough[0]) + 1 if enough.size else self.n_features_in_
                break
            wanted = min(4 * self._wanted, self.n_features_in_)
        self._warn(again)
        return self

    def _play(self, X: Any, rows: Any) -> None:
        """Play the epochs of the game, or solve exactly where `algorithm="auto"` says so."""
        if rows is not None:
            n, d = rows.shape
            self._rows = self._divisible(min(self.batch_size, n))
            self._distinct = n
            if self._wanted is None:
                self._wanted = min(n, d)
            if self.algorithm == "auto" and min(n, d) <= _SMALL and self.mesh is None:
                self._solve(rows)
                return
        else:
            self._rows = self._divisible(self.batch_size)
        for epoch in range(1 if self.n_epochs == "auto" else int(self.n_epochs)):
            before = self.n_samples_seen_
            batches = (
                iterable_batches(X, self._rows, dtype=self.dtype)
                if rows is None
                else array_batches(rows, self._rows, seed=self._seed, epoch=epoch, dtype=self.dtype)
            )
            for batch in batches:
                if not hasattr(self, "_state"):
                    self.n_features_in_ = batch.rows.shape[1]
                self._absorb(batch)
            if not hasattr(self, "_state"):
                raise ValueError("The iterable yielded no rows. Pass at least one (n, d) array with n > 0.")
            self._distinct = self.n_samples_seen_ - before
            self.n_passes_ += 1

    def _solve(self, rows: Any) -> None:
        """Take the components from an exact solver."""
        n, d = rows.shape
        for part in chunks(rows, 8192):
            check_finite(dense_rows(rows, part, self.dtype), part.start // 8192)
        dense = dense_rows(rows, slice(None), np.float64)
        mean = dense.mean(axis=0) if self.center == "running" else np.zeros(d)
        self._start(Batch(dense[:1].astype(self.dtype), n, 0))
        size = self._state.k
        centred = dense - mean
        if d <= n:
            values, vectors = exact.pencil(centred.T @ centred / n, k=size)
        else:
            _, singular, vectors = np.linalg.svd(centred, full_matrices=False)
            values = np.square(singular) / n
        block = Block(vectors[:size], values[:size, None] * vectors[:size], vectors[:size], values[:size])
        self._adopt(block, mean, float(np.square(centred).sum() / n))
        self.n_samples_seen_, self.n_iter_, self.n_passes_, self.solver_ = n, 0, 1, "exact"
        self._state = replace(self._state, count=jnp.asarray(n, jnp.int32))
        log.info("min(n, d) = %d is at most %d: solved exactly, without the game.", min(n, d), _SMALL)

    def refine(self, X: Data) -> Self:
        """Take exact passes over data that can be read again until the components are within `tol`.

        Mean and variances become those of X. The fit goes on from there with `partial_fit`.

        Args:
            X: As `fit`, but no iterator.

        Raises:
            ValueError: For an iterator, or an estimator that has seen no data.
        """
        check_is_fitted(self)
        self._check_settings()
        if self.solver_ == "exact":
            return self
        if isinstance(X, Iterator) and not hasattr(X, "shape"):
            raise ValueError("X is an iterator, which can be read once; refine reads it several times.")
        rows = None if is_stream(X) else X if hasattr(X, "shape") else np.asarray(X)
        mean = np.array(gather(self._state.mean), np.float64)
        moments: dict[str, Any] = {}

        def products(W: NDArray) -> tuple[NDArray, NDArray]:
            AW, moments["mean"], moments["total"], self._distinct = self._pass(X, rows, W, mean)
            self.n_passes_ += 1
            return AW, W

        held = self._streamed()
        W = np.concatenate([held.V, held.AV / max(float(held.values.max(initial=0)), 1e-300)])
        W = rayleigh_ritz(W, W, threshold=1e-4).V
        block = rayleigh_ritz(W, products(W)[0])
        size = min(self._state.k, block.values.size)
        block = Block(*(part[:size] for part in block))
        block, _ = locally_optimal(
            products,
            block,
            partial(quality, k=self.n_components_, noise=self._noise),
            tol=float(self.tol or 0.02),
            max_passes=_MAX_PASSES - 2,
        )
        self._adopt(block, moments["mean"], moments["total"])
        return self

    def _pass(self, X: Any, rows: Any, W: NDArray, mean: NDArray) -> tuple[NDArray, NDArray, float, int]:
        """Return C W', the mean, the total variance and the number of rows, in one pass over the data."""
        dtype = np.dtype(self.dtype)
        d = W.shape[1]
        size = max(int(2**22 // d), 256) if rows is not None else self.batch_size
        players = self._state.k
        padded = np.pad(W, ((0, -W.shape[0] % players), (0, 0)))  # two shapes are compiled, not one per size
        sums = _Sums(jnp.zeros(padded.shape, dtype), jnp.zeros(d, dtype), jnp.zeros((), dtype))
        shift = (mean if self.center == "running" else np.zeros(d)).astype(dtype)
        device_W, count = jnp.asarray(padded, dtype), 0
        if rows is not None:
            size = min(size, rows.shape[0])
            batches: Iterable[Batch] = (
                Batch(pad_rows(dense_rows(rows, part, dtype), size), part.stop - part.start, part.start)
                for part in chunks(rows, size)
            )
        else:
            batches = iterable_batches(X, size, dtype=dtype)
        for batch in batches:
            sums = _add_rows(sums, device_W, batch.rows, shift, np.int32(batch.num_valid))
            count += batch.num_valid
        products, offset = np.asarray(sums.products, np.float64)[: W.shape[0]] / count, np.zeros(d)
        if self.center == "running":
            offset = np.asarray(sums.shift, np.float64) / count
            products = products - np.outer(W @ offset, offset)
        total = float(sums.squares) / count - float(offset @ offset)
        return products, shift + offset, total, count

    def _adopt(self, block: Block, mean: NDArray, total: float) -> None:
        """Continue from vectors with exact products; momentum starts anew."""
        state, dtype = self._state, jnp.dtype(self.dtype)
        missing = state.k - block.values.size
        V = np.concatenate([block.V, orthogonal_rows(block.V, missing)])
        AV = np.concatenate([block.AV, np.zeros((missing, V.shape[1]))])
        padding = ((0, state.V.shape[0] - state.k), (0, 0))
        place = partial(jax.device_put, device=state.V.sharding)
        vectors = place(jnp.asarray(np.pad(V, padding), dtype))
        moments = Moments(
            jnp.asarray(total, dtype),
            jnp.asarray(total, dtype),
            place(jnp.asarray(np.pad(V, padding), dtype)),
            place(jnp.asarray(np.pad(AV, padding), dtype)),
            jnp.asarray(np.linalg.norm(AV, axis=1).max(), dtype),
        )
        fresh = init(
            jax.random.key(0), state.k, V.shape[1], self._config().optimizer, dtype=dtype, mesh=self.mesh
        )
        opt_state = fresh.opt_state
        if self.learning_rate_ is not None:
            opt_state = with_learning_rate(fresh, self.learning_rate_).opt_state
        self._state = replace(
            state, V=vectors, aux=moments, mean=jnp.asarray(mean, dtype), opt_state=opt_state
        )

    def partial_fit(self, X: ArrayLike, y: None = None) -> Self:
        """Continue with more rows, in chunks of at most `batch_size`.

        It never warns: `converged_` and `angle_bounds_` tell how far the components are.
        An array that already lives on the device and has `batch_size` rows is used as it is.

        Args:
            X: Array, data frame or sparse matrix (n, d).
            y: Ignored.

        Raises:
            ValueError: As `fit`; the state before the offending batch is kept.
        """
        self._check_settings()
        first = not hasattr(self, "_state")
        if first:
            if isinstance(self.n_components, float):
                raise ValueError(f"n_components={self.n_components} needs `fit`; pass an integer.")
            self._forget()
            self._seed, self._wanted = self._draw_seed(), self.n_components
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
            self._rows = self._divisible(min(self.batch_size, rows.shape[0]))
        for part in chunks(rows, self.batch_size):
            dense = dense_rows(rows, part, self.dtype)
            size = self._rows if dense.shape[0] <= self._rows else self._divisible(self.batch_size)
            self._absorb(Batch(pad_rows(dense, size), dense.shape[0], self.n_iter_))
        self.__dict__.pop("_distinct", None)
        return self

    def _divisible(self, rows: int) -> int:
        """Return the number of rows rounded up to what the mesh can split; the rest is padding."""
        parts = 1 if self.mesh is None else self.mesh.shape["data"]
        return -(-int(rows) // parts) * parts

    def _check_settings(self) -> None:
        for name in ("batch_size", "n_epochs"):
            value = getattr(self, name)
            if name == "n_epochs" and isinstance(value, str) and value == "auto":
                continue
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be an integer of at least 1.")
        k: Any = self.n_components
        whole = isinstance(k, Integral) and int(k) >= 1
        if not (k is None or whole or (isinstance(k, float) and 0 < k < 1)):
            raise ValueError(
                f"n_components is {k!r}; it must be an integer of at least 1, a share between 0 and 1, "
                "or None."
            )
        allowed = ("mu", "alpha", "gha", "oja", "auto")
        if self.algorithm not in allowed:
            raise ValueError(
                f"Unknown algorithm {self.algorithm!r}. Allowed: {', '.join(map(repr, allowed))}."
            )
        momentum: Any = self.momentum
        if not (isinstance(momentum, Real) and 0 <= float(momentum) < 1):
            raise ValueError(f"momentum is {momentum!r}; it must lie in [0, 1).")
        center: Any = self.center
        if center not in ("running", None):
            raise ValueError(f"center is {center!r}; allowed are 'running' and None.")
        rate: Any = self.learning_rate
        automatic = isinstance(rate, str) and rate == "auto"
        if not (automatic or callable(rate) or (isinstance(rate, Real) and 0 < float(rate) < np.inf)):
            raise ValueError(f"learning_rate is {rate!r}; pass a positive number, a schedule or 'auto'.")
        if self.optimizer is not None and not automatic:
            raise ValueError("Pass either optimizer or learning_rate; an optimizer brings its own step size.")
        tol: Any = self.tol
        if tol is not None and not (isinstance(tol, Real) and 0 < float(tol) < np.inf):
            raise ValueError(f"tol is {tol!r}; pass a positive angle in radians, or None for no check.")
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
        self.n_samples_seen_, self.n_iter_, self.n_passes_, self.solver_ = 0, 0, 0, "game"

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
        automatic = self.optimizer is None and self.learning_rate == "auto"
        return Config(
            optimizer=self.optimizer or nesterov(float(self.momentum), schedule),
            algorithm="mu" if self.algorithm == "auto" else self.algorithm,
            project=self.optimizer is not None,
            center=self.center == "running",
            moments=True,
            adaptive=auto_gain(float(self.momentum)) if automatic else None,
            mesh=self.mesh,
        )

    def _start(self, batch: Batch) -> None:
        n, d = batch.num_valid, batch.rows.shape[1]
        if self._wanted is None:
            self._wanted = min(n, d)
        k = self._wanted = int(self._wanted)
        if k > d:
            raise ValueError(f"n_components={k} exceeds n_features={d}; ask for at most {d} components.")
        players = min(k + max(8, k // 2), d)
        config = self._config()
        key = jax.random.key(self._seed)
        V = self._first_vectors(key, players, d)
        state = init(key, players, d, config.optimizer, V=V, moments=True, dtype=self.dtype, mesh=self.mesh)
        if self.optimizer is None and not callable(self.learning_rate) and self.learning_rate != "auto":
            state = with_learning_rate(state, float(self.learning_rate))
        self._state = state

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
                f"learning_rate={self.learning_rate_} is too large, or the data overflow {self.dtype}; "
                "lower the rate, or scale the data. The state before it was kept."
            )
        self._state = state
        self.n_samples_seen_ += batch.num_valid
        self.n_iter_ += 1

    @property
    def _noise(self) -> float:
        """Relative accuracy of products in the type of the fit."""
        return 10 * float(np.finfo(self.dtype).eps)

    def _streamed(self) -> Block:
        """Return the best vectors in the span of the players, from what the steps added up."""
        moments, k = self._state.aux, self._state.k
        V, AV = (np.asarray(gather(leaf), np.float64)[:k] for leaf in (moments.vectors, moments.products))
        block = rayleigh_ritz(V, AV, threshold=_COLLAPSED)
        missing = k - block.values.size
        extra = orthogonal_rows(block.V, missing)
        return Block(
            np.concatenate([block.V, extra]),
            np.concatenate([block.AV, 0 * extra]),
            np.concatenate([block.BV, extra]),
            np.concatenate([block.values, np.zeros(missing)]),
        )

    def _current(self) -> tuple[Block, Quality]:
        """Return the vectors and their quality, computed once per state."""
        held: Any = _SOLUTIONS.get(self)
        if held is None or held[0] is not self._state:
            block = self._streamed()
            found = quality(block, self._wanted, noise=self._noise)
            # where variance is left over, a player that found none has lost its way rather than no prey
            total = float(self._state.aux.recent)
            if total - np.maximum(block.values, 0).sum() > 100 * self._noise * total:
                angles = np.where(block.values[: self._wanted] > 0, found.angles, np.pi / 2)
                found = replace(found, angles=angles, unresolved=np.flatnonzero(np.zeros(0)))
            _SOLUTIONS[self] = held = (self._state, block, found)
        return held[1], held[2]

    def _warn(self, again: bool) -> None:
        if self.tol is None:
            return
        found = self._current()[1]
        if not again:
            advice = "pass data that can be read again: an array, a memory map, or a callable"
        elif self.n_epochs != "auto":
            advice = "raise n_epochs, or pass n_epochs='auto', which goes on until they have"
        elif self.dtype == "float32":
            advice = "their variances may be too close for single precision; try dtype='float64'"
        else:
            advice = "their variances are too close to tell apart; only their span is meaningful"
        warn_of_angles("Components", found, float(self.tol), advice, level=4)

    def save(self, path: str | os.PathLike[str], extra: dict[str, Any] | None = None) -> None:
        """Write the fit so far to a file without pickle; `load` continues from it bit for bit.

        Args:
            path: File name, by convention ending in `.npz`.
            extra: JSON values to keep with it, such as the position in the data.

        Raises:
            ValueError: If a setting cannot be written: an optimizer, mesh, schedule or generator object.
        """
        check_is_fitted(self)
        params = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in self.get_params().items()
        }
        for name, value in params.items():
            if not isinstance(value, int | float | str | None):
                raise ValueError(f"{name}={value!r} cannot be saved; save State with eigengame.checkpoint.")
        counters = {name: getattr(self, name) for name in _COUNTERS if hasattr(self, name)}
        if hasattr(self, "feature_names_in_"):
            counters["feature_names_in_"] = list(self.feature_names_in_)
        meta = {"params": params, "counters": counters, "players": self._state.k, "extra": extra or {}}
        checkpoint.save(path, self._state, meta)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> tuple[Self, dict[str, Any]]:
        """Return a saved estimator, and the values saved with it.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is not one that `save` wrote.
        """
        arrays, meta = checkpoint.read(path)
        if not {"params", "counters", "players"} <= set(meta):
            raise ValueError(
                f"{path} holds a State but no estimator; read it with eigengame.checkpoint.load."
            )
        model = cls(**meta["params"])
        model._check_settings()
        for name, value in meta["counters"].items():
            setattr(model, name, np.array(value, object) if name == "feature_names_in_" else value)
        optimizer = model._config().optimizer
        like = init(
            jax.random.key(0),
            meta["players"],
            model.n_features_in_,
            optimizer,
            moments=True,
            dtype=model.dtype,
        )
        model._state = checkpoint.from_arrays(arrays, like)
        return model, meta["extra"]

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_state")

    @property
    def components_(self) -> Float[np.ndarray, "k d"]:
        """Orthonormal vectors on rows."""
        return orient(self._current()[0].V[: self.n_components_].astype(self.dtype))

    @property
    def n_components_(self) -> int:
        """Number of components."""
        return int(self._wanted)

    @property
    def learning_rate_(self) -> float | None:
        """Learning rate of the last step."""
        hyperparams = getattr(self._state.opt_state, "hyperparams", None)
        return (
            None if hyperparams is None or self.optimizer is not None else float(hyperparams["learning_rate"])
        )

    @property
    def mean_(self) -> Float[np.ndarray, " d"]:
        """Mean of the samples seen (zero without centring)."""
        return np.asarray(self._state.mean)

    def _samples(self) -> int:
        return int(getattr(self, "_distinct", self.n_samples_seen_))

    def _unbiased(self) -> float:
        n = self._samples()
        return n / (n - 1) if self.center == "running" and n > 1 else 1.0

    @property
    def explained_variance_(self) -> Float[np.ndarray, " k"]:
        """Variance along each component."""
        values = np.maximum(self._current()[0].values[: self.n_components_], 0)
        return np.asarray(values * self._unbiased(), self.dtype)

    @property
    def explained_variance_ratio_(self) -> Float[np.ndarray, " k"]:
        """Share of the total variance along each component."""
        total = float(self._state.aux.recent) * self._unbiased()
        return self.explained_variance_ / total if total > 0 else np.zeros_like(self.explained_variance_)

    @property
    def singular_values_(self) -> Float[np.ndarray, " k"]:
        """Singular values of the centred data."""
        n = self._samples()
        return np.asarray(np.sqrt(self.explained_variance_ * (n - 1 if self.center == "running" else n)))

    @property
    def noise_variance_(self) -> float:
        """Mean variance along the directions that are left out."""
        left = self.n_features_in_ - self.n_components_
        total = float(self._state.aux.recent) * self._unbiased()
        return max(total - float(self.explained_variance_.sum()), 0.0) / left if left else 0.0

    @property
    def residuals_(self) -> Float[np.ndarray, " k"]:
        """Length of C v - lambda v for every component."""
        return self._current()[1].residuals

    @property
    def angle_bounds_(self) -> Float[np.ndarray, " k"]:
        """Estimated bound of the angle between each component and the true one, in radians."""
        return self._current()[1].angles

    @property
    def variance_errors_(self) -> Float[np.ndarray, " k"]:
        """Estimated bound of the error of each explained variance."""
        return self._current()[1].value_errors

    @property
    def converged_(self) -> bool:
        """Whether every component with variance is within `tol`."""
        found = self._current()[1]
        return not found.tied.size and not found.pending(self.tol or 0.0).size

    @property
    def unresolved_(self) -> NDArray[np.int64]:
        """Components without variance."""
        return self._current()[1].unresolved

    @property
    def _n_features_out(self) -> int:
        return self.n_components_

    def get_covariance(self) -> Float[np.ndarray, "d d"]:
        """Return the covariance of the probabilistic model: components, and noise in all other directions."""
        noise = self.noise_variance_
        excess = np.maximum(self.explained_variance_ - noise, 0)
        V = self.components_
        return np.asarray((V.T * excess) @ V + noise * np.eye(V.shape[1], dtype=V.dtype))

    def _scale(self) -> NDArray:
        """Return the factor of each score: 1, or with `whiten` 1 / deviation (0 where there is none)."""
        scale = np.ones(self.n_components_)
        if self.whiten:
            deviation = np.sqrt(self.explained_variance_.astype(np.float64))
            deviation[self.unresolved_] = np.inf
            scale = 1 / np.where(deviation > 0, deviation, np.inf)
        return scale

    def transform(self, X: ArrayLike) -> Float[np.ndarray, "n k"]:
        """Return (X - mean) V', a chunk of rows at a time (sparse rows are not densified).

        Products are taken in double precision: in single precision a large mean would cancel digits, and the
        coordinates of a row would depend on its position in X by a unit in the last place.
        """
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, accept_sparse="csr", dtype="numeric")
        axes = self.components_.T.astype(np.float64) * self._scale()
        offset = self.mean_ @ axes
        parts = [rows[part].astype(np.float64, copy=False) @ axes - offset for part in chunks(rows, 1024)]
        return np.concatenate(parts).astype(self.dtype, copy=False)

    def inverse_transform(self, X: ArrayLike) -> Float[np.ndarray, "n d"]:
        """Return the reconstruction Z V + mean from coordinates Z, the scale of `whiten` undone."""
        check_is_fitted(self)
        scores = np.asarray(X, np.float64)
        if scores.ndim != 2 or scores.shape[1] != self.n_components_:
            raise ValueError(f"Scores have shape {scores.shape}; expected (n, {self.n_components_}).")
        scale = self._scale()
        back = scores * np.where(scale > 0, 1 / np.where(scale > 0, scale, 1), 0)
        return np.asarray(back @ self.components_ + self.mean_, self.dtype)

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
