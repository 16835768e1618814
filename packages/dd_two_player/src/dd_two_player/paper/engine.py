"""The training engine: what a configuration stands for, and the loop that commands and studies run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dd_two_player.gans import losses as known
from dd_two_player.gans.model import Gan
from dd_two_player.gans.naming import named
from dd_two_player.gans.networks import build_discriminator, build_generator
from dd_two_player.gans.optimizers import make_optimizer, make_schedule
from dd_two_player.gans.steps import (
    Hyperparameters,
    Step,
    TrainState,
    UpdateRule,
    init_train_state,
    make_step,
)
from dd_two_player.paper.config import GradRegularizesConfig, OptimizersConfig, TrainConfig
from dd_two_player.regularization import Regularization, active_terms

__all__ = ["Trainer", "build", "run", "seconds_per_step"]


class Trainer(NamedTuple):
    """What a configuration stands for; pure functions, to be compiled, vmapped or sharded by the caller.

    Attributes:
        gan: Networks and losses.
        rule: The static structure of a step.
        hyper: Learning rates and coefficients.
        start: Draws the first train state of a seed.
        step: ``(train state, hyper, batches) -> (train state, metrics)``.
    """

    gan: Gan
    rule: UpdateRule
    hyper: Hyperparameters
    start: Callable[[Any], TrainState]
    step: Step


def build(config: TrainConfig, shape: tuple[int, ...]) -> Trainer:
    """Build networks, losses and the step of a configuration for samples of a shape.

    Raises:
        ValueError: If values contradict each other, for unknown names, and for a generator whose samples have
            another shape.
    """
    recipe, updates, nets = regularization(config.grad_regularizes), config.updates, config.nets
    both = (config.optimizers.disc, config.optimizers.gen)
    rule = UpdateRule(
        scheme=updates.scheme,  # type: ignore[arg-type]  # UpdateRule checks it
        num_updates=(both[0].num_updates, both[1].num_updates),
        first=updates.first,  # type: ignore[arg-type]
        rk_order=updates.rk_order,
        convention=updates.convention,
        estimator=updates.estimator,
        mask=recipe.mask(),
        after_mask=active_terms(recipe.rk_after_explicit_coeffs),
        shared_batch=updates.shared_batch,
        fresh_stages=updates.rk_fresh_stages,
        shared_rate=updates.rk_shared_rate,
    )
    gan = Gan(
        build_discriminator(nets.disc, nets.hidden, nets.convolution),  # type: ignore[arg-type]
        build_generator(nets.gen, shape, nets.hidden, nets.convolution),  # type: ignore[arg-type]
        named("discriminator loss", config.losses.disc, known.DISCRIMINATOR_LOSSES, ["real", "fake"]),
        named("generator loss", config.losses.gen, known.GENERATOR_LOSSES, ["fake"]),
        nets.num_latents,
        nets.spectral_norm,  # type: ignore[arg-type]
        config.losses.gradient_penalty,
    )
    gan.check_samples(shape)
    optimizers = tuple(
        make_optimizer(o.name, momentum=o.momentum, b1=o.b1, b2=o.b2, clip=o.clip, options=o.options)
        for o in both
    )
    hyper = Hyperparameters(
        (both[0].lr, both[1].lr),
        recipe.dd_coeffs_multiplier,
        recipe.explicit_non_dd_coeffs,
        recipe.rk_after_explicit_coeffs,
    )
    schedules = _schedules(updates.rate_schedule, config.optimizers)
    step = make_step(gan, rule, optimizers, rate_schedule=schedules, num_shards=config.device_count)

    def start(seed: Any) -> TrainState:
        return init_train_state(gan, optimizers, jax.random.key(seed), jnp.zeros((2, *shape)))

    return Trainer(gan, rule, hyper, start, step)


def regularization(config: GradRegularizesConfig) -> Regularization:
    """Return the recipe of a configuration."""
    return Regularization.from_mapping(dataclasses.asdict(config))


def run(
    advance: Step,
    state: TrainState,
    hyper: Hyperparameters,
    draw: Callable[[int], Any],
    steps: range,
    due: Callable[[int], bool],
    visit: Callable[[int, TrainState, list[dict[str, Any]]], None],
    stop: Sequence[object] = (),
) -> TrainState:
    """Advance a train state; the one loop of commands and studies.

    A Python loop: inside of a compiled one XLA runs convolutions on the CPU seven times slower.

    Args:
        advance: One compiled step; it may use up the state that it is given.
        state: Where to start.
        hyper: Learning rates and coefficients.
        draw: Returns the data of a step by its number.
        steps: Numbers of the steps to make.
        due: Whether ``visit`` is called after so many steps; it always is after the last one.
        visit: Called with the number of steps done, the state, and the metrics since its last call.
        stop: Once it has an entry, the loop ends after the step it is in.

    Raises:
        KeyboardInterrupt: If it was stopped, after a last visit.
    """
    pending: list[Any] = []
    for number in steps:
        state, metrics = advance(state, hyper, draw(number))
        pending.append(metrics)
        done, stopping = number + 1, bool(stop)  # a request from here on waits one step
        if due(done) or done == steps.stop or stopping:
            visit(done, state, jax.device_get(pending))
            pending.clear()
        if stopping:
            raise KeyboardInterrupt
    return state


def seconds_per_step(
    advance: Step, state: TrainState, hyper: Hyperparameters, draw: Callable[[], Any], steps: int = 3
) -> float:
    """Return the wall time of a step on drawn data, compiling left out."""
    state, _ = jax.block_until_ready(advance(state, hyper, draw()))
    started = time.perf_counter()
    run(advance, state, hyper, lambda _: draw(), range(steps), lambda _: False, lambda *_: None)
    return (time.perf_counter() - started) / steps


def _schedules(shared: dict[int, float], optimizers: OptimizersConfig) -> Any:
    """Return the schedule of both players, one for each, or none."""
    own = (optimizers.disc.rate_schedule, optimizers.gen.rate_schedule)
    if not any(own):
        return make_schedule(shared) if shared else None
    both = make_schedule(shared)
    return tuple(lambda step, f=f: both(step) * f(step) for f in map(make_schedule, own))
