"""One step of training: who moves when, on which batch, with which coefficients.

A step is a pure function of ``(train state, hyperparameters, batches)``. Its structure (`UpdateRule`) is
static and compiled once; learning rates and coefficients are traced, so that changing a value never
recompiles. The random source of a step is derived from the run's key and the step number, so a restored run
continues exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from dd_two_player.drift import PLAYERS, Coefficients, PlayerTerms, drift_coefficients
from dd_two_player.gans.model import Batch, Gan, GanState
from dd_two_player.gans.optimizers import apply_updates
from dd_two_player.regularization import active_terms, combine
from dd_two_player.regularizers import ESTIMATORS
from dd_two_player.runge_kutta import TABLEAUX

__all__ = [
    "Hyperparameters",
    "TrainState",
    "UpdateRule",
    "draw_latents",
    "init_train_state",
    "make_step",
]

Pair = tuple[Any, Any]


NO_TERMS = active_terms(Coefficients())


@dataclass(frozen=True)
class UpdateRule:
    """The static structure of a step.

    Attributes:
        scheme: ``simultaneous``, ``alternating`` or ``runge_kutta``.
        num_updates: Updates ``(disc, gen)`` of an alternating step.
        first: Who moves first in an alternating step.
        rk_order: 1, 2 or 4.
        convention: Convention of the drift coefficients.
        estimator: Name of the regularisers' estimator.
        mask: Which regularisation terms are computed.
        after_mask: Which terms are added after the Runge-Kutta stages.
        shared_batch: Whether both players see the same batch in simultaneous and Runge-Kutta steps.
        fresh_stages: Whether every Runge-Kutta stage draws its own batches.
        shared_rate: Whether intermediate points of both players use the discriminator's rate, as the
            published code does.
    """

    scheme: Literal["simultaneous", "alternating", "runge_kutta"] = "simultaneous"
    num_updates: tuple[int, int] = (1, 1)
    first: Literal["disc", "gen"] = "disc"
    rk_order: int = 4
    convention: str = "paper"
    estimator: str = "biased_estimate_general_grad_fn"
    mask: Coefficients = NO_TERMS
    after_mask: Coefficients = NO_TERMS
    shared_batch: bool = False
    fresh_stages: bool = True
    shared_rate: bool = False

    def __post_init__(self) -> None:
        """Refuse structures that contradict themselves."""
        if self.scheme not in ("simultaneous", "alternating", "runge_kutta"):
            raise ValueError(f"scheme is {self.scheme!r}; allowed: simultaneous, alternating, runge_kutta.")
        if self.rk_order not in TABLEAUX:
            raise ValueError(f"rk_order is {self.rk_order}; allowed: 1, 2, 4.")
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"estimator is {self.estimator!r}; allowed: {', '.join(ESTIMATORS)}.")
        turns = "simultaneous" if self.scheme == "runge_kutta" else self.scheme
        drift_coefficients((1.0, 1.0), self.num_updates, turns, self.first, self.convention)
        if any(map(any, self.after_mask)) and self.scheme != "runge_kutta":
            raise ValueError("rk_after_explicit_coeffs needs the scheme runge_kutta.")

    @property
    def batches_per_step(self) -> int:
        """Return how many batches a step consumes."""
        if self.scheme == "alternating":
            count = sum(self.num_updates)
        else:
            stages = len(TABLEAUX[self.rk_order].nodes) if self._draws_per_stage else 1
            count = stages * (1 if self.shared_batch else 2)
        return count * (2 if ESTIMATORS[self.estimator].batches == "two" else 1)

    @property
    def _draws_per_stage(self) -> bool:
        return self.scheme == "runge_kutta" and self.fresh_stages


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


class TrainState(NamedTuple):
    """What a checkpoint holds; ``key`` is the run's, constant over steps."""

    params: Pair
    state: GanState
    optimizers: Pair
    step: Array
    key: PRNGKeyArray


Metrics = dict[str, Array]
Schedule = Callable[[Any], Any]
Step = Callable[[TrainState, Hyperparameters, Batch], tuple[TrainState, Metrics]]


