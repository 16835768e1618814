"""Settings that several estimators share: their constraints, and that a fit under way keeps them."""

from collections.abc import Callable
from functools import wraps
from numbers import Integral, Real
from typing import Any, TypeVar

import jax
from sklearn.utils._param_validation import Interval, StrOptions

__all__ = ["COUNT", "DTYPE", "POSITIVE", "check_precision", "check_unchanged", "unchanged_on_error"]

COUNT = Interval(Integral, 1, None, closed="left")
POSITIVE = Interval(Real, 0, None, closed="neither")
_Method = TypeVar("_Method", bound=Callable[..., Any])
DTYPE = StrOptions({"float32", "float64"})


def check_precision(dtype: str) -> None:
    """Refuse double precision where JAX computes in single."""
    if dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            "dtype='float64' needs 64-bit JAX: run inside `with jax.enable_x64(True):` "
            "or set JAX_ENABLE_X64=1."
        )


def check_unchanged(estimator: Any, begun_with: dict[str, Any]) -> None:
    """Refuse to go on with settings other than those that the state was built with."""
    for name, held in begun_with.items():
        now = getattr(estimator, name)
        if now is not held and not (isinstance(held, int | float | str) and now == held):
            raise ValueError(
                f"{name} was {held!r} when this fit began and is {now!r}; call fit, which starts anew, "
                "or set it back."
            )


def unchanged_on_error(method: _Method) -> _Method:
    """Let a call that raises leave the estimator as it was."""

    @wraps(method)
    def call(self: Any, *args: Any, **options: Any) -> Any:
        before = dict(self.__dict__)
        try:
            return method(self, *args, **options)
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    return call  # type: ignore[return-value]
