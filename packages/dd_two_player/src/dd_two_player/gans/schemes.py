"""Who moves when: simultaneous and alternating descent, and Runge-Kutta methods, as functions of one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from dd_two_player.drift import PLAYERS, Coefficients
from dd_two_player.gans.model import Batch, Gan, GanState
from dd_two_player.gans.rule import UpdateRule
from dd_two_player.regularizers import ESTIMATORS
from dd_two_player.runge_kutta import TABLEAUX, apply_updates

__all__ = ["Players", "TrainState", "alternating", "runge_kutta", "simultaneous"]

Pair = tuple[Any, Any]


class TrainState(NamedTuple):
    """What a checkpoint holds; ``key`` is the run's, constant over steps."""

    params: Pair
    state: GanState
    optimizers: Pair
    step: Array
    key: PRNGKeyArray


@dataclass(frozen=True)
class Players:
    """What both players do at a point: gradients on the batches of a step, and updates.

    Attributes:
        gan: Networks and losses.
        rule: The static structure of a step.
        optimizers: Directions of ``(disc, gen)``.
        num_shards: Number of devices, for estimators that do not average over them.
    """

    gan: Gan
    rule: UpdateRule
    optimizers: tuple[optax.GradientTransformation, ...]
    num_shards: int = 1

    def gradient(
        self,
        player: int,
        ts: TrainState,
        batches: Batch,
        draw: int,
        coefficients: Coefficients,
        mask: Coefficients,
        *,
        terms_only: bool = False,
    ) -> tuple[Any, GanState, Array]:
        """Return a player's gradient on the ``draw``-th batch, the state after its loss, and the loss.

        With ``terms_only`` it is the gradient of the regularisers, without the loss.
        """
        estimator = ESTIMATORS[self.rule.estimator]
        width = 2 if estimator.batches == "two" else 1
        batch, second = (jax.tree.map(lambda a, i=i: a[draw * width + i], batches) for i in (0, width - 1))
        stream = jax.random.fold_in(jax.random.fold_in(ts.key, 1), ts.step)
        loss_key, latents_key = (jax.random.fold_in(jax.random.fold_in(stream, draw), i) for i in (0, 1))

        def fresh(halves: tuple[Batch, Batch]) -> tuple[Batch, ...]:
            keys = jax.random.split(latents_key)
            return tuple(
                half._replace(latents=jax.random.normal(k, half.latents.shape, half.latents.dtype))
                for half, k in zip(halves, keys, strict=True)
            )

        game = self.gan.game(ts.state, loss_key, has_aux=True)
        evaluate = game.regularizer if terms_only else game.player_value_and_gradient
        found: Any = evaluate(
            PLAYERS[player],
            ts.params,
            batch,
            coefficients[player],
            mask=mask[player],
            estimator=estimator,
            resample=fresh,
            second_batch=second,
            num_shards=self.num_shards,
        )
        (loss, state), gradient = ((jnp.zeros(()), ts.state), found) if terms_only else found
        return jax.tree.map(jnp.conj, gradient), state, loss  # complex parameters ascend along the conjugate

    def both(
        self, ts: TrainState, batches: Batch, first_draw: int, coefficients: Coefficients, mask: Coefficients
    ) -> tuple[Pair, GanState, Pair]:
        """Return both players' gradients at the same point; each loss advances its own state only."""
        draws = (first_draw, first_draw + (0 if self.rule.shared_batch else 1))
        (disc, after, loss_disc), (gen, after_gen, loss_gen) = (
            self.gradient(player, ts, batches, draws[player], coefficients, mask) for player in (0, 1)
        )
        return (disc, gen), after._replace(gen_statistics=after_gen.gen_statistics), (loss_disc, loss_gen)

    def update(self, player: int, ts: TrainState, gradient: Any, rate: Any) -> TrainState:
        """Move one player by its optimiser's direction."""
        params, optimizers = list(ts.params), list(ts.optimizers)
        direction, optimizers[player] = self.optimizers[player].update(
            gradient, optimizers[player], params[player]
        )
        params[player] = apply_updates(params[player], direction, rate)
        return ts._replace(params=tuple(params), optimizers=tuple(optimizers))

    def update_both(self, ts: TrainState, gradients: Pair, rates: Pair, state: GanState) -> TrainState:
        """Move both players, each by its own gradient of the same point."""
        for player in (0, 1):
            ts = self.update(player, ts, gradients[player], rates[player])
        return ts._replace(state=state)


def simultaneous(
    players: Players, ts: TrainState, batches: Batch, rates: Pair, coefficients: Coefficients
) -> tuple[TrainState, Pair]:
    """Both players move from the same point."""
    gradients, state, losses = players.both(ts, batches, 0, coefficients, players.rule.mask)
    return players.update_both(ts, gradients, rates, state), losses


def alternating(
    players: Players, ts: TrainState, batches: Batch, rates: Pair, coefficients: Coefficients
) -> tuple[TrainState, Pair]:
    """One player makes its updates, then the other one sees the result."""
    rule, losses, draw = players.rule, {}, 0
    for player in (0, 1) if rule.first == "disc" else (1, 0):
        for _ in range(rule.num_updates[player]):
            moved, state, losses[player] = players.gradient(
                player, ts, batches, draw, coefficients, rule.mask
            )
            ts = players.update(player, ts, moved, rates[player])._replace(state=state)
            draw += 1
    return ts, (losses[0], losses[1])


def runge_kutta(
    players: Players,
    ts: TrainState,
    batches: Batch,
    rates: Pair,
    explicit: Coefficients,
    after_explicit: Coefficients,
) -> tuple[TrainState, Pair]:
    """Both players move by the weighted gradients of the stages, as ODE-GAN does.

    As published, every stage starts from the same state and that of the first one is kept.
    """
    rule, tableau = players.rule, TABLEAUX[players.rule.rk_order]
    steps = (rates[0], rates[0]) if rule.shared_rate else rates
    total, after, losses = players.both(ts, batches, 0, explicit, rule.mask)
    last, total = total, jax.tree.map(lambda g: tableau.weights[0] * g, total)
    for stage, (node, weight) in enumerate(zip(tableau.nodes[1:], tableau.weights[1:], strict=True), 1):
        moved = tuple(apply_updates(ts.params[p], last[p], node * steps[p]) for p in (0, 1))
        draw = stage * (1 if rule.shared_batch else 2) if rule.fresh_stages else 0
        last, _, _ = players.both(ts._replace(params=moved), batches, draw, explicit, rule.mask)
        total = jax.tree.map(lambda t, g, w=weight: t + w * g, total, last)
    for p in (0, 1):
        if any(rule.after_mask[p]):
            draw = 0 if rule.shared_batch else p
            extra, _, _ = players.gradient(
                p, ts, batches, draw, after_explicit, rule.after_mask, terms_only=True
            )
            total = tuple(jax.tree.map(jnp.add, t, extra) if i == p else t for i, t in enumerate(total))
    return players.update_both(ts, total, rates, after), losses