def init_train_state(
    gan: Gan, optimizers: tuple[optax.GradientTransformation, ...], key: PRNGKeyArray, example: Array
) -> TrainState:
    """Draw the start of a run; ``key`` seeds parameters and everything random later."""
    init_key, run_key = jax.random.split(key)
    params, state = gan.init(init_key, example)
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
    estimator = ESTIMATORS[rule.estimator]

    def draw_batches(ts: TrainState, batches: Any, draw: int) -> tuple[Batch, Batch | None, Any]:
        """Return the ``draw``-th batch of the step, its second one if the estimator wants two, and a key."""
        width = 2 if estimator.batches == "two" else 1
        batch = jax.tree.map(lambda a: a[draw * width], batches)
        second = jax.tree.map(lambda a: a[draw * width + 1], batches) if width == 2 else None
        stream = jax.random.fold_in(jax.random.fold_in(ts.key, 1), ts.step)
        return batch, second, jax.random.fold_in(stream, draw)

    def gradient(
        player: str,
        ts: TrainState,
        state: GanState,
        batches: Any,
        draw: int,
        terms: PlayerTerms,
        mask: PlayerTerms,
    ) -> tuple[Any, GanState, Array]:
        """Return a player's gradient on the ``draw``-th batch of the step."""
        batch, second, key = draw_batches(ts, batches, draw)
        value, after, loss = gan.player_gradient(player, ts.params, state, batch, key)
        if any(mask):
            extra = gan.regularizer(
                player,
                ts.params,
                state,
                batch,
                second,
                key,
                terms,
                mask,
                estimator=estimator,
                num_shards=num_shards,
            )
            value = jax.tree.map(jnp.add, value, extra)
        return value, after, loss

    def both(
        ts: TrainState, batches: Any, first_draw: int, coefficients: Coefficients, mask: Coefficients
    ) -> tuple[Pair, GanState, Pair]:
        """Return both players' gradients at the same point; each loss advances its own state only."""
        disc, after, loss_disc = gradient(
            "disc", ts, ts.state, batches, first_draw, coefficients.disc, mask.disc
        )
        gen_draw = first_draw + (0 if rule.shared_batch else 1)
        gen, after_gen, loss_gen = gradient(
            "gen", ts, ts.state, batches, gen_draw, coefficients.gen, mask.gen
        )
        merged = after._replace(gen_statistics=after_gen.gen_statistics)
        return (disc, gen), merged, (loss_disc, loss_gen)

    def update(ts: TrainState, player: int, gradient: Any, rate: Any) -> TrainState:
        direction, opt = optimizers[player].update(gradient, ts.optimizers[player], ts.params[player])
        moved = apply_updates(ts.params[player], direction, rate)
        return ts._replace(
            params=_replaced(ts.params, player, moved), optimizers=_replaced(ts.optimizers, player, opt)
        )

    def simultaneous(
        ts: TrainState, batches: Any, rates: Pair, coefficients: Coefficients
    ) -> tuple[TrainState, Pair]:
        gradients, state, losses = both(ts, batches, 0, coefficients, rule.mask)
        for player in (0, 1):
            ts = update(ts, player, gradients[player], rates[player])
        return ts._replace(state=state), losses

    def alternating(
        ts: TrainState, batches: Any, rates: Pair, coefficients: Coefficients
    ) -> tuple[TrainState, Pair]:
        losses: dict[int, Array] = {}
        draw = 0
        for player in (0, 1) if rule.first == "disc" else (1, 0):
            name = PLAYERS[player]
            for _ in range(rule.num_updates[player]):
                moved, state, losses[player] = gradient(
                    name, ts, ts.state, batches, draw, coefficients[player], rule.mask[player]
                )
                ts = update(ts, player, moved, rates[player])._replace(state=state)
                draw += 1
        return ts, (losses[0], losses[1])

    def runge_kutta(
        ts: TrainState, batches: Any, rates: Pair, hyper: Hyperparameters
    ) -> tuple[TrainState, Pair]:
        tableau = TABLEAUX[rule.rk_order]
        total: Any = None
        point, after_first, losses = ts, ts.state, (jnp.zeros(()), jnp.zeros(()))
        for stage, weight in enumerate(tableau.weights):
            draw = stage * (1 if rule.shared_batch else 2) if rule.fresh_stages else 0
            gradients, state, stage_losses = both(point, batches, draw, hyper.explicit, rule.mask)
            if stage == 0:  # as published: every stage starts from the same state, the first one's is kept
                losses, after_first = stage_losses, state
            weighted = jax.tree.map(lambda g, w=weight: w * g, gradients)
            total = weighted if stage == 0 else jax.tree.map(jnp.add, total, weighted)
            if stage + 1 < len(tableau.nodes):
                node = tableau.nodes[stage + 1]
                steps = (rates[0], rates[0]) if rule.shared_rate else rates
                moved = tuple(apply_updates(ts.params[p], gradients[p], node * steps[p]) for p in (0, 1))
                point = ts._replace(params=moved)
        if any(map(any, rule.after_mask)):
            after = tuple(
                gan.regularizer(
                    name,
                    ts.params,
                    ts.state,
                    *draw_batches(ts, batches, 0 if i == 0 or rule.shared_batch else 1),
                    hyper.after_explicit[i],
                    rule.after_mask[i],
                    estimator=estimator,
                    num_shards=num_shards,
                )
                for i, name in enumerate(PLAYERS)
            )
            total = jax.tree.map(jnp.add, total, after)
        for player in (0, 1):
            ts = update(ts, player, total[player], rates[player])
        return ts._replace(state=after_first), losses

    def step(ts: TrainState, hyper: Hyperparameters, batches: Batch) -> tuple[TrainState, Metrics]:
        schedules = rate_schedule if isinstance(rate_schedule, tuple) else (rate_schedule, rate_schedule)
        factors = [1.0 if schedule is None else schedule(ts.step) for schedule in schedules]
        rates = (hyper.learning_rates[0] * factors[0], hyper.learning_rates[1] * factors[1])
        if rule.scheme == "runge_kutta":
            moved, losses = runge_kutta(ts, batches, rates, hyper)
        else:
            drift = drift_coefficients(rates, rule.num_updates, rule.scheme, rule.first, rule.convention)
            coefficients = combine(hyper.dd_multiplier, drift, hyper.explicit)
            advance = simultaneous if rule.scheme == "simultaneous" else alternating
            moved, losses = advance(ts, batches, rates, coefficients)
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


def _replaced(pair: Pair, index: int, value: Any) -> Pair:
    return (value, pair[1]) if index == 0 else (pair[0], value)
