"""Intervals of confidence for what a claim judges, and nothing else.

Every interval covers the true value with probability 0.9 or more, 5 % on either side, so a true value
outside a band is called inside in at most one case of twenty. What has no interval says why.

NumPy is imported where something is computed, so that listing claims stays quick.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEVEL = 0.9
Method = Literal["t", "bootstrap", "median"]

_TAIL = (1 - LEVEL) / 2
_RESAMPLES = 1999
_FEWEST_FOR_BOOTSTRAP = 10
_MOST_FOR_BOOTSTRAP = 2000  # beyond, the mean of that many values is normal and t is as good


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval.

    Attributes:
        estimate: The judged statistic, NaN if it has no value.
        low: Lower end.
        high: Upper end.
        method: How the interval was found, in words.
        problem: Why the interval decides nothing; empty if it does.
    """

    estimate: float
    low: float
    high: float
    method: str
    problem: str = ""


@dataclass(frozen=True)
class Measured:
    """A single measurement that brings its own standard error, for example from batches of one long run.

    Attributes:
        value: The measurement.
        standard_error: Its standard error.
        degrees: Degrees of freedom of the standard error; infinite for a normal interval.
    """

    value: float
    standard_error: float
    degrees: float = math.inf

    def __post_init__(self) -> None:
        if not (self.standard_error >= 0 and self.degrees > 0):
            raise ValueError(
                f"Measured needs standard_error >= 0 and degrees > 0, got {self.standard_error} and "
                f"{self.degrees}; a value without error belongs to a claim with deterministic=True."
            )


def of_exact(values: Sequence[float]) -> Interval:
    """Return the range of values that a repetition would give again, bit for bit.

    >>> of_exact([1.0, 2.0])
    Interval(estimate=1.5, low=1.0, high=2.0, method='deterministic', problem='')
    """
    import numpy as np

    numbers = np.asarray(values, dtype=float)
    if not np.isfinite(numbers).all():
        return Interval(math.nan, -math.inf, math.inf, "deterministic", _not_finite(numbers))
    return Interval(_mean(numbers), float(numbers.min()), float(numbers.max()), "deterministic")


def of_mean(values: Sequence[float], method: Method = "t") -> Interval:
    """Return the interval of the mean over seeds, or with ``median`` of their median.

    Args:
        values: One measurement per seed.
        method: ``t``: Student's interval. ``bootstrap``: the studentised bootstrap, for skewed values
            of ten seeds or more. ``median``: order statistics, exact for any distribution, from five
            seeds on; the choice for counts that often come out equal.

    >>> interval = of_mean([1.0, 2.0, 3.0])
    >>> round(interval.low, 3), round(interval.high, 3), interval.method
    (0.314, 3.686, 't, 3 seeds')
    """
    import numpy as np

    numbers = np.asarray(values, dtype=float)
    count = numbers.size
    words = f"{method}, {count} seed{'s' if count != 1 else ''}"
    if not np.isfinite(numbers).all():
        return Interval(math.nan, -math.inf, math.inf, words, _not_finite(numbers))
    if method == "median":
        return _median(numbers, words)
    estimate = _mean(numbers)
    problem = ""
    if count < 2:
        problem = "one seed has no spread"
    elif numbers.min() == numbers.max():
        problem = f"all {count} seeds gave the same number, which says nothing of the spread"
    elif method == "bootstrap" and count < _FEWEST_FOR_BOOTSTRAP:
        problem = f"the bootstrap needs {_FEWEST_FOR_BOOTSTRAP} seeds"
    if problem:
        return Interval(estimate, -math.inf, math.inf, words, problem)
    scaled, exponent = _near_one(numbers)  # squares of numbers below 1e-162 vanish, beyond 1e154 overflow
    if method == "bootstrap" and count <= _MOST_FOR_BOOTSTRAP:
        ends = _studentised_bootstrap(scaled, _mean(scaled))
    else:
        mean, width = _mean(scaled), _quantile(count - 1) * _deviation(scaled) / math.sqrt(count)
        ends = mean - width, mean + width
    with np.errstate(over="ignore"):
        low, high = (float(np.ldexp(end, exponent)) for end in ends)
    if not (math.isfinite(low) and math.isfinite(high)):
        return Interval(estimate, -math.inf, math.inf, words, "the spread overflows")
    return Interval(estimate, low, high, words)


