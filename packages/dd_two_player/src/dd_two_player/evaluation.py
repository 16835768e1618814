"""Scores of samples from a classifier's logits and features, in double precision.

With the Inception network these are the Inception Score and the Frechet Inception Distance; with any other
classifier they are called ``classifier_score`` and ``frechet_classifier_distance`` and must not be compared
with published IS and FID. The Frechet distance depends on the number of samples: never compare across counts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

__all__ = [
    "Moments",
    "classifier_score",
    "evaluate_samples",
    "frechet_distance",
    "moments",
]

Classifier = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Moments(NamedTuple):
    """Mean and unbiased covariance of features.

    Attributes:
        mean: ``(features,)``.
        covariance: ``(features, features)``, divided by ``n - 1``.
        factor: ``(min(n, features), features)`` with ``covariance = factor' factor``; it keeps the digits
            that a covariance of few samples loses.
    """

    mean: Float[np.ndarray, " features"]
    covariance: Float[np.ndarray, "features features"]
    factor: Float[np.ndarray, "rows features"] | None = None

    def __repr__(self) -> str:
        size, spread = np.linalg.norm(np.ravel(self.mean)), np.trace(np.atleast_2d(self.covariance))
        return f"moments of {np.size(self.mean)} features: |mean| = {size:.4g}, total variance = {spread:.4g}"


def classifier_score(logits: Float[np.ndarray, "n classes"]) -> float:
    """Return ``exp(mean KL(p(y|x) || p(y)))``, the formula of the Inception Score.

    It lies between 1 and the number of classes.

    >>> round(classifier_score(50.0 * np.eye(3)), 6), round(classifier_score(np.zeros((5, 3))), 6)
    (3.0, 1.0)
    """
    values = _double("logits", logits)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"logits have shape {values.shape}; a classifier must return (n, classes).")
    _check_finite("logits", values)
    with np.errstate(over="ignore"):  # minus infinity has the right exponential
        shifted = np.maximum(values - values.max(1, keepdims=True), np.finfo(float).min)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    p = np.exp(log_p)
    marginal = p.mean(0)
    log_marginal = np.log(np.where(marginal > 0, marginal, 1.0))
    return float(np.exp((p * (log_p - log_marginal)).sum(1).mean()))


def moments(features: Float[np.ndarray, "n features"]) -> Moments:
    """Return mean and covariance; warns when there are too few samples for a regular covariance."""
    values = _double("features", features)
    if values.ndim != 2 or len(values) < 2:
        raise ValueError(f"features have shape {values.shape}; need (n, features) with n of at least 2.")
    _check_finite("features", values)
    if len(values) < values.shape[1] + 1:
        warnings.warn(
            f"{len(values)} samples for {values.shape[1]} features: the covariance is singular; use more",
            stacklevel=2,
        )
    centred = (values - values.mean(0)) / np.sqrt(len(values) - 1)
    wide = len(values) <= values.shape[1]
    factor = centred if wide else np.asarray(np.linalg.qr(centred, mode="r"))
    return Moments(values.mean(0), np.atleast_2d(np.cov(values, rowvar=False, ddof=1)), factor)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return ``|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a^(1/2) S_b S_a^(1/2))^(1/2))``.

    With factors ``S = F' F`` this is ``|m_a - m_b|^2`` plus the smallest ``|F_a - U F_b|^2`` over orthogonal
    ``U``, which one singular value decomposition finds. As a sum of squares it is never negative, and it
    keeps its digits when there are fewer samples than features.

    Raises:
        ValueError: If the dimensions differ, if a mean or covariance is not finite, or if a covariance is not
            symmetric or has a negative eigenvalue.

    >>> a = Moments(np.zeros(2), np.eye(2))
    >>> frechet_distance(a, Moments(np.array([3.0, 4.0]), 4 * np.eye(2)))
    27.0
    """
    means = [np.atleast_1d(_double("mean", of.mean)) for of in (a, b)]
    if means[0].shape != means[1].shape:
        raise ValueError(
            f"features have {means[0].size} and {means[1].size} dimensions; use the same classifier."
        )
    for mean in means:
        _check_finite("mean", mean[:, None])
    first, second = (_factor(of, mean.size) for of, mean in zip((a, b), means, strict=True))
    if len(first) < len(second):
        first, second = second, first
    left, _, right = np.linalg.svd(first @ second.T, full_matrices=False)
    turned = left @ (right @ second)
    return float(((means[0] - means[1]) ** 2).sum() + ((first - turned) ** 2).sum())


