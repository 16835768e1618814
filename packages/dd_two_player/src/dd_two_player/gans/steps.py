"""One step of training: who moves when, on which batch, with which coefficients.

A step is a pure function of ``(train state, hyperparameters, batches)``. Its structure (`UpdateRule`) is
static and compiled once; learning rates and coefficients are traced, so that changing a value never
recompiles. The random source of a step is derived from the run's key and the step number, so a restored run
continues exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray

from dd_two_player.drift import PLAYERS, Coefficients, drift_coefficients
from dd_two_player.gans.model import Batch, Gan
from dd_two_player.gans.rule import UpdateRule
from dd_two_player.gans.schemes import Players, TrainState, alternating, runge_kutta, simultaneous
from dd_two_player.regularization import combine

__all__ = [
    "Hyperparameters",
    "TrainState",
    "UpdateRule",
    "draw_latents",
    "init_train_state",
    "make_step",
]


class Hyperparameters(NamedTuple):
    """Everything numeric; traced.

    Attributes:
        learning_rates: ``(disc, gen)`` of one update, before the schedule's factor.
        dd_multiplier: Multipliers of the drift coefficients.
        explicit: Explicit coefficients.
        after_explicit: Explicit coefficients added after the Runge-Kutta stages.
    """

    learning_rates: tuple[Any, Any]
    dd_multiplier: Coefficients = Coefficients()
    explicit: Coefficients = Coefficients()
    after_explicit: Coefficients = Coefficients()


Metrics = dict[str, Array]
Schedule = Callable[[Any], Any]
Step = Callable[[TrainState, Hyperparameters, Batch], tuple[TrainState, Metrics]]


def init_train_state(
    gan: Gan, optimizers: tuple[optax.GradientTransformation, ...], key: PRNGKeyArray, example: Array
) -> TrainState:
    """Draw the start of a run; ``key`` seeds parameters and everything random later.

    Raises:
        ValueError: For an optimiser as optax returns it, whose updates point downhill: it would ascend.
    """
    init_key, run_key = jax.random.split(key)
    params, state = gan.init(init_key, example)
    for player, optimizer, side in zip(PLAYERS, optimizers, params, strict=True):
        with jax.ensure_compile_time_eval():
            ones = jax.tree.map(lambda a: np.ones(a.shape, np.float32), side)
            directions = jax.tree.leaves(optimizer.update(ones, optimizer.init(ones), ones)[0])
            if sum(jnp.sum(direction) for direction in directions) < 0:
                raise ValueError(
                    f"the optimizer of {player} returns updates, a step takes directions: pass "
                    "make_optimizer(name), and the rate as a hyperparameter."
                )
    opt = (optimizers[0].init(params[0]), optimizers[1].init(params[1]))
    return TrainState(params, state, opt, jnp.zeros((), jnp.int32), run_key)


def draw_latents(key: PRNGKeyArray, step: Array, data: Array, num_latents: int) -> Batch:
    """Attach latents to the data of one step, shape ``(batches, n, ...)``."""
    stream = jax.random.fold_in(jax.random.fold_in(key, 0), step)
    return Batch(data, jax.random.normal(stream, (*data.shape[:2], num_latents), data.dtype))


def make_step(
    gan: Gan,
    rule: UpdateRule,
    optimizers: tuple[optax.GradientTransformation, ...],
    *,
    rate_schedule: Schedule | tuple[Schedule, Schedule] | None = None,
    num_shards: int = 1,
) -> Step:
    """Return the step function; jit, vmap or scan it.

    Args:
        gan: Networks and losses.
        rule: The static structure.
        optimizers: Directions of ``(disc, gen)``, see :mod:`dd_two_player.gans.optimizers`.
        rate_schedule: Factor of the learning rates at a step, or one for each player; the drift coefficients
            follow it.
        num_shards: Number of devices, for estimators that do not average over them.

    Returns:
        ``step(train_state, hyperparameters, batches) -> (train_state, metrics)`` where ``batches`` has
        ``rule.batches_per_step`` entries along its first axis, in the order of the updates.
    """
    players = Players(gan, rule, optimizers, num_shards)

    def step(ts: TrainState, hyper: Hyperparameters, batches: Batch) -> tuple[TrainState, Metrics]:
        counts = {leaf.shape[0] for leaf in jax.tree.leaves(batches)}
        if counts != {rule.batches_per_step}:  # an index beyond the end would read the last batch again
            raise ValueError(
                f"a step takes {rule.batches_per_step} batches along the first axis, got {counts}."
            )
        schedules = rate_schedule if isinstance(rate_schedule, tuple) else (rate_schedule, rate_schedule)
        factors = [1.0 if schedule is None else schedule(ts.step) for schedule in schedules]
        rates = (hyper.learning_rates[0] * factors[0], hyper.learning_rates[1] * factors[1])
        if rule.scheme == "runge_kutta":
            moved, losses = runge_kutta(players, ts, batches, rates, hyper.explicit, hyper.after_explicit)
        else:
            drift = drift_coefficients(rates, rule.num_updates, rule.scheme, rule.first, rule.convention)
            coefficients = combine(hyper.dd_multiplier, drift, hyper.explicit)
            advance = simultaneous if rule.scheme == "simultaneous" else alternating
            moved, losses = advance(players, ts, batches, rates, coefficients)
        metrics = {
            "disc_loss": losses[0],
            "gen_loss": losses[1],
            "learning_rate_factor": jnp.asarray(factors[0]),
        }
        if isinstance(rate_schedule, tuple):
            metrics["gen_learning_rate_factor"] = jnp.asarray(factors[1])
        for path, found in moved.state.spectral.items():
            metrics[f"singular_value{path}"] = found["sigma"]
        return moved._replace(step=ts.step + 1), metrics

    return step
