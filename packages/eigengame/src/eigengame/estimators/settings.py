"""Settings that several estimators share: their constraints, and that a fit under way keeps them."""

from numbers import Integral, Real
from typing import Any

from sklearn.utils._param_validation import Interval

__all__ = ["COUNT", "POSITIVE", "check_unchanged"]

COUNT = Interval(Integral, 1, None, closed="left")
POSITIVE = Interval(Real, 0, None, closed="neither")


def check_unchanged(estimator: Any, begun_with: dict[str, Any]) -> None:
    """Refuse to go on with settings other than those that the state was built with."""
    for name, held in begun_with.items():
        now = getattr(estimator, name)
        if now is not held and not (isinstance(held, int | float | str) and now == held):
            raise ValueError(
                f"{name} was {held!r} when this fit began and is {now!r}; call fit, which starts anew, "
                "or set it back."
            )
