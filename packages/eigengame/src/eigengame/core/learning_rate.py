"""Step sizes relative to the data: "auto" is c / lambda_1, with lambda_1 estimated over the stream.

Normalisation makes the unprojected step a shifted power iteration, so only the product of step size
and top eigenvalue matters and one constant c serves data of any scale. Small batches are noisier and
want a smaller c.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax.numpy as jnp
import optax

from eigengame.core.solver import State

__all__ = ["auto_constant", "auto_gain", "decaying_adam", "nesterov", "with_learning_rate"]


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


def auto_gain(momentum: float) -> float:
    """Return c for large batches: 1 with momentum 0.9, which multiplies a step by ten, else 3."""
    return 3.0 if momentum < 0.9 else 1.0


def auto_constant(batch_size: int, momentum: float) -> float:
    """Return c of "auto" for a batch size and momentum.

    1 at 256 rows with momentum 0.9 or more, 3 with less (momentum 0.9 alone multiplies the effective
    step by ten), and proportionally less for smaller batches, whose directions are noisier.

    Example:
        >>> auto_constant(256, 0.9), auto_constant(32, 0.9)
        (1.0, 0.125)
    """
    return auto_gain(momentum) * min(1.0, batch_size / 256)


@lru_cache(maxsize=64)
def decaying_adam(learning_rate: float, num_steps: int | None) -> optax.GradientTransformation:
    """Return Adam; with a known number of steps the second half decays by a cosine to zero."""
    if num_steps is None:
        return optax.adam(learning_rate)
    half = max(num_steps // 2, 1)
    return optax.adam(
        optax.join_schedules(
            [optax.constant_schedule(learning_rate), optax.cosine_decay_schedule(learning_rate, half)], [half]
        )
    )
