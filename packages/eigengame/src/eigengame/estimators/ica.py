"""ICA from minibatches, by gamma-EigenGame, on the scikit-learn contract."""

from typing import Self

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from eigengame.estimators.frames import unit_rows
from eigengame.estimators.pencil import PencilEstimator, has_batch_size
from eigengame.estimators.settings import unchanged_on_error
from eigengame.estimators.streams import validated
from eigengame.estimators.warn import warn_user
from eigengame.exact import orient

__all__ = ["EigenGameICA"]

# above Wigner's edge times this are about one in 20 Gaussian samples of 100 to 5000 rows, by simulation
_GAUSSIAN = {True: 1.3, False: 1.1}


class EigenGameICA(PencilEstimator):
    """Independent components with non-zero kurtosis, from minibatches.

    The pencil tells sources apart by their kurtosis alone: those of equal kurtosis come out mixed, and `fit`
    warns where two values differ by less than their sampling error, or where Gaussian data reach a value as
    well. Finds sources whose excess kurtosis is positive (`maximize=True`) or negative (False), in the order
    of its size; a mixture of both kinds needs two fits. Arguments as `EigenGameCCA`, with 3 independent
    batches by default.

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

    @unchanged_on_error
    def fit(self, X: ArrayLike, y: None = None) -> Self:
        """Learn unmixing directions from samples on the rows of X."""
        self._fit((self._validated(X, reset=True),))
        if self.refine and not self._warned_of_equal_kurtosis(X):
            self._warn_of_gaussian()
        return self

    def _warn_of_gaussian(self) -> None:
        """Warn of values that rows without any source reach: of Gaussian ones the best directions count.

        The matrix of n whitened Gaussian rows of d columns is a symmetric one of independent entries of
        variance 2 (d + 4) / n, whose eigenvalues end at twice its square root times that of d (Wigner 1955).
        """
        if self._frames[0].ndim < 2 or self.epsilon:
            return
        n, d = self.n_samples_seen_, len(self._frames[0])
        size = _GAUSSIAN[bool(self.maximize)] * np.sqrt(8 * d * (d + 4) / n)
        weak = np.setdiff1d(np.flatnonzero(self.eigenvalues_ < size), self.unresolved_)
        if weak.size:
            warn_user(
                f"Components {weak.tolist()} have an excess kurtosis of less than {size:.2g}, which {n} "
                "Gaussian rows reach as well: they may be no sources. Take more samples, or ask for fewer "
                "components."
            )

    def _warned_of_equal_kurtosis(self, X: ArrayLike) -> bool:
        """Warn of neighbours closer than four times their sampling error, which blocks of the rows give."""
        if self.n_components < 2:
            return False
        scores = unit_rows(self.transform(X).T).T  # fourth powers neither overflow nor vanish
        blocks = np.array_split(scores, np.clip(len(scores) // 20, 2, 10))
        kurtosis = np.array(
            [np.mean(b**4, axis=0) / np.maximum(np.mean(b**2, axis=0) ** 2, 1e-300) for b in blocks]
        )
        errors = kurtosis.std(axis=0, ddof=1) / np.sqrt(len(blocks))
        gaps = np.abs(np.diff(self.eigenvalues_))
        mixed = np.flatnonzero(gaps < 4 * np.hypot(errors[1:], errors[:-1]))
        if mixed.size:
            pairs = ", ".join(f"{i} and {i + 1}" for i in mixed)
            warn_user(
                f"Components {pairs} differ in kurtosis by less than its sampling error and may be mixtures "
                "of the same sources; take more samples, or another method (sklearn.decomposition.FastICA).",
                UserWarning,
            )
        return bool(mixed.size)

    @available_if(has_batch_size)  # type: ignore[untyped-decorator]  # scikit-learn has no types
    @unchanged_on_error
    def partial_fit(self, X: ArrayLike, y: None = None) -> Self:
        """Continue with more rows, `independent_batches * batch_size` per step."""
        return self._partial_fit((self._validated(X, reset=not self._begun(), fewest=1),))

    def _validated(self, X: ArrayLike, *, reset: bool, fewest: int = 2) -> NDArray:
        return np.asarray(validated(self, X, reset=reset, ensure_min_samples=fewest))

    def _oriented(self) -> NDArray:
        """Return the directions in double precision."""
        return orient(unit_rows(self._vectors()[0]))

    @property
    def components_(self) -> Float[np.ndarray, "k d"]:
        """Unit unmixing directions on rows."""
        return self._oriented().astype(self._begun_with["dtype"])

    @property
    def mean_(self) -> Float[np.ndarray, " d"]:
        """Mean of the samples."""
        return self._means[0]

    def transform(self, X: ArrayLike) -> Float[np.ndarray, "n k"]:
        """Return the sources, (X - mean) V', up to scale and sign."""
        check_is_fitted(self)
        return self._project(validated(self, X, reset=False), 0, self._oriented())
