"""What a fitted PCA estimator tells: components, their quality, coordinates of samples."""

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from eigengame.estimators.game import Game
from eigengame.estimators.streams import chunks, dense_rows, validated
from eigengame.exact import orient
from gdyn_common.display import Axes, Figure, axes_for

__all__ = ["TOLERANCE", "Components"]

TOLERANCE = 0.02
"""Angle in radians that `fit` aims at with `tol=None`, which never warns."""


class Components(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Game):
    """Attributes and projections that follow from the state of the game."""

    whiten: bool
    tol: float | None

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_state")

    @property
    def components_(self) -> Float[np.ndarray, "k d"]:
        """Orthonormal vectors on rows."""
        return orient(self._current()[0].V[: self.n_components_].astype(self._begun_with["dtype"]))

    @property
    def mean_(self) -> Float[np.ndarray, " d"]:
        """Mean of the samples seen (zero without centring)."""
        return np.asarray(self._frame.shift + self._frame.unit * np.asarray(self._state.mean, np.float64))

    def _samples(self) -> int:
        return int(getattr(self, "_distinct", self.n_samples_seen_))

    def _unbiased(self) -> float:
        n = self._samples()
        return n / (n - 1) if self._begun_with["center"] == "running" and n > 1 else 1.0

    def _values(self) -> NDArray:
        """Return the variances along the components in the frame, and last the total."""
        values = np.maximum(self._current()[0].values[: self.n_components_], 0)
        return np.append(values, float(self._state.aux.recent)) * self._unbiased()

    @property
    def explained_variance_(self) -> Float[np.ndarray, " k"]:
        """Variance along each component."""
        return np.asarray(self._values()[:-1] * self._frame.unit**2)

    @property
    def explained_variance_ratio_(self) -> Float[np.ndarray, " k"]:
        """Share of the total variance along each component."""
        *values, total = self._values()
        return np.asarray(values) / total if total > 0 else np.zeros(len(values))

    @property
    def singular_values_(self) -> Float[np.ndarray, " k"]:
        """Singular values of the centred data."""
        n = self._samples()
        rows = n - 1 if self._begun_with["center"] == "running" else n
        return np.asarray(np.sqrt(self._values()[:-1] * rows) * self._frame.unit)

    @property
    def noise_variance_(self) -> float:
        """Mean variance along the directions left out, of all d (scikit-learn counts min(n, d))."""
        left = self.n_features_in_ - self.n_components_
        *values, total = self._values() * self._frame.unit**2
        return max(float(total - np.sum(values)), 0.0) / left if left else 0.0

    @property
    def residuals_(self) -> Float[np.ndarray, " k"]:
        """Length of C v - lambda v for every component."""
        return self._current()[1].residuals * self._unbiased() * self._frame.unit**2

    @property
    def angle_bounds_(self) -> Float[np.ndarray, " k"]:
        """Estimated bound of the angle between each component and the true one, in radians."""
        return self._current()[1].angles

    @property
    def variance_errors_(self) -> Float[np.ndarray, " k"]:
        """Estimated bound of the error of each explained variance."""
        return self._current()[1].value_errors * self._unbiased() * self._frame.unit**2

    @property
    def converged_(self) -> bool:
        """Whether every component with variance is within `tol`."""
        found = self._current()[1]
        return not found.tied.size and not found.pending(self.tol or TOLERANCE).size

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

    def plot(self, axes: Axes | None = None) -> Figure:
        """Draw the variance of each component with the bound of its error, and return the figure.

        Components whose angle to the true one may exceed `tol` are hollow.

        Args:
            axes: Axes of matplotlib to draw into; None makes a new figure.
        """
        check_is_fitted(self)
        axes = axes_for(axes)
        index = np.arange(1, self.n_components_ + 1)
        sure = self.angle_bounds_ <= (self.tol or np.inf)
        axes.errorbar(index, self.explained_variance_, self.variance_errors_, fmt="none", color="0.6")
        for chosen, fill, label in ((sure, "full", "converged"), (~sure, "none", "not converged")):
            if chosen.any():
                variance = self.explained_variance_[chosen]
                axes.plot(index[chosen], variance, "o", color="C0", fillstyle=fill, label=label)
        axes.set(title="Variance along each component", xlabel="component", ylabel="variance")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
        return axes.figure

    def _scale(self) -> NDArray:
        """Return the factor of each score: 1, or with `whiten` 1 / deviation (0 where there is none)."""
        scale = np.ones(self.n_components_)
        if self.whiten:
            deviation = np.sqrt(self._values()[:-1]) * self._frame.unit
            deviation[self.unresolved_] = np.inf
            scale = 1 / np.where(deviation > 0, deviation, np.inf)
        return scale

    def transform(self, X: ArrayLike) -> Float[np.ndarray, "n k"]:
        """Return (X - mean) V', a chunk of rows at a time (sparse rows are not densified).

        Products are taken in double precision: in single precision a large mean would cancel digits, and the
        coordinates of a row would depend on its position in X by a unit in the last place.
        """
        check_is_fitted(self)
        rows = validated(self, X, reset=False, accept_sparse="csr")
        axes = self.components_.T.astype(np.float64) * self._scale()
        moved = self._frame.unit * np.asarray(self._state.mean, np.float64)
        wide = (rows[part].astype(np.float64, copy=False) for part in chunks(rows, 1024))
        if hasattr(rows, "toarray"):
            offset = self.mean_ @ axes
            scores = np.concatenate([part @ axes - offset for part in wide])
        else:  # next to a large shift the mean itself has lost digits
            scores = np.concatenate([(part - self._frame.shift - moved) @ axes for part in wide])
        # scores of data of an extreme size are beyond the range of single precision
        held = self.whiten or 1e-20 < self._frame.unit < 1e30
        return scores.astype(self._begun_with["dtype"], copy=False) if held else scores

    def inverse_transform(self, X: ArrayLike) -> Float[np.ndarray, "n d"]:
        """Return Z V + mean from coordinates Z in double precision, the scale of `whiten` undone."""
        check_is_fitted(self)
        scores = dense_rows(X).astype(np.float64)
        if scores.ndim != 2 or scores.shape[1] != self.n_components_:
            raise ValueError(f"Scores have shape {scores.shape}; expected (n, {self.n_components_}).")
        scale = self._scale()
        back = scores * np.where(scale > 0, 1 / np.where(scale > 0, scale, 1), 0)
        return np.asarray(back @ self.components_ + self.mean_)

    def score(self, X: ArrayLike, y: None = None) -> float:
        """Return the share of the variance of X that the components capture, 1 for all of it.

        Measured as 1 - squared reconstruction error / squared deviation from the mean, with the
        orthogonal projection on the span of the components.
        """
        check_is_fitted(self)
        rows = validated(self, X, reset=False, accept_sparse="csr")
        basis, mean = np.linalg.qr(self.components_.T)[0], np.asarray(self._state.mean, np.float64)
        captured = total = 0.0
        for part in chunks(rows, 8192):
            centred = self._frame.enter(dense_rows(rows, part), np.float64) - mean
            captured += float(np.sum(np.square(centred @ basis)))
            total += float(np.sum(np.square(centred)))
        return captured / total if total > 0 else 1.0

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags
