"""Streaming PCA on the scikit-learn contract."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from numbers import Real
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from eigengame import exact
from eigengame.core.directions import Algorithm
from eigengame.core.ritz import Block, locally_optimal, quality, rayleigh_ritz
from eigengame.estimators.components import TOLERANCE, Components
from eigengame.estimators.frames import CACHED
from eigengame.estimators.passes import Pass, one_pass
from eigengame.estimators.saved import Saved
from eigengame.estimators.settings import COUNT, DTYPE, POSITIVE, check_precision, check_unchanged
from eigengame.estimators.streams import (
    array_batches,
    chunks,
    dense_rows,
    is_stream,
    iterable_batches,
    validated,
)
from eigengame.estimators.warn import warn_of_angles, warn_user
from eigengame.sharding import check_mesh, gather

__all__ = ["EigenGame"]

log = logging.getLogger(__name__)

_MAX_PASSES = 50  # over the data with n_epochs="auto"; a spectral gap of 1 % takes about 20
_SAME = 1e-3  # two readings of the same rows differ by less, in single precision and whatever their order
_EQUAL = 5e-6  # thirty times what rounding moves mean and covariance of equal rows
_SMALL = 4096  # the exact solver of algorithm="auto" forms a square matrix of at most this side

Data = ArrayLike | Iterable[ArrayLike] | Callable[[], Iterable[ArrayLike]]


class EigenGame(Components, Saved):
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
            distribution behind them) that counts as converged; above 0.5 `fit` aims at 0.5, and with None
            at 0.02 without ever warning.
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
        unresolved_: Indices of components without variance above rounding error; any vectors orthogonal to
            the others do. `fit` warns of them unless there are fewer samples than components.

    Source: Gemp et al. 2021b (arXiv 2102.04152), Algorithm 1, for the game.

    Example:
        >>> X = np.random.default_rng(0).standard_normal((2000, 5)) * np.array([5.0, 3.0, 1.0, 1.0, 1.0])
        >>> model = EigenGame(n_components=2, random_state=0).fit(X)
        >>> from sklearn.decomposition import PCA
        >>> bool(np.allclose(np.abs(model.components_), np.abs(PCA(2).fit(X).components_), atol=1e-3))
        True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "n_components": [COUNT, Interval(Real, 0, 1, closed="neither"), None],
        "algorithm": [StrOptions({"mu", "alpha", "gha", "oja", "auto"})],
        "learning_rate": [POSITIVE, callable, StrOptions({"auto"})],
        "batch_size": [COUNT],
        "n_epochs": [COUNT, StrOptions({"auto"})],
        "momentum": [Interval(Real, 0, 1, closed="left")],
        "center": [StrOptions({"running"}), None],
        "optimizer": "no_validation",
        "mesh": "no_validation",
        "random_state": ["random_state"],
        "tol": [POSITIVE, None],
        "dtype": [DTYPE],
        "warm_start": ["boolean"],
        "whiten": ["boolean"],
    }

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
                A list of rows is an array, a list of arrays (n, d) holds batches.
            y: Ignored.

        Raises:
            ValueError: For bad settings, or data that are non-finite (names the batch; the state before it is
                kept, or the fit before where it is the first), too narrow, empty, or not the same when
                they are read again.
        """
        before = dict(self.__dict__)
        try:
            return self._learn(X)
        except BaseException:
            former = before.get("_state")
            if vars(self).get("_state", former) is former:  # nothing of X was taken
                self.__dict__.clear()
                self.__dict__.update(before)
            raise

    def _learn(self, X: Data) -> Self:
        """Fit, as `fit` says."""
        self._check_settings()
        former = self.components_ if self.warm_start and hasattr(self, "_state") else None
        share = self._share()
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
            if self.n_epochs == "auto" and again and self.solver_ == "game":
                self._refine(X if rows is None else rows, self._distinct)
            if share is None:
                break
            wanted = self._wanted
            enough = np.flatnonzero(np.cumsum(self.explained_variance_ratio_) >= share)
            if enough.size or wanted >= self.n_features_in_:
                self._wanted = int(enough[0]) + 1 if enough.size else self.n_features_in_
                break
            wanted = 4 * wanted
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
                iterable_batches(X, self.batch_size)
                if rows is None
                else array_batches(rows, min(self.batch_size, n), seed=self._seed, epoch=epoch)
            )
            for position, batch in enumerate(batches):
                if not hasattr(self, "_state"):
                    self.n_features_in_ = batch.shape[1]
                self._absorb(batch, position)
            if not hasattr(self, "_state"):
                raise ValueError("The iterable yielded no rows. Pass at least one (n, d) array with n > 0.")
            self._distinct = self.n_samples_seen_ - before
            self.n_passes_ += 1

    def _solve(self, rows: Any) -> None:
        """Take the components from an exact solver."""
        n, d = rows.shape
        dense = dense_rows(rows)
        self._start(dense, 0)
        size, mean = self._state.k, np.zeros(d)
        if d <= n:
            second = np.zeros((d, d))
            for part in chunks(dense, CACHED):
                entered = self._frame.enter(dense[part], np.float64)
                mean += entered.sum(axis=0) / n
                second += entered.T @ entered
            mean *= self.center == "running"
            covariance = second / n - np.outer(mean, mean)  # which is tiny: the frame took a mean away
            values, vectors = exact.pencil(covariance, k=size)
            total = float(np.trace(covariance))
        else:
            entered = self._frame.enter(dense, np.float64)
            mean = entered.mean(axis=0) if self.center == "running" else mean
            _, singular, vectors = np.linalg.svd(entered - mean, full_matrices=False)
            values = np.square(singular) / n
            total = float(values.sum())
        block = Block(vectors[:size], values[:size, None] * vectors[:size], vectors[:size], values[:size])
        self._adopt(block, mean, total)
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
        check_unchanged(self, self._begun_with)
        if isinstance(X, Iterator) and not hasattr(X, "shape"):
            raise ValueError("X is an iterator, which can be read once; refine reads it several times.")
        return self._refine(X if is_stream(X) else self._validated(X, reset=False))

    def _refine(self, data: Any, num_rows: int | None = None) -> Self:
        """Take the passes; `num_rows` is the number of rows, if it is known."""
        found = Pass(np.zeros(0), np.array(gather(self._state.mean), np.float64), 0.0, 0, np.zeros(0))
        held = self._streamed()
        first = None if num_rows is None else float(self._state.aux.total)

        def products(W: NDArray) -> tuple[NDArray, NDArray]:
            nonlocal found, first, num_rows
            before, found = (
                found,
                one_pass(
                    data,
                    W,
                    frame=self._frame,
                    shift=found.mean if self.center == "running" else None,
                    batch_size=self.batch_size,
                    multiple=self._state.k,
                    dtype=self.dtype,
                ),
            )
            self.n_passes_ += 1
            num_rows = num_rows or found.num_rows
            if found.num_rows != num_rows:
                raise ValueError(
                    f"X had {num_rows} rows and now has {found.num_rows}: pass data that are the same at "
                    "every reading; a callable must return a fresh iterable of all batches."
                )
            if first and abs(found.total / first - 1) > _SAME:
                raise ValueError(
                    f"The variance of X is {found.total / first:.4g} times that of the reading before: "
                    "pass data that are the same at every reading, without random changes."
                )
            # the game holds the mean of its reading, with the rounding of as many steps
            far = _EQUAL if before.num_rows else 20 * _EQUAL
            if first is not None and found.distance(before) > far:
                raise ValueError(
                    "X holds other rows than at the reading before: pass data that are the same at every "
                    "reading, without random changes and without a shuffled loader that drops its last rows."
                )
            first = found.total if first is None else first
            return found.products, W

        W = np.concatenate([held.V, held.AV / max(float(held.values.max(initial=0)), 1e-300)])
        W = rayleigh_ritz(W, W, threshold=1e-4).V
        block = rayleigh_ritz(W, products(W)[0])
        size = min(self._state.k, block.values.size)
        block = Block(*(part[:size] for part in block))
        block, _ = locally_optimal(
            products,
            block,
            partial(quality, k=self.n_components_, noise=self._noise),
            tol=float(self.tol or TOLERANCE),
            max_passes=_MAX_PASSES - 2,
        )
        self._distinct, self.solver_ = found.num_rows, "game"
        self._adopt(block, found.mean, found.total)
        return self

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
        if not first:
            check_unchanged(self, self._begun_with)
        else:
            if self._share() is not None:
                raise ValueError(f"n_components={self.n_components} needs `fit`; pass an integer.")
            self._forget()
            self._seed, self._wanted = self._draw_seed(), self.n_components
        on_device = X if isinstance(X, jax.Array) and X.ndim == 2 and not jnp.iscomplexobj(X) else None
        if on_device is not None and not first and on_device.shape[0] == self._rows:
            if on_device.shape[1] != self.n_features_in_:
                raise ValueError(
                    f"X has {on_device.shape[1]} features, but {type(self).__name__} is expecting "
                    f"{self.n_features_in_} features as input."
                )
            self._absorb(on_device, self.n_iter_)
            return self
        rows = self._validated(X, reset=first)
        if first:
            self._rows = self._divisible(min(self.batch_size, rows.shape[0]))
        for part in chunks(rows, self.batch_size):
            self._absorb(dense_rows(rows, part), self.n_iter_)
        self.__dict__.pop("_distinct", None)
        return self

    def _check_settings(self) -> None:
        self._validate_params()
        if self.optimizer is not None and self.learning_rate != "auto":
            raise ValueError("Pass either optimizer or learning_rate; an optimizer brings its own step size.")
        check_precision(self.dtype)
        check_mesh(self.mesh)

    def _draw_seed(self) -> int:
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _validated(self, X: Any, *, reset: bool) -> Any:
        # finiteness is checked batch by batch, so that a file larger than memory is read once only
        rows = validated(self, X, reset=reset, accept_sparse="csr", ensure_all_finite=False)
        if isinstance(X, np.memmap) and not isinstance(rows, np.memmap):
            rows = X
        return rows

    def _warn(self, again: bool) -> None:
        if self.tol is None:
            return
        if not self._state.aux.total:
            warn_user(
                "The data do not vary: all rows are equal, and the components mean nothing.",
            )
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
        warn_of_angles("Components", found, float(self.tol), advice)
        hidden = found.unresolved[found.unresolved < min(self._samples() - 1, self.n_features_in_)]
        if hidden.size:
            other = ", or pass dtype='float64'." if self.dtype == "float32" else "."
            floor = found.floor * self._frame.unit**2
            warn_user(
                f"Components {hidden.tolist()} have no variance above {floor:.2g}, "
                f"the rounding error of {self.dtype}: they mean nothing. Ask for fewer components{other}",
            )