def _factor(of: Moments, size: int) -> Float[np.ndarray, "rows features"]:
    """Return ``F`` with ``covariance = F' F``."""
    if of.factor is not None:
        return of.factor
    covariance = np.atleast_2d(_double("covariance", of.covariance))
    if covariance.shape != (size, size):
        raise ValueError(f"the covariance has shape {covariance.shape} for a mean of {size} features.")
    _check_finite("covariance", covariance)
    if np.abs(covariance - covariance.T).max(initial=0.0) > 1e-3 * np.abs(covariance).max(initial=0.0):
        raise ValueError("the covariance is not symmetric; it must be that of the features.")
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    if values[0] < -1e-4 * values[-1] or values[-1] < 0:
        raise ValueError(f"the covariance has the eigenvalue {values[0]:g}; it must not be negative.")
    root: np.ndarray = np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T
    return root


def _double(name: str, values: Any) -> np.ndarray:
    """Return real numbers in double precision: small integers wrap and half precision overflows."""
    if np.iscomplexobj(values):
        raise ValueError(f"the {name} are complex; scores are of real numbers.")
    return np.asarray(values, dtype=np.float64)


def _check_finite(name: str, values: np.ndarray) -> None:
    bad = int((~np.isfinite(values)).any(1).sum())
    if bad:
        raise ValueError(
            f"{bad} of {len(values)} rows of the {name} are not finite; there is no score of such samples."
        )


def evaluate_samples(
    sample: Callable[[int, int], np.ndarray],
    reference: Moments | Callable[[int, int], np.ndarray],
    classifier: Classifier,
    *,
    num_samples: int,
    num_splits: int,
    batch_size: int = 100,
) -> dict[str, list[float]]:
    """Score independent splits of samples.

    Args:
        sample: ``(split, count) -> samples``.
        reference: Moments of the data's features, or ``(split, count) -> data`` for the same count as
            samples.
        classifier: Samples to ``(logits, features)``.
        num_samples: Per split.
        num_splits: Number of splits.
        batch_size: Samples per call of the classifier.

    Returns:
        ``classifier_score`` and ``frechet_classifier_distance``, one value per split.

    Raises:
        ValueError: For counts below one, and for another number of samples than was asked for: the distance
            depends on it.
    """
    if min(num_samples, num_splits, batch_size) < 1:
        raise ValueError(
            f"num_samples is {num_samples}, num_splits {num_splits} and batch_size {batch_size}; all must be "
            "at least 1."
        )
    if not callable(reference) and not isinstance(reference, Moments):
        raise TypeError(f"reference is a {type(reference).__name__}; pass moments(features) or a function.")

    def drawn(source: Callable[[int, int], np.ndarray], split: int) -> tuple[np.ndarray, np.ndarray]:
        found = source(split, num_samples)
        if len(found) != num_samples:
            raise ValueError(f"{len(found)} samples came for split {split}; {num_samples} were asked for.")
        return classify(classifier, found, batch_size)

    scores: dict[str, list[float]] = {"classifier_score": [], "frechet_classifier_distance": []}
    for split in range(num_splits):
        logits, features = drawn(sample, split)
        scores["classifier_score"].append(classifier_score(logits))
        real = moments(drawn(reference, split)[1]) if callable(reference) else reference
        scores["frechet_classifier_distance"].append(frechet_distance(real, moments(features)))
    return scores


def classify(
    classifier: Classifier, samples: np.ndarray, batch_size: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """Apply a classifier in batches and check what it returns."""
    parts = [classifier(samples[i : i + batch_size]) for i in range(0, len(samples), batch_size)]
    logits, features = (np.concatenate([np.asarray(part[i]) for part in parts]) for i in (0, 1))
    for name, values in (("logits", logits), ("features", features)):
        if values.ndim != 2 or len(values) != len(samples):
            raise ValueError(f"the classifier's {name} have shape {values.shape} for {len(samples)} samples.")
    return logits, features
