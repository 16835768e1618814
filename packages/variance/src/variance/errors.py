"""Errors a caller may want to catch, and checks of arguments; all else is a plain ValueError or TypeError."""

import math
import sys
from collections.abc import Iterable
from typing import Any

from gdyn_common.errors import require_count as _require_count


class ConfigError(ValueError):
    """An option or a combination of options that cannot be honoured."""


class NotReady(RuntimeError):  # noqa: N818 - public name
    """An estimator was asked for a direction before the operation that prepares it."""


class UnsupportedLayer(TypeError):  # noqa: N818 - public name
    """A layer whose examples cannot be told apart, for example batch norm in training mode."""


class NonFiniteGradient(ArithmeticError):  # noqa: N818 - public name
    """A loss or gradient is NaN or infinite; the message names the examples."""


class CoupledExamples(ConfigError):  # noqa: N818 - public name
    """The loss or the network mixes examples, so that one example has no gradient of its own."""


class SlowPath(UserWarning):
    """Some parameters took the slow exact path, because the fast one did not fit this model."""


def require_count(name: str, value: object, least: int = 1, most: float = math.inf) -> None:
    """Refuse what is no whole number between two bounds; truth values are none.

    Example:
        >>> require_count("batch_size", True)
        Traceback (most recent call last):
        variance.errors.ConfigError: batch_size is True; pass a whole number of at least 1.
    """
    _require_count(name, value, least, most, error=ConfigError)


def require_number(
    name: str,
    value: object,
    least: float = -sys.float_info.max,
    most: float = sys.float_info.max,
    *,
    above: float = -math.inf,
    below: float = math.inf,
) -> None:
    """Refuse what is no number between the bounds: NaN, truth values, text, and infinity unless allowed.

    Example:
        >>> require_number("decay", math.nan, 0, below=1)
        Traceback (most recent call last):
        variance.errors.ConfigError: decay is nan; pass a number of at least 0, below 1.
    """
    number = _float(value)
    if least <= number <= most and above < number and (number < below or below == math.inf):
        return
    bounds = {"of at least": least, "above": above, "of at most": most, "below": below}
    told = [f"{word} {bound:g}" for word, bound in bounds.items() if abs(bound) < sys.float_info.max]
    raise ConfigError(f"{name} is {value!r}; pass a number {', '.join(told) or 'that is finite'}.")


def _float(value: Any) -> float:
    """Return a number, also one of NumPy, torch or `decimal`; NaN for all else."""
    is_truth = str(getattr(value, "dtype", type(value).__name__)).endswith("bool")
    if is_truth or isinstance(value, str | bytes) or getattr(value, "ndim", 0) > 0:
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, ArithmeticError, RuntimeError):
        return math.nan


def require_word(name: str, value: object, allowed: Iterable[object]) -> None:
    """Refuse what is none of some words.

    Example:
        >>> require_word("dead", "x", ("skip", "zero"))
        Traceback (most recent call last):
        variance.errors.ConfigError: dead is 'x'; allowed are skip, zero.
    """
    if value not in tuple(allowed):
        raise ConfigError(f"{name} is {value!r}; allowed are {', '.join(map(str, allowed))}.")
