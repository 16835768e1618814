"""Step sizes relative to the data: "auto" = c / lambda_1, with lambda_1 estimated on the first batch.

Normalisation makes the unprojected step a shifted power iteration, so only the product of step size
and top eigenvalue matters and one constant c serves data of any scale. Small batches are noisier and
want a smaller c.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from eigengame.core.solver import State

__all__ = ["auto_constant", "auto_learning_rate", "largest_eigenvalue", "nesterov", "with_learning_rate"]


@lru_cache(maxsize=64)
def nesterov(momentum: float, schedule: Callable[[Any], Any] | None = None) -> optax.GradientTransformation:
    """Return SGD with Nesterov momentum; cached, so that equal settings share one compiled step.

    Without a schedule the learning rate is a number in the optimiser state, set by
    `with_learning_rate`: another value never compiles anew.
    """
    if schedule is not None:
        return optax.sgd(schedule, momentum=momentum or None, nesterov=momentum > 0)
    build = optax.inject_hyperparams(optax.sgd, static_args=("momentum", "nesterov"))
    return build(learning_rate=1.0, momentum=momentum or None, nesterov=momentum > 0)


def with_learning_rate(state: State, learning_rate: float) -> State:
    """Return the state with another learning rate in the optimiser state of `nesterov`."""
    held = state.opt_state.hyperparams["learning_rate"]
    hyperparams = state.opt_state.hyperparams | {"learning_rate": jnp.full_like(held, learning_rate)}
    return replace(state, opt_state=state.opt_state._replace(hyperparams=hyperparams))


def largest_eigenvalue(rows: NDArray, *, center: bool = True, iterations: int = 10) -> float:
    """Return the top eigenvalue of the covariance of the rows by power iteration, a lower bound.

    Example:
        >>> round(largest_eigenvalue(np.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])), 6)
        4.5
    """
    X = np.asarray(rows)
    if center:
        X = X - X.mean(axis=0)
    norms = np.linalg.norm(X, axis=1)
    direction = X[np.argmax(norms)]
    value = 0.0
    for _ in range(iterations):
        length = float(np.linalg.norm(direction))
        if not np.isfinite(length) or length == 0:
            return 0.0
        direction = X.T @ (X @ (direction / length)) / X.shape[0]
        value = float(np.linalg.norm(direction))
    return value


def auto_constant(batch_size: int, momentum: float) -> float:
    """Return c of "auto" for a batch size and momentum.

    1 at 256 rows with momentum 0.9 or more, 3 with less (momentum 0.9 alone multiplies the effective
    step by ten), and proportionally less for smaller batches, whose directions are noisier.

    Example:
        >>> auto_constant(256, 0.9), auto_constant(32, 0.9)
        (1.0, 0.125)
    """
    gain = 3.0 if momentum < 0.9 else 1.0
    return gain * min(1.0, batch_size / 256)


def auto_learning_rate(rows: NDArray, momentum: float, *, center: bool = True) -> float:
    """Return c / lambda_1 for the given first batch; 1 for data without variance.

    Example:
        >>> auto_learning_rate(np.zeros((4, 2)), 0.9)
        1.0
    """
    value = largest_eigenvalue(rows, center=center)
    return auto_constant(rows.shape[0], momentum) / value if value > 0 else 1.0
