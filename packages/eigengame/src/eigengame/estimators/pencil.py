"""CCA, PLS and ICA from minibatches, by gamma-EigenGame, on the scikit-learn contract."""

import warnings
from functools import lru_cache
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import jax
import numpy as np
import optax
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from eigengame.core.generalized import (
    PencilConfig,
    pencil_init,
    pencil_step,
    repeat_pencil_step,
    unresolved_players,
)
from eigengame.core.solver import State
from eigengame.core.trees import gram
from eigengame.estimators.streams import check_finite
from eigengame.exact import orient
from eigengame.pencils import cca_products, ica_products, pls_products

__all__ = ["EigenGameCCA", "EigenGameICA", "EigenGamePLS"]

_FULL_BATCH_RATE, _MINIBATCH_RATE = 0.1, 3e-3  # Adam; a full batch has no noise to average out
_PRODUCTS = {"cca": cca_products, "pls": pls_products, "ica": ica_products}


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
        n_epochs: int = 2000,
        learning_rate: float | None = None,
        independent_batches: int | None = None,
        aux_rate: float = 0.1,
        rho: float = 1e-10,
        epsilon: float = 0.0,
        maximize: bool = True,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.learning_rate = learning_rate
        self.independent_batches = independent_batches
        self.aux_rate = aux_rate
        self.rho = rho
        self.epsilon = epsilon
        self.maximize = maximize
        self.random_state = random_state

    def _config(self, num_steps: int | None) -> PencilConfig:
        full = self.batch_size is None
        rate = self.learning_rate or (_FULL_BATCH_RATE if full else _MINIBATCH_RATE)
        return PencilConfig(
            optimizer=adam(float(rate), num_steps if full else None),
            products=_PRODUCTS[self._problem],
            exact=full,
            aux_rate=float(self.aux_rate),
            rho=float(self.rho),
            epsilon=float(self.epsilon),
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
            if not (optional and value is None) and (not isinstance(value, Integral) or value < 1):
                raise ValueError(f"{name} is {value!r}; it must be an integer of at least 1.")
        rate: Any = self.learning_rate
        if rate is not None and not (isinstance(rate, Real) and rate > 0):  # type: ignore[operator]  # Real has no order
            raise ValueError(f"learning_rate is {rate!r}; it must be a positive number or None.")

    def _fit(self, views: tuple[NDArray, ...]) -> Self:
        self._check_settings()
        self._forget()
        self._move_mean(views)
        if self.batch_size is None:
            self._start(views)
            state, finite = repeat_pencil_step(
                self._state, (self._centred(views),), self._config(self.n_epochs), self.n_epochs
            )
            self._keep(state, bool(finite), views, 0)
            self.n_iter_ = self.n_epochs
        else:
            rows = self.batch_size * (self.independent_batches or self._independent)
            generator = np.random.default_rng(self._draw_seed())
            for _ in range(self.n_epochs):
                order = generator.permutation(views[0].shape[0])
                for start in range(0, len(order), rows):
                    self._absorb(tuple(view[order[start : start + rows]] for view in views))
        self._warn()
        return self

    def _partial_fit(self, views: tuple[NDArray, ...]) -> Self:
        if not hasattr(self, "_state"):
            self._check_settings()
            self._forget()
        assert self.batch_size is not None  # else scikit-learn hides the method
        self._move_mean(views)
        rows = self.batch_size * (self.independent_batches or self._independent)
        for start in range(0, views[0].shape[0], rows):
            self._absorb(tuple(view[start : start + rows] for view in views))
        return self

    def _forget(self) -> None:
        self.__dict__.pop("_state", None)
        self.n_iter_, self.n_samples_seen_ = 0, 0
        self._means: tuple[NDArray, ...] = ()

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

    def _centred(self, views: tuple[NDArray, ...]) -> Any:
        centred = tuple(
            (view - mean).astype(np.float32) for view, mean in zip(views, self._means, strict=True)
        )
        return centred if self._two_views else centred[0]

    def _start(self, views: tuple[NDArray, ...]) -> None:
        smallest = min(view.shape[1] for view in views)
        if self.n_components > smallest:
            what = "the smaller view has" if self._two_views else "the data have"
            raise ValueError(
                f"n_components={self.n_components} but {what} n_features={smallest}; "
                f"ask for at most {smallest}."
            )
        dims = tuple(view.shape[1] for view in views)
        key = jax.random.key(self._draw_seed())
        self._state: State = pencil_init(
            key, int(self.n_components), dims if self._two_views else dims[0], self._config(self.n_epochs)
        )

    def _absorb(self, views: tuple[NDArray, ...]) -> None:
        if not hasattr(self, "_state"):
            self._start(views)
        count = self.independent_batches or self._independent
        if views[0].shape[0] < count:
            return  # a tail too short to be split into independent batches
        assert self.batch_size is not None
        batches = tuple(
            self._centred(
                tuple(np.resize(view[part::count], (self.batch_size, view.shape[1])) for view in views)
            )
            for part in range(count)
        )
        state, metrics = pencil_step(self._state, batches, self._config(None))
        self._keep(state, bool(metrics["finite"]), views, self.n_iter_)
        self.n_iter_ += 1

    def _keep(self, state: State, finite: bool, views: tuple[NDArray, ...], index: int) -> None:
        if not finite:
            raise ValueError(
                f"The update on batch {index} is not finite although the data are; lower learning_rate or "
                "raise rho. The state before it was kept."
            )
        self._state = state

    def _warn(self) -> None:
        clipped = int(self._state.aux.clipped)
        if clipped:
            warnings.warn(
                f"v'Bv fell to rho={self.rho} or below {clipped} times: B is not positive on some players. "
                "Pass epsilon > 0, which adds epsilon I to B.",
                UserWarning,
                stacklevel=3,
            )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_state")

    @property
    def eigenvalues_(self) -> Float[np.ndarray, " k"]:
        """Running estimates of v'A v / v'B v."""
        averages = self._state.aux
        floor = np.finfo(np.float32).tiny
        denominator = np.maximum(np.asarray(averages.denominator), floor)
        return np.asarray(np.asarray(averages.numerator) / denominator)

    @property
    def unresolved_(self) -> NDArray[np.int64]:
        """Players that found nothing of their own: no positive value, or the copy of a parent."""
        overlap = np.asarray(gram(self._state.V, self._state.aux.parents.w))
        return unresolved_players(self.eigenvalues_, overlap)

    def _project(self, rows: NDArray, view: int, components: NDArray) -> NDArray:
        return np.asarray((rows - self._means[view]) @ components.T, dtype=np.float32)

    @property
    def _n_features_out(self) -> int:
        return self._state.k


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
        return self._partial_fit(self._validated(X, y, reset=not hasattr(self, "_state")))

    def _validated(self, X: ArrayLike, y: ArrayLike, *, reset: bool) -> tuple[NDArray, NDArray]:
        rows, targets = validate_data(
            self, X, y, reset=reset, multi_output=True, y_numeric=True, ensure_min_samples=2, dtype="numeric"
        )
        targets = targets.reshape(len(targets), -1)
        if not reset and targets.shape[1] != self.components_y_.shape[1]:
            raise ValueError(f"y has {targets.shape[1]} columns; fitted with {self.components_y_.shape[1]}.")
        return rows, targets

    def _oriented(self) -> tuple[NDArray, NDArray]:
        x, y = (np.asarray(view) for view in self._state.vectors)
        joint = np.concatenate([x, y], axis=1)
        turned = orient(joint)
        signs = np.sign(np.sum(joint * turned, axis=1, keepdims=True))
        tiny = np.finfo(np.float32).tiny
        lengths = [np.maximum(np.linalg.norm(view, axis=1, keepdims=True), tiny) for view in (x, y)]
        return signs * x / lengths[0], signs * y / lengths[1]

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
        targets = np.asarray(y).reshape(len(rows), -1)
        return scores, self._project(targets, 1, self.components_y_)

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
        n_epochs: Passes over the data; with batch_size=None the number of steps.
        learning_rate: Of Adam; None takes 0.1 for full batches (decaying over the second half) and
            3e-3 for minibatches.
        independent_batches: Batches per step; None takes 2, which makes the direction unbiased; 1 is
            the biased variant.
        aux_rate: Rate of the running averages of the parents' products.
        rho: Lower clip of v'B v.
        epsilon: Multiple of the identity added to B.
        maximize: False looks for the most negative values.
        random_state: Seed of the initial vectors and the order of the rows.

    Attributes:
        components_x_: Unit directions of the first view on rows, signs consistent with `components_y_`.
        components_y_: Unit directions of the second view.
        eigenvalues_: Estimated correlations.
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

    Finds sources whose excess kurtosis is positive (`maximize=True`) or negative (False), in the order
    of its size; a mixture of both kinds needs two fits. Arguments as `EigenGameCCA`, with 3 independent
    batches by default.

    Attributes:
        components_: Unit unmixing directions on rows.
        eigenvalues_: Estimated size of the excess kurtosis.
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
        return self._fit((self._validated(X, reset=True),))

    @available_if(_has_batch_size)  # type: ignore[untyped-decorator]  # scikit-learn has no types
    def partial_fit(self, X: ArrayLike, y: None = None) -> Self:
        """Continue with more rows, `independent_batches * batch_size` per step."""
        return self._partial_fit((self._validated(X, reset=not hasattr(self, "_state")),))

    def _validated(self, X: ArrayLike, *, reset: bool) -> NDArray:
        return np.asarray(validate_data(self, X, reset=reset, ensure_min_samples=2, dtype="numeric"))

    @property
    def components_(self) -> Float[np.ndarray, "k d"]:
        """Unit unmixing directions on rows."""
        return orient(np.array(self._state.vectors))

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
