"""Constraints of settings that several estimators share; scikit-learn checks them."""

from numbers import Integral, Real

from sklearn.utils._param_validation import Interval

__all__ = ["COUNT", "POSITIVE"]

COUNT = Interval(Integral, 1, None, closed="left")
POSITIVE = Interval(Real, 0, None, closed="neither")
