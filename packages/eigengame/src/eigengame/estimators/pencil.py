"""What CCA, PLS and ICA share: gamma-EigenGame on minibatches, on the scikit-learn contract."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from numbers import Real
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval

from eigengame.core.generalized import (
    PencilConfig,
    pencil_init,
    pencil_step,
    repeat_pencil_step,
    unresolved_players,
)
from eigengame.core.learning_rate import decaying_adam
from eigengame.core.ritz import Block, locally_optimal, quality, starting_block
from eigengame.core.solver import State
from eigengame.estimators.frames import frame_of, into, mean_of, out_of
from eigengame.estimators.settings import (
    COUNT,
    DTYPE,
    POSITIVE,
    check_precision,
    check_unchanged,
)
from eigengame.estimators.streams import check_finite
from eigengame.estimators.warn import warn_of_angles, warn_user
from eigengame.pencils import cca_products, ica_products, pls_products

__all__ = ["PencilEstimator", "has_batch_size"]

_FULL_BATCH_RATE, _MINIBATCH_RATE = 0.1, 3e-3  # Adam; a full batch has no noise to average out
_NOISE = 1e3 * float(np.finfo(np.float64).eps)  # relative accuracy of products in double precision
_FEWEST = 8  # rows from which the units of the columns can be guessed
_FIXED = (
    "n_components",
    "batch_size",
    "learning_rate",
    "independent_batches",
    "epsilon",
    "maximize",
    "dtype",
)


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


@lru_cache(maxsize=8)
def _jitted(products: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[[Any, Any], tuple[Any, Any]]:
    compiled: Callable[[Any, Any], tuple[Any, Any]] = jax.jit(products)
    return compiled


def has_batch_size(estimator: Any) -> bool:
    """Tell scikit-learn whether partial_fit exists: with batch_size=None every step uses all data."""
    if estimator.batch_size is None:
        raise AttributeError("partial_fit needs batch_size; with batch_size=None every step uses all data.")
    return True


class PencilEstimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """What CCA, PLS and ICA share: settings, centring, splitting into independent batches, steps."""

    _problem: ClassVar[str]
    _independent: ClassVar[int]
    _two_views: ClassVar[bool] = False

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [COUNT],
        "batch_size": [COUNT, None],
        "n_epochs": [COUNT],
        "learning_rate": [POSITIVE, None],
        "independent_batches": [COUNT, None],
        "epsilon": [Interval(Real, 0, None, closed="left")],
        "maximize": ["boolean"],
        "refine": ["boolean"],
        "tol": [POSITIVE],
        "dtype": [DTYPE],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        batch_size: int | None = None,
        n_epochs: int = 200,
        learning_rate: float | None = None,
        independent_batches: int | None = None,
        epsilon: float = 0.0,
        maximize: bool = True,
        refine: bool = True,
        tol: float = 0.02,
        dtype: str = "float32",
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.learning_rate = learning_rate
        self.independent_batches = independent_batches
        self.epsilon = epsilon
        self.maximize = maximize
        self.refine = refine
        self.tol = tol
        self.dtype = dtype
        self.random_state = random_state

    _state: State
    _means: tuple[NDArray, ...]
    _frames: tuple[NDArray, ...]
    n_samples_seen_: int
    n_iter_: int
    _noise: float

    def _config(self, num_steps: int | None) -> PencilConfig:
        full = self.batch_size is None
        rate = self.learning_rate or (_FULL_BATCH_RATE if full else _MINIBATCH_RATE)
        return PencilConfig(
            optimizer=decaying_adam(float(rate), num_steps if full else None),
            products=_PRODUCTS[self._problem],
            exact=full,
            maximize=bool(self.maximize),
        )

    def _fit(self, views: tuple[NDArray, ...]) -> Self:
        self._check_settings()
        self._forget()
        self._move_mean(views)
        self._set_frames(views, whiten=self.refine)
        if not all(frame.any() for frame in self._frames):
            raise ValueError("A view has no variance: all its columns are constant. Pass data that vary.")
        if self.batch_size is None:
            self._start(views)
            full = ((self._samples(views, self.dtype),), self._ridge(self.dtype))
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
        with jax.enable_x64(True):
            self._judge(views)
        return self

    def _judge(self, views: tuple[NDArray, ...]) -> None:
        """Measure the vectors by exact products with the whole data; `refine` them until within `tol`.

        In double precision whatever the type of the game: small values next to large ones need it.
        """
        template, sign = self._state.V, 1 if self.maximize else -1
        widths = [leaf.shape[1] for leaf in jax.tree.leaves(template)]
        full = jax.tree.map(jnp.asarray, ((self._samples(views, "float64"),), self._ridge("float64")))
        apply = _jitted(_PRODUCTS[self._problem])

        def joined(tree: Any) -> NDArray:
            return np.concatenate([np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)], axis=1)

        def products(W: NDArray) -> tuple[NDArray, NDArray]:
            padded = np.pad(W, ((0, -W.shape[0] % template_rows), (0, 0)))
            parts = np.split(padded, np.cumsum(widths)[:-1], axis=1)
            AW, BW = apply(jax.tree.unflatten(jax.tree.structure(template), parts), full)
            return sign * joined(AW)[: len(W)], joined(BW)[: len(W)]

        V = joined(template)
        template_rows, k = V.shape[0], int(self.n_components)
        judge = partial(quality, k=k, noise=_NOISE, size=1.0, zero_is_null=False)
        if self.refine:
            block, self.n_passes_ = locally_optimal(
                products, starting_block(V, products), judge, tol=float(self.tol), max_passes=500
            )
            self._noise, advice = _NOISE, "their values may be too close to tell apart"
        else:
            AV, BV = products(V)
            sizes = np.sqrt(np.maximum(np.sum(V * BV, axis=1, keepdims=True), np.finfo(np.float64).tiny))
            block = Block(V / sizes, AV / sizes, BV / sizes, np.sum(V * AV, axis=1) / sizes[:, 0] ** 2)
            self.n_passes_, advice = 0, "take more epochs, or refine=True"
        found = judge(block)
        missing = template_rows - block.values.size
        V = np.pad(block.V / np.linalg.norm(block.V, axis=1, keepdims=True), ((0, missing), (0, 0)))
        parts = [jnp.asarray(part, self.dtype) for part in np.split(V, np.cumsum(widths)[:-1], axis=1)]
        values = np.pad(block.values, (0, missing))
        weights = np.pad(1 / np.square(np.linalg.norm(block.V, axis=1)), (0, missing), constant_values=1.0)
        averages = self._state.aux._replace(
            numerator=jnp.asarray(values * weights, self.dtype),
            denominator=jnp.asarray(weights, self.dtype),
        )
        V_tree = jax.tree.unflatten(jax.tree.structure(template), parts)
        self._state = replace(self._state, V=V_tree, aux=averages)
        self.angle_bounds_, self.residuals_ = found.angles, found.residuals
        warn_of_angles("Components", found, float(self.tol), advice)
        if self.refine and self.unresolved_.size:
            warn_user(
                f"Components {self.unresolved_.tolist()} are no finding: no value is left that is "
                f"{'positive' if self.maximize else 'negative'} beyond rounding error. "
                "Ask for fewer components.",
            )

    def _partial_fit(self, views: tuple[NDArray, ...]) -> Self:
        count = self.independent_batches or self._independent
        self._check_settings()
        if not self._begun():
            self._forget()
        check_unchanged(self, self._begun_with)
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
            self._set_frames(views, whiten=False)
            self._absorb(part)
            enough = rows
        return self

    def _check_settings(self) -> None:
        self._validate_params()
        check_precision(self.dtype)

    def _begun(self) -> bool:
        return bool(self.__dict__.get("_means"))

    def _forget(self) -> None:
        for name in ("_state", "_frames", "_held", "angle_bounds_", "residuals_"):
            self.__dict__.pop(name, None)
        self._begun_with = {name: getattr(self, name) for name in _FIXED}
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
            mean + share * (mean_of(view) - mean) for mean, view in zip(held, views, strict=True)
        )

    def _set_frames(self, views: tuple[NDArray, ...], *, whiten: bool) -> None:
        """Choose coordinates in which the problem has no units: whitened, or columns of unit variance.

        Columns of a stream that have not varied so far have weight zero, and get one when they do. The second
        view of partial least squares is only divided by one number, of which its values are a multiple: the
        problem itself compares its columns.
        """
        frames = list(self.__dict__.get("_frames") or [np.zeros(mean.size) for mean in self._means])
        for index, (view, mean) in enumerate(zip(views, self._means, strict=True)):
            if frames[index].ndim == 2:
                _refuse_new_columns(view - mean, mean, frames[index])
                continue
            if frames[index].all():
                continue
            if self._problem == "pls" and index == 1:
                weights = frame_of(view, mean, 0.0, whiten=False)
                units = np.where(weights > 0, 1 / np.where(weights > 0, weights, 1), 0)
                largest = units.max()
                size = float(largest * np.sqrt(np.square(units / (largest or 1)).mean()))
                fresh = np.full(view.shape[1], 1 / size if size else 0.0)
            else:
                fresh = frame_of(view, mean, float(self.epsilon), whiten=whiten)
            frames[index] = fresh if fresh.ndim == 2 else np.where(frames[index] == 0, fresh, frames[index])
        self._frames = tuple(frames)

    @property
    def _units(self) -> tuple[float, ...]:
        """Return what the values of the views are to be multiplied by."""
        if self._problem != "pls":
            return tuple(1.0 for _ in self._frames)
        weight = float(self._frames[1][0])
        return (1.0, 1 / weight if weight else 1.0)

    def _ridge(self, dtype: str) -> Any:
        """Return epsilon F F' for every frame F, in the structure of the vectors."""
        if not self.epsilon:
            return None
        # the unit of a view of partial least squares enters B as the identity does
        ridge = tuple(
            np.asarray(self.epsilon * ((F @ F.T) if F.ndim == 2 else np.square(F * unit)), dtype)
            for F, unit in zip(self._frames, self._units, strict=True)
        )
        return ridge if self._two_views else ridge[0]

    def _samples(self, views: tuple[NDArray, ...], dtype: str) -> Any:
        samples = tuple(
            into(frame, view - mean).astype(dtype)
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
        # a few more than asked for show how far the next value is; they are children and change no other
        guards = max(4, int(self.n_components) // 2)
        players = min(int(self.n_components) + guards, max(sum(dims), 1))
        key = jax.random.key(self._draw_seed())
        shape, config = dims if self._two_views else dims[0], self._config(self.n_epochs)
        self._state = pencil_init(key, players, shape, config, dtype=self.dtype)

    def _absorb(self, views: tuple[NDArray, ...]) -> None:
        if not hasattr(self, "_state"):
            self._start(views)
        count = self.independent_batches or self._independent
        if views[0].shape[0] < count:
            return  # a tail too short to be split into independent batches
        assert self.batch_size is not None
        batches = tuple(
            self._samples(
                tuple(np.resize(view[part::count], (self.batch_size, view.shape[1])) for view in views),
                self.dtype,
            )
            for part in range(count)
        )
        state, metrics = pencil_step(self._state, (batches, self._ridge(self.dtype)), self._config(None))
        self._keep(state, bool(metrics["finite"]), self.n_iter_)
        # nothing bounds the angles of a stream: what an exact pass measured is no longer true
        self.angle_bounds_, self.residuals_ = np.full((2, self._k), [[np.pi / 2], [np.nan]])
        self.n_iter_ += 1

    def _keep(self, state: State, finite: bool, index: int) -> None:
        if not finite:
            raise ValueError(
                f"The update on batch {index} is not finite although the data are; lower learning_rate. "
                "The state before it was kept."
            )
        self._state, self._noise = state, 10 * float(np.finfo(self.dtype).eps)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_state")

    @property
    def _k(self) -> int:
        """Number of components that the fit began with."""
        return int(self._begun_with["n_components"])

    def _vectors(self) -> list[NDArray]:
        """Return the directions of every view in the coordinates of the data, on rows."""
        k = self._k
        found = []
        leaves = jax.tree.leaves(self._state.V)
        for leaf, frame, unit in zip(leaves, self._frames, self._units, strict=True):
            rows = unit * out_of(frame, np.asarray(leaf, np.float64)[:k])
            found.append(np.pad(rows, ((0, k - rows.shape[0]), (0, 0))))
        return found

    @property
    def eigenvalues_(self) -> Float[np.ndarray, " k"]:
        """Values v'A v / v'B v, of the data that `fit` refined on or running averages of the stream."""
        averages, k = self._state.aux, self._k
        denominator = np.maximum(np.asarray(averages.denominator)[:k], np.finfo(np.float32).tiny)
        # the unit of a view may be beyond single precision
        values = np.asarray(averages.numerator)[:k].astype(np.float64) / denominator * self._units[-1]
        return np.asarray(np.pad(values, (0, k - values.size)))

    @property
    def unresolved_(self) -> NDArray[np.int64]:
        """Players that found nothing of their own: no positive value, or the copy of a parent."""
        rows = [np.asarray(leaf, np.float64)[: self._k] for leaf in jax.tree.leaves(self._state.V)]
        overlap = np.sum([row @ row.T for row in rows], axis=0) + 0.0
        missing = np.arange(overlap.shape[0], self._k)
        found = unresolved_players(self.eigenvalues_[: overlap.shape[0]], overlap, self._noise)
        return np.union1d(found, missing)

    def _project(self, rows: NDArray, view: int, components: NDArray) -> NDArray:
        scores = (rows - self._means[view]) @ components.T
        return np.asarray(scores, np.float32 if rows.dtype == np.float32 else np.float64)

    @property
    def _n_features_out(self) -> int:
        return self._k

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _refuse_new_columns(centred: NDArray, mean: NDArray, frame: NDArray) -> None:
    """Refuse columns that vary where the frame of an earlier fit has no coordinate for them.

    Raises:
        ValueError: Names the columns.
    """
    varies = np.abs(centred).max(axis=0) > 1e-9 * np.abs(mean)
    if (columns := np.flatnonzero(varies & ~frame.any(axis=0))).size:
        raise ValueError(
            f"Columns {columns.tolist()} did not vary in fit and vary now: the fit knows no direction "
            "along them; call fit on rows in which they vary, or begin with partial_fit."
        )
