"""CCA, PLS and ICA from minibatches, by gamma-EigenGame, on the scikit-learn contract."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from eigengame.core.generalized import (
    PencilConfig,
    pencil_init,
    pencil_step,
    repeat_pencil_step,
    unresolved_players,
)
from eigengame.core.ritz import locally_optimal, quality, starting_block
from eigengame.core.solver import State
from eigengame.estimators.streams import check_finite
from eigengame.estimators.warn import warn_of_angles
from eigengame.exact import orient
from eigengame.pencils import cca_products, ica_products, pls_products

__all__ = ["EigenGameCCA", "EigenGameICA", "EigenGamePLS"]

_FULL_BATCH_RATE, _MINIBATCH_RATE = 0.1, 3e-3  # Adam; a full batch has no noise to average out
_WIDEST = 2048  # views of more columns are scaled column by column, not whitened: a (d, d) matrix is formed
_FEWEST = 8  # rows from which the units of the columns can be guessed
_NOISE = 10 * float(np.finfo(np.float32).eps)

Frames = tuple[NDArray, ...]


def _with_ridge(products: Callable[[Any, Any], tuple[Any, Any]], V: Any, batches: Any) -> tuple[Any, Any]:
    """Return the products of a problem in its frames, the multiple of the identity added to B."""
    samples, ridge = batches
    AV, BV = products(V, samples)
    if ridge is None:
        return AV, BV
    added = jax.tree.map(lambda v, R: v @ R if R.ndim == 2 else v * R, V, ridge)
    return AV, jax.tree.map(jnp.add, BV, added)


_PRODUCTS = {
    name: partial(_with_ridge, products)
    for name, products in (("cca", cca_products), ("pls", pls_products), ("ica", ica_products))
}


def _frame(view: NDArray, epsilon: float, *, whiten: bool) -> NDArray:
    """Return the frame in which a centred view has unit covariance, (r, d), or unit variances, (d,).

    In a frame a direction u of the samples F x stands for F' u: only the coordinates change, not the answer.
    Directions without variance are left out of a whitening frame.
    """
    n, d = view.shape
    if not whiten or d > _WIDEST or n < 2:
        deviation = np.sqrt(np.square(view).mean(axis=0) + epsilon)
        return np.where(deviation > 0, 1 / np.where(deviation > 0, deviation, 1), 1)
    unit = np.sqrt(np.square(view).mean(axis=0))
    unit = np.where(unit > 0, unit, 1)
    if n < d and not epsilon:
        _, singular, vectors = np.linalg.svd(view / unit, full_matrices=False)
        values = np.square(singular) / n
        keep = values > values[0] * n * np.finfo(np.float64).eps
        return np.asarray((vectors[keep].T / np.sqrt(values[keep])).T / unit)
    scaled = view / unit
    values, vectors = np.linalg.eigh(scaled.T @ scaled / n + np.diag(epsilon / unit**2))
    keep = values > values[-1] * d * np.finfo(np.float64).eps
    return np.asarray((vectors[:, keep] / np.sqrt(values[keep])).T / unit)


def _into(frame: NDArray, rows: NDArray) -> NDArray:
    return np.asarray(rows * frame if frame.ndim == 1 else rows @ frame.T)


def _out_of(frame: NDArray, vectors: NDArray) -> NDArray:
    return np.asarray(vectors * frame if frame.ndim == 1 else vectors @ frame)


@lru_cache(maxsize=64)
def adam(learning_rate: float, num_steps: int | None) -> optax.GradientTransformation:
    """Return Adam; with a known number of steps the second half decays by a cosine to zero."""
    if num_steps is None:
        return optax.adam(learning_rate)
    half = max(num_steps // 2, 1)
    return optax.adam(
        optax.join_schedules(
            [optax.constant_schedule(learning_rate), optax.cosine_decay_schedule(learning_rate, half)], [half]
        )
    )


@lru_cache(maxsize=8)
def _jitted(products: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[[Any, Any], tuple[Any, Any]]:
    compiled: Callable[[Any, Any], tuple[Any, Any]] = jax.jit(products)
    return compiled


def _unit_rows(V: NDArray) -> NDArray:
    lengths = np.linalg.norm(V, axis=1, keepdims=True)
    return np.asarray(V / np.maximum(lengths, np.finfo(np.float64).tiny))


def _has_batch_size(estimator: Any) -> bool:
    """Tell scikit-learn whether partial_fit exists: with batch_size=None every step uses all data."""
    if estimator.batch_size is None:
        raise AttributeError("partial_fit needs batch_size; with batch_size=None every step uses all data.")
    return True


class _PencilEstimator(TransformerMixin, BaseEstimator):
    """What CCA, PLS and ICA share: settings, centring, splitting into independent batches, steps."""

    _problem: ClassVar[str]
    _independent: ClassVar[int]
    _two_views: ClassVar[bool] = False

    def __init__(
        self,
        n_components: int = 1,
        *,
        batch_size: int | None = None,
        n_epochs: int = 200,
        learning_rate: float | None = None,
        independent_batches: int | None = None,
        aux_rate: float = 0.1,
        epsilon: float = 0.0,
        maximize: bool = True,
        refine: bool = True,
        tol: float = 0.02,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.learning_rate = learning_rate
        self.independent_batches = independent_batches
        self.aux_rate = aux_rate
        self.epsilon = epsilon
        self.maximize = maximize
        self.refine = refine
        self.tol = tol
        self.random_state = random_state

    _state: State
    _means: tuple[NDArray, ...]
    _frames: Frames
    _units: tuple[float, ...]
    n_samples_seen_: int
    n_iter_: int

    def _config(self, num_steps: int | None) -> PencilConfig:
        full = self.batch_size is None
        rate = self.learning_rate or (_FULL_BATCH_RATE if full else _MINIBATCH_RATE)
        return PencilConfig(
            optimizer=adam(float(rate), num_steps if full else None),
            products=_PRODUCTS[self._problem],
            exact=full,
            aux_rate=float(self.aux_rate),
            maximize=bool(self.maximize),
        )

    def _check_settings(self) -> None:
        for name, optional in (
            ("n_components", False),
            ("n_epochs", False),
            ("batch_size", True),
            ("independent_batches", True),
        ):
            value: Any = getattr(self, name)
            if not (optional and value is None) and (not isinstance(value, Integral) or int(value) < 1):
                raise ValueError(f"{name} is {value!r}; it must be an integer of at least 1.")
        for name, optional in (("learning_rate", True), ("aux_rate", False), ("tol", False)):
            value = getattr(self, name)
            if not (optional and value is None) and not (isinstance(value, Real) and float(value) > 0):
                raise ValueError(f"{name} is {value!r}; it must be a positive number.")
        epsilon: Any = self.epsilon
        if not (isinstance(epsilon, Real) and float(epsilon) >= 0):
            raise ValueError(f"epsilon is {self.epsilon!r}; it must be a number of at least 0.")

    def _fit(self, views: tuple[NDArray, ...]) -> Self:
        self._check_settings()
        self._forget()
        self._move_mean(views)
        self._set_frames(views, whiten=self.refine)
        batches = (self._samples(views), self._ridge())
        if self.batch_size is None:
            self._start(views)
            full = ((batches[0],), batches[1])
            state, finite = repeat_pencil_step(
                self._state, full, self._config(self.n_epochs), int(self.n_epochs)
            )
            self._keep(state, bool(finite), 0)
            self.n_iter_ = int(self.n_epochs)
        else:
            rows = self.batch_size * (self.independent_batches or self._independent)
            generator = np.random.default_rng(self._draw_seed())
            for _ in range(self.n_epochs):
                order = generator.permutation(views[0].shape[0])
                for start in range(0, len(order), rows):
                    self._absorb(tuple(view[order[start : start + rows]] for view in views))
            if not hasattr(self, "_state"):
                self._start(views)
        if self.refine:
            self._refine(batches)
        return self

    def _refine(self, batches: tuple[Any, Any]) -> None:
        """Improve all vectors by exact products with the whole data until they are within `tol`."""
        template, sign = self._state.V, 1 if self.maximize else -1
        widths = [leaf.shape[1] for leaf in jax.tree.leaves(template)]
        full = jax.tree.map(jnp.asarray, ((batches[0],), batches[1]))
        apply = _jitted(_PRODUCTS[self._problem])

        def joined(tree: Any) -> NDArray:
            return np.concatenate([np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)], axis=1)

        def products(W: NDArray) -> tuple[NDArray, NDArray]:
            padded = np.pad(W, ((0, -W.shape[0] % template_rows), (0, 0))).astype(np.float32)
            parts = np.split(padded, np.cumsum(widths)[:-1], axis=1)
            AW, BW = apply(jax.tree.unflatten(jax.tree.structure(template), parts), full)
            return sign * joined(AW)[: len(W)], joined(BW)[: len(W)]

        V = joined(template)
        template_rows, k = V.shape[0], int(self.n_components)
        judge = partial(quality, k=k, noise=_NOISE, size=1.0, zero_is_null=False)
        block, self.n_passes_ = locally_optimal(
            products, starting_block(V, products), judge, tol=float(self.tol), max_passes=500
        )
        found = judge(block)
        missing = template_rows - block.values.size
        V = np.pad(block.V / np.linalg.norm(block.V, axis=1, keepdims=True), ((0, missing), (0, 0)))
        parts = [jnp.asarray(part, jnp.float32) for part in np.split(V, np.cumsum(widths)[:-1], axis=1)]
        values = np.pad(block.values, (0, missing))
        weights = np.pad(1 / np.square(np.linalg.norm(block.V, axis=1)), (0, missing), constant_values=1.0)
        averages = self._state.aux._replace(
            numerator=jnp.asarray(values * weights, jnp.float32),
            denominator=jnp.asarray(weights, jnp.float32),
        )
        V_tree = jax.tree.unflatten(jax.tree.structure(template), parts)
        self._state = replace(self._state, V=V_tree, aux=averages)
        self.angle_bounds_, self.residuals_ = found.angles, found.residuals
        warn_of_angles(
            "Components", found, float(self.tol), "their values may be too close to tell apart", level=4
        )

    def _partial_fit(self, views: tuple[NDArray, ...]) -> Self:
        count = self.independent_batches or self._independent
        if not self._begun():
            self._check_settings()
            self._forget()
        assert self.batch_size is not None  # else scikit-learn hides the method
        self._move_mean(views)
        held = self.__dict__.pop("_held", None)
        if held is not None:
            views = tuple(np.concatenate(pair) for pair in zip(held, views, strict=True))
        rows = self.batch_size * count
        # fewer rows than a step takes wait for more; the first step starts with what there is
        enough = rows if hasattr(self, "_state") else min(rows, _FEWEST)
        for start in range(0, views[0].shape[0], rows):
            part = tuple(view[start : start + rows] for view in views)
            if part[0].shape[0] < enough:
                self._held = part
                break
            if not hasattr(self, "_frames"):
                self._set_frames(views, whiten=False)
            self._absorb(part)
            enough = rows
        return self

    def _begun(self) -> bool:
        return bool(self.__dict__.get("_means"))

    def _forget(self) -> None:
        for name in ("_state", "_frames", "_held"):
            self.__dict__.pop(name, None)
        self.n_iter_, self.n_samples_seen_ = 0, 0
        self._means = ()

    def _draw_seed(self) -> int:
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _move_mean(self, views: tuple[NDArray, ...]) -> None:
        for view in views:
            check_finite(view, self.n_iter_)
        n = views[0].shape[0]
        self.n_samples_seen_ += n
        held = self._means or tuple(np.zeros(view.shape[1]) for view in views)
        share = n / self.n_samples_seen_
        self._means = tuple(
            mean + share * (view.mean(axis=0, dtype=np.float64) - mean)
            for mean, view in zip(held, views, strict=True)
        )

    def _set_frames(self, views: tuple[NDArray, ...], *, whiten: bool) -> None:
        """Choose coordinates in which the problem has no units: whitened, or columns of unit variance.

        The second view of partial least squares is only divided by one number, of which its values are a
        multiple: the problem itself compares its columns.
        """
        frames, self._units = [], tuple(1.0 for _ in views)
        for index, (view, mean) in enumerate(zip(views, self._means, strict=True)):
            centred = view - mean
            if self._problem == "pls" and index == 1:
                size = float(np.sqrt(np.square(centred).mean())) or 1.0
                self._units = (1.0, size)
                frames.append(np.full(view.shape[1], 1 / size))
            else:
                frames.append(_frame(centred, float(self.epsilon), whiten=whiten))
        self._frames = tuple(frames)

    def _ridge(self) -> Any:
        """Return epsilon F F' for every frame F, in the structure of the vectors."""
        if not self.epsilon:
            return None
        # the unit of a view of partial least squares enters B as the identity does
        ridge = tuple(
            np.asarray(self.epsilon * ((F @ F.T) if F.ndim == 2 else np.square(F * unit)), np.float32)
            for F, unit in zip(self._frames, self._units, strict=True)
        )
        return ridge if self._two_views else ridge[0]

    def _samples(self, views: tuple[NDArray, ...]) -> Any:
        samples = tuple(
            _into(frame, view - mean).astype(np.float32)
            for frame, view, mean in zip(self._frames, views, self._means, strict=True)
        )
        return samples if self._two_views else samples[0]

    def _start(self, views: tuple[NDArray, ...]) -> None:
        smallest = min(view.shape[1] for view in views)
        if self.n_components > smallest:
            what = "the smaller view has" if self._two_views else "the data have"
            raise ValueError(
                f"n_components={self.n_components} but {what} n_features={smallest}; "
                f"ask for at most {smallest}."
            )
        dims = tuple(frame.shape[0] for frame in self._frames)
        # a few more than asked for show how far the next value is
        guards = max(4, int(self.n_components) // 2) if self.refine else 0
        players = min(int(self.n_components) + guards, max(sum(dims), 1))
        key = jax.random.key(self._draw_seed())
        self._state = pencil_init(
            key, players, dims if self._two_views else dims[0], self._config(self.n_epochs)
        )

    def _absorb(self, views: tuple[NDArray, ...]) -> None:
        if not hasattr(self, "_state"):
            self._start(views)
        count = self.independent_batches or self._independent
        if views[0].shape[0] < count:
            return  # a tail too short to be split into independent batches
        assert self.batch_size is not None
        batches = tuple(
            self._samples(
                tuple(np.resize(view[part::count], (self.batch_size, view.shape[1])) for view in views)
            )
            for part in range(count)
        )
        state, metrics = pencil_step(self._state, (batches, self._ridge()), self._config(None))
        self._keep(state, bool(metrics["finite"]), self.n_iter_)
        self.n_iter_ += 1

    def _keep(self, state: State, finite: bool, index: int) -> None:
        if not finite:
            raise ValueError(
                f"The update on batch {index} is not finite although the data are; lower learning_rate. "
                "The state before it was kept."
            )
        self._state = state

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_state")

    def _vectors(self) -> list[NDArray]:
        """Return the directions of every view in the coordinates of the data, on rows."""
        k = int(self.n_components)
        found = []
        leaves = jax.tree.leaves(self._state.V)
        for leaf, frame, unit in zip(leaves, self._frames, self._units, strict=True):
            rows = unit * _out_of(frame, np.asarray(leaf, np.float64)[:k])
            found.append(np.pad(rows, ((0, k - rows.shape[0]), (0, 0))))
        return found

    @property
    def eigenvalues_(self) -> Float[np.ndarray, " k"]:
        """Values v'A v / v'B v, of the data that `fit` refined on or running averages of the stream."""
        averages, k = self._state.aux, int(self.n_components)
        floor = np.finfo(np.float32).tiny
        denominator = np.maximum(np.asarray(averages.denominator)[:k], floor)
        values = np.asarray(averages.numerator)[:k] / denominator * self._units[-1]
        return np.asarray(np.pad(values, (0, k - values.size)))

    @property
    def unresolved_(self) -> NDArray[np.int64]:
        """Players that found nothing of their own: no positive value, or the copy of a parent."""
        rows = [
            np.asarray(leaf, np.float64)[: int(self.n_components)] for leaf in jax.tree.leaves(self._state.V)
        ]
        overlap = np.sum([row @ row.T for row in rows], axis=0) + 0.0
        missing = np.arange(overlap.shape[0], int(self.n_components))
        found = unresolved_players(self.eigenvalues_[: overlap.shape[0]], overlap)
        return np.union1d(found, missing)

    def _project(self, rows: NDArray, view: int, components: NDArray) -> NDArray:
        return np.asarray((rows - self._means[view]) @ components.T, dtype=np.float32)

    @property
    def _n_features_out(self) -> int:
        return int(self.n_components)


class _TwoViews(ClassNamePrefixFeaturesOutMixin, _PencilEstimator):
    """Two views of the same samples; X and y may each have several columns."""

    _two_views = True
    _independent = 2

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Learn pairs of directions from samples on the rows of X (n, dx) and y (n, dy)."""
        return self._fit(self._validated(X, y, reset=True))

    @available_if(_has_batch_size)  # type: ignore[untyped-decorator]  # scikit-learn has no types
    def partial_fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Continue with more rows, `independent_batches * batch_size` per step."""
        return self._partial_fit(self._validated(X, y, reset=not self._begun(), fewest=1))

    def _validated(
        self, X: ArrayLike, y: ArrayLike, *, reset: bool, fewest: int = 2
    ) -> tuple[NDArray, NDArray]:
        rows, targets = validate_data(
            self,
            X,
            y,
            reset=reset,
            multi_output=True,
            y_numeric=True,
            ensure_min_samples=fewest,
            dtype="numeric",
        )
        targets = targets.reshape(len(targets), -1)
        if not reset and targets.shape[1] != self._means[1].size:
            raise ValueError(f"y has {targets.shape[1]} columns; fitted with {self._means[1].size}.")
        return rows, targets

    def _oriented(self) -> tuple[NDArray, NDArray]:
        x, y = self._vectors()
        joint = np.concatenate([x, y], axis=1)
        signs = np.sign(np.sum(joint * orient(joint), axis=1, keepdims=True))
        tiny = np.finfo(np.float32).tiny
        lengths = [np.maximum(np.linalg.norm(view, axis=1, keepdims=True), tiny) for view in (x, y)]
        return (signs * x / lengths[0]).astype(np.float32), (signs * y / lengths[1]).astype(np.float32)

    @property
    def components_x_(self) -> Float[np.ndarray, "k dx"]:
        """Unit directions of the first view; signs agree with those of the second."""
        return self._oriented()[0]

    @property
    def components_y_(self) -> Float[np.ndarray, "k dy"]:
        """Unit directions of the second view."""
        return self._oriented()[1]

    @property
    def mean_(self) -> tuple[NDArray, ...]:
        """Means of both views."""
        return self._means

    def transform(self, X: ArrayLike, y: ArrayLike | None = None) -> Any:
        """Return the scores of X, and those of y as a second array if it is given."""
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype="numeric")
        scores = self._project(rows, 0, self.components_x_)
        if y is None:
            return scores
        return scores, self._project(self._targets(y, len(rows)), 1, self.components_y_)

    def _targets(self, y: ArrayLike, n: int) -> NDArray:
        targets = check_array(y, ensure_2d=False, input_name="y")
        targets = targets.reshape(len(targets), -1)
        width = self.components_y_.shape[1]
        if targets.shape != (n, width):
            raise ValueError(f"y has shape {targets.shape}; expected {(n, width)}, a row for each row of X.")
        return np.asarray(targets)

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Return the mean correlation of the pairs of scores of X and y, 1 at most."""
        x, targets = self.transform(X, y)
        centred = [view - view.mean(axis=0) for view in (x.astype(np.float64), targets.astype(np.float64))]
        norms = np.prod([np.linalg.norm(view, axis=0) for view in centred], axis=0)
        products = np.sum(centred[0] * centred[1], axis=0)
        return float(np.mean(np.where(norms > 0, products / np.where(norms > 0, norms, 1), 0)))

    def fit_transform(self, X: ArrayLike, y: ArrayLike) -> NDArray:
        """Fit, then return the scores of X."""
        return np.asarray(self.fit(X, y).transform(X))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


class EigenGameCCA(_TwoViews):
    """Canonical correlation analysis from minibatches.

    Args:
        n_components: Number of pairs of directions, at most the width of the smaller view.
        batch_size: Rows of each independent batch; None uses all rows in every step.
        n_epochs: Passes of the game over the data; with batch_size=None the number of its steps.
        learning_rate: Of Adam; None takes 0.1 for full batches (decaying over the second half) and
            3e-3 for minibatches.
        independent_batches: Batches per step; None takes 2, which makes the direction unbiased; 1 is
            the biased variant.
        aux_rate: Rate of the running averages of the parents' products.
        epsilon: Multiple of the identity added to B.
        maximize: False looks for the most negative values.
        refine: Let `fit` play in whitened coordinates (of views of at most 2048 columns; wider ones are
            scaled column by column), and then improve all vectors by exact products until they are within
            `tol`; False is the plain game.
        tol: Largest estimated angle in radians that counts as converged; what is not is said in a
            ConvergenceWarning.
        random_state: Seed of the initial vectors and the order of the rows.

    Attributes:
        components_x_: Unit directions of the first view on rows, signs consistent with `components_y_`.
        components_y_: Unit directions of the second view.
        eigenvalues_: Correlations of the pairs.
        angle_bounds_: Estimated bound of the angle of each vector, in radians; after `fit` with `refine`.
        mean_: Means of both views.
        unresolved_: Players whose value is not positive.

    Source: Gemp et al. 2022 (arXiv 2206.04993).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> X, y = rng.standard_normal((2, 300, 3))
        >>> y[:, 0] = X[:, 2] + 0.1 * y[:, 0]
        >>> model = EigenGameCCA(n_components=1, random_state=0).fit(X, y)
        >>> int(np.abs(model.components_x_).argmax()), int(np.abs(model.components_y_).argmax())
        (2, 0)
    """

    _problem = "cca"


class EigenGamePLS(_TwoViews):
    """Partial least squares from minibatches: the pencil of CCA with B = diag(C_xx, I).

    Arguments and attributes are those of `EigenGameCCA`; `eigenvalues_` are the values of the pencil.

    Source: Gemp et al. 2022 (arXiv 2206.04993).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> X, y = rng.standard_normal((2, 300, 3))
        >>> y[:, 0] = 2 * X[:, 2] + 0.1 * y[:, 0]
        >>> int(np.abs(EigenGamePLS(random_state=0).fit(X, y).components_x_).argmax())
        2
    """

    _problem = "pls"


class EigenGameICA(ClassNamePrefixFeaturesOutMixin, _PencilEstimator):
    """Independent components with non-zero kurtosis, from minibatches.

    The pencil tells sources apart by their kurtosis alone: those of equal kurtosis come out mixed, and `fit`
    warns where two values differ by less than their sampling error. Finds sources whose excess kurtosis is
    positive (`maximize=True`) or negative (False), in the order of its size; a mixture of both kinds needs
    two fits. Arguments as `EigenGameCCA`, with 3 independent batches by default.

    Attributes:
        components_: Unit unmixing directions on rows.
        eigenvalues_: Size of the excess kurtosis of each source (after `fit` with `refine`, in whitened
            coordinates; of the stream otherwise, times the squared norm of the source's mixing column).
        mean_: Mean of the samples.
        unresolved_: Players whose value is not positive: no further source of this kind was found.

    Source: Gemp et al. 2022 (arXiv 2206.04993).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> sources = np.c_[np.sign(rng.standard_normal(2000)), rng.standard_normal(2000)]
        >>> X = sources @ np.array([[1.0, 2.0], [1.0, -1.0]])
        >>> found = EigenGameICA(1, maximize=False, random_state=0).fit_transform(X)
        >>> bool(abs(np.corrcoef(found[:, 0], sources[:, 0])[0, 1]) > 0.99)
        True
    """

    _problem = "ica"
    _independent = 3

    def fit(self, X: ArrayLike, y: None = None) -> Self:
        """Learn unmixing directions from samples on the rows of X."""
        self._fit((self._validated(X, reset=True),))
        if self.refine:
            self._warn_of_equal_kurtosis(X)
        return self

    def _warn_of_equal_kurtosis(self, X: ArrayLike) -> None:
        """Warn of neighbours closer than four times their sampling error, which ten blocks give."""
        blocks = np.array_split(np.asarray(self.transform(X), np.float64), 10)
        if len(blocks[-1]) < 20 or self.n_components < 2:
            return
        kurtosis = np.array([np.mean(b**4, axis=0) / np.mean(b**2, axis=0) ** 2 for b in blocks])
        errors = kurtosis.std(axis=0, ddof=1) / np.sqrt(len(blocks))
        gaps = np.abs(np.diff(self.eigenvalues_))
        mixed = np.flatnonzero(gaps < 4 * np.hypot(errors[1:], errors[:-1]))
        if mixed.size:
            pairs = ", ".join(f"{i} and {i + 1}" for i in mixed)
            warnings.warn(
                f"Components {pairs} differ in kurtosis by less than its sampling error and may be mixtures "
                "of the same sources; take more samples, or another method (sklearn.decomposition.FastICA).",
                UserWarning,
                stacklevel=3,
            )

    @available_if(_has_batch_size)  # type: ignore[untyped-decorator]  # scikit-learn has no types
    def partial_fit(self, X: ArrayLike, y: None = None) -> Self:
        """Continue with more rows, `independent_batches * batch_size` per step."""
        return self._partial_fit((self._validated(X, reset=not self._begun(), fewest=1),))

    def _validated(self, X: ArrayLike, *, reset: bool, fewest: int = 2) -> NDArray:
        return np.asarray(validate_data(self, X, reset=reset, ensure_min_samples=fewest, dtype="numeric"))

    @property
    def components_(self) -> Float[np.ndarray, "k d"]:
        """Unit unmixing directions on rows."""
        return _unit_rows(orient(self._vectors()[0])).astype(np.float32)

    @property
    def mean_(self) -> Float[np.ndarray, " d"]:
        """Mean of the samples."""
        return self._means[0]

    def transform(self, X: ArrayLike) -> Float[np.ndarray, "n k"]:
        """Return the sources, (X - mean) V', up to scale and sign."""
        check_is_fitted(self)
        return self._project(validate_data(self, X, reset=False, dtype="numeric"), 0, self.components_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags
