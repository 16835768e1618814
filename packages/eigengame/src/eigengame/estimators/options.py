"""Rare settings of the game of `EigenGame`."""

from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Literal

import optax
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions

__all__ = ["GameOptions"]


@dataclass(repr=False)
class GameOptions(BaseEstimator):
    """How the players of `EigenGame` move, and on which devices.

    It has the parameters of an estimator, so a grid search reaches them as `game__momentum`.

    Args:
        momentum: Nesterov momentum of SGD.
        center: `"running"` subtracts the mean of all samples seen up to and including the batch; None
            does not centre.
        optimizer: optax transformation instead of SGD; then `learning_rate` must stay `"auto"` and is
            not used. Directions are projected onto the tangent space first: an optimiser that rescales
            coordinates would otherwise turn the vectors towards its own rest point.
        mesh: Device layout from `eigengame.sharding.make_mesh`.

    Example:
        >>> GameOptions(momentum=0.5).get_params()
        {'center': 'running', 'mesh': None, 'momentum': 0.5, 'optimizer': None}
    """

    momentum: float = 0.9
    center: Literal["running"] | None = "running"
    optimizer: optax.GradientTransformation | None = None
    mesh: Any = None

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "momentum": [Interval(Real, 0, 1, closed="left")],
        "center": [StrOptions({"running"}), None],
        "optimizer": "no_validation",
        "mesh": "no_validation",
    }