def of_measured(value: float, standard_error: float, degrees: float) -> Interval:
    """Return the interval of a measurement that brings its own standard error."""
    words = "own standard error"
    if not (math.isfinite(value) and math.isfinite(standard_error)):
        return Interval(math.nan, -math.inf, math.inf, words, "the value or its error is not finite")
    if standard_error == 0:
        return Interval(value, -math.inf, math.inf, words, "a standard error of 0 is no standard error")
    width = _quantile(degrees) * standard_error
    return Interval(value, value - width, value + width, words)


def of_share(true: int, count: int) -> Interval:
    """Return the exact binomial interval (Clopper and Pearson) of a share of seeds.

    >>> interval = of_share(5, 5)
    >>> interval.estimate, round(interval.low, 3), interval.high
    (1.0, 0.549, 1.0)
    """
    from scipy.special import betaincinv

    low = float(betaincinv(true, count - true + 1, _TAIL)) if true else 0.0
    high = float(betaincinv(true + 1, count - true, 1 - _TAIL)) if true < count else 1.0
    return Interval(true / count, low, high, f"exact binomial, {count} seed{'s' if count != 1 else ''}")


def _median(numbers: NDArray[np.float64], words: str) -> Interval:
    """Use the narrowest pair of order statistics, equally far from both ends, that covers the median."""
    import numpy as np
    from scipy.special import bdtr

    count = numbers.size
    ordered = np.sort(numbers)
    median = float(np.median(ordered))
    ranks = np.arange(count // 2)
    inner = ranks[bdtr(ranks, count, 0.5) <= _TAIL]  # the chance that rank + 1 values miss one side
    if not inner.size:
        return Interval(median, -math.inf, math.inf, words, "the interval of a median needs 5 seeds")
    rank = int(inner[-1])
    return Interval(median, float(ordered[rank]), float(ordered[count - 1 - rank]), words)


def _studentised_bootstrap(numbers: NDArray[np.float64], mean: float) -> tuple[float, float]:
    """Resample the t statistic itself; its quantiles carry the skewness that Student's table ignores.

    Of few values it still covers too little, so twice the distance from the tails is kept: of exponential
    values, or lognormal ones of spread 0.5, at most 5 % then lie beyond either end from ten seeds on.
    """
    import numpy as np

    count = numbers.size
    draws = np.random.default_rng(0).integers(count, size=(_RESAMPLES, count))
    resampled = numbers[draws]
    errors = resampled.std(axis=1, ddof=1) / math.sqrt(count)
    error = _deviation(numbers) / math.sqrt(count)
    deviations = resampled.mean(axis=1) - mean
    # A resample without spread is an infinitely large t of its sign: it widens the interval.
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(errors > 0, deviations / errors, np.copysign(math.inf, deviations))
    low, high = np.quantile(t, [_TAIL / 2, 1 - _TAIL / 2], method="closest_observation")
    return mean - float(high) * error, mean - float(low) * error


def _quantile(degrees: float) -> float:
    from scipy.special import ndtri, stdtrit

    return float(ndtri(1 - _TAIL) if math.isinf(degrees) else stdtrit(degrees, 1 - _TAIL))


def _near_one(numbers: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Divide by the power of two beyond the largest size; return its exponent as well."""
    import numpy as np

    exponent = math.frexp(float(np.abs(numbers).max()))[1]
    return np.ldexp(numbers, -exponent), exponent


def _mean(numbers: NDArray[np.float64]) -> float:
    import numpy as np

    scaled, exponent = _near_one(numbers)
    with np.errstate(over="ignore"):
        mean = np.ldexp(scaled.mean(), exponent)
    return float(np.clip(mean, numbers.min(), numbers.max()))  # equal values have that mean


def _deviation(numbers: NDArray[np.float64]) -> float:
    return float(numbers.std(ddof=1))


def _not_finite(numbers: NDArray[np.float64]) -> str:
    import numpy as np

    bad = int(np.count_nonzero(~np.isfinite(numbers)))
    return f"{bad} of {numbers.size} values {'are' if bad > 1 else 'is'} not finite"
