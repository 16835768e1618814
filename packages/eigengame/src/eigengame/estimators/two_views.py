"""CCA and PLS from minibatches, by gamma-EigenGame, on the scikit-learn contract."""

from typing import Any, Self

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from eigengame.estimators.frames import mean_of, unit_rows
from eigengame.estimators.pencil import PencilEstimator, has_batch_size
from eigengame.estimators.settings import unchanged_on_error
from eigengame.estimators.streams import real_numbers, validated
from eigengame.exact import orient

__all__ = ["EigenGameCCA", "EigenGamePLS"]


class _TwoViews(PencilEstimator):
    """Two views of the same samples; X and y may each have several columns."""

    _two_views = True
    _independent = 2

    @unchanged_on_error
    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Learn pairs of directions from samples on the rows of X (n, dx) and y (n, dy)."""
        return self._fit(self._validated(X, y, reset=True))

    @available_if(has_batch_size)  # type: ignore[untyped-decorator]  # scikit-learn has no types
    @unchanged_on_error
    def partial_fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Continue with more rows, `independent_batches * batch_size` per step."""
        return self._partial_fit(self._validated(X, y, reset=not self._begun(), fewest=1))

    def _validated(
        self, X: ArrayLike, y: ArrayLike, *, reset: bool, fewest: int = 2
    ) -> tuple[NDArray, NDArray]:
        rows, targets = validate_data(
            self,
            real_numbers(X),
            _dense(y),
            reset=reset,
            multi_output=True,
            y_numeric=True,
            ensure_min_samples=fewest,
            dtype="numeric",
        )
        targets = real_numbers(targets, "y").reshape(len(targets), -1)
        if not reset and targets.shape[1] != self._means[1].size:
            raise ValueError(f"y has {targets.shape[1]} columns; fitted with {self._means[1].size}.")
        self._check_columns(y, reset=reset)
        return real_numbers(rows), targets

    def _check_columns(self, y: Any, *, reset: bool) -> None:
        """Hold the columns of a second view that is a data frame to those of the first call."""
        names = [str(name) for name in getattr(y, "columns", [])]
        if reset:
            self._y_columns = names
        elif names and self._y_columns and names != self._y_columns:
            raise ValueError(f"y has columns {names}; fitted with {self._y_columns}, in this order.")

    def _oriented(self) -> tuple[NDArray, NDArray]:
        """Return the directions of both views in double precision."""
        x, y = self._vectors()
        joint = unit_rows(np.concatenate([x, y], axis=1))
        signs = np.sign(np.sum(joint * orient(joint), axis=1, keepdims=True))
        return signs * unit_rows(x), signs * unit_rows(y)

    @property
    def components_x_(self) -> Float[np.ndarray, "k dx"]:
        """Unit directions of the first view; signs agree with those of the second."""
        return self._oriented()[0].astype(self._begun_with["dtype"])

    @property
    def components_y_(self) -> Float[np.ndarray, "k dy"]:
        """Unit directions of the second view."""
        return self._oriented()[1].astype(self._begun_with["dtype"])

    @property
    def mean_(self) -> tuple[NDArray, ...]:
        """Means of both views."""
        return self._means

    def transform(self, X: ArrayLike, y: ArrayLike | None = None) -> Any:
        """Return the scores of X, and those of y as a second array if it is given."""
        check_is_fitted(self)
        rows = validated(self, X, reset=False)
        axes = self._oriented()
        scores = self._project(rows, 0, axes[0])
        if y is None:
            return scores
        return scores, self._project(self._targets(y, len(rows)), 1, axes[1])

    def _targets(self, y: ArrayLike, n: int) -> NDArray:
        self._check_columns(y, reset=False)
        targets = real_numbers(check_array(_dense(y), ensure_2d=False, input_name="y"), "y")
        targets = targets.reshape(len(targets), -1)
        width = self._means[1].size
        if targets.shape != (n, width):
            raise ValueError(f"y has shape {targets.shape}; expected {(n, width)}, a row for each row of X.")
        return np.asarray(targets)

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Return the mean correlation of the pairs of scores of X and y, 1 at most."""
        x, targets = self.transform(X, y)
        centred = [unit_rows((scores - mean_of(scores)).T) for scores in (x, targets)]
        return float(np.mean(np.sum(centred[0] * centred[1], axis=1)))

    def fit_transform(self, X: ArrayLike, y: ArrayLike) -> NDArray:
        """Fit, then return the scores of X."""
        return np.asarray(self.fit(X, y).transform(X))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
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
        epsilon: Multiple of the identity added to B.
        maximize: False looks for the most negative values.
        refine: Let `fit` play in whitened coordinates (of views of at most 2048 columns; wider ones are
            scaled column by column), and then improve all vectors by exact products until they are within
            `tol`; False is the plain game, of which they only measure how near it came.
        tol: Largest estimated angle in radians that counts as converged; what is not is said in a
            ConvergenceWarning.
        dtype: Of the game and the vectors, `"float32"` or `"float64"` (needs `jax.enable_x64`); the exact
            products are taken in double precision.
        random_state: Seed of the initial vectors and the order of the rows.

    Attributes:
        components_x_: Unit directions of the first view on rows, signs consistent with `components_y_`.
        components_y_: Unit directions of the second view.
        eigenvalues_: Correlations of the pairs.
        angle_bounds_: Estimated bound of the angle of each vector, in radians; pi / 2, nothing known, after
            `partial_fit`.
        mean_: Means of both views.
        unresolved_: Players whose value is not positive; `fit` warns of them.

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


def _dense(y: Any) -> Any:
    if hasattr(y, "toarray"):
        raise TypeError("y is sparse, but CCA and PLS take dense views: pass y.toarray().")
    return real_numbers(y, "y")
