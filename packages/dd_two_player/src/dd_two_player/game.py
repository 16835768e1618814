"""A differentiable two-player game: two losses on any pytrees, and the gradients of its players."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dd_two_player.drift import PLAYERS, Coefficients, PlayerTerms, player_index
from dd_two_player.regularization import active_terms
from dd_two_player.regularizers import (
    ESTIMATORS,
    Estimator,
    frozen_gradients,
    frozen_needed,
    regularizer_gradient,
    split_batch,
)

__all__ = ["Game", "GameValues"]

Params = Any
Pair = tuple[Params, Params]


class GameValues(NamedTuple):
    """What both players see at one point.

    Attributes:
        losses: ``(L_D, L_G)``, without regularisers.
        gradients: ``(disc, gen)``, regularisers included.
        aux: What the losses returned beside their value; ``(None, None)`` without ``has_aux``.
    """

    losses: Pair
    gradients: Pair
    aux: Pair


@dataclass(frozen=True)
class Game:
    """Two players, each with a loss of ``(disc_params, gen_params, batch)``; both minimise.

    The first player is called ``disc``, the second ``gen``, after the application; nothing depends on it.
    Whatever a loss needs beside the parameters (data, latents, a random key, labels, a network's state) is
    inside ``batch``.

    Attributes:
        loss_disc: Loss of the first player, a scalar.
        loss_gen: Loss of the second player, a scalar.
        has_aux: Whether both losses return ``(scalar, anything)``, as in ``jax.value_and_grad``.

    Example:
        Consensus optimisation on the bilinear game ``L_D = phi * theta = -L_G``:

        >>> game = Game(lambda phi, theta, batch: phi * theta, lambda phi, theta, batch: -phi * theta)
        >>> recipe = Coefficients(PlayerTerms(other_norm=0.5), PlayerTerms(other_norm=0.5))
        >>> [float(g) for g in game.gradients((2.0, 3.0), None, recipe)]
        [4.0, -0.5]
        >>> [float(v) for v in game.value_and_gradients((2.0, 3.0), None).losses]
        [6.0, -6.0]
    """

    loss_disc: Callable[[Params, Params, Any], Any]
    loss_gen: Callable[[Params, Params, Any], Any]
    has_aux: bool = False

    def gradients(
        self,
        params: Pair,
        batch: Any,
        coefficients: Coefficients | None = None,
        *,
        mask: Coefficients | None = None,
    ) -> Pair:
        """Return ``(disc_gradient, gen_gradient)``; see ``value_and_gradients``."""
        return self.value_and_gradients(params, batch, coefficients, mask=mask).gradients

    def value_and_gradients(
        self,
        params: Pair,
        batch: Any,
        coefficients: Coefficients | None = None,
        *,
        mask: Coefficients | None = None,
    ) -> GameValues:
        """Return both losses and gradients, each with the same-batch regularisers added, in one pass.

        Args:
            params: ``(disc_params, gen_params)``.
            batch: Passed to both losses.
            coefficients: Weights of the regularisers, of the shape that ``drift_coefficients`` returns.
            mask: Static booleans saying which terms to compute; by default all but those that are the number
                zero.

        Raises:
            TypeError: For a leaf of the parameters that cannot be differentiated, by its path.
            ValueError: For a loss that is no scalar.
        """
        chosen = coefficients or Coefficients()
        active = mask or active_terms(chosen)
        losses, gradients, aux = [], [], []
        for own, player in enumerate(PLAYERS):
            check_leaves(player, params[own])
            loss = partial(self._evaluate, own)
            (value, extra), gradient = jax.value_and_grad(loss, own, has_aux=True)(*params, batch)
            if any(active[own]):
                terms = self.regularizer(player, params, batch, chosen[own], mask=active[own])
                gradient = jax.tree.map(jnp.add, gradient, terms)
            losses.append(value)
            gradients.append(gradient)
            aux.append(extra)
        return GameValues((losses[0], losses[1]), (gradients[0], gradients[1]), (aux[0], aux[1]))

    def _evaluate(self, index: int, disc: Params, gen: Params, batch: Any) -> tuple[Any, Any]:
        """Return a player's loss and what comes with it."""
        found = (self.loss_disc, self.loss_gen)[index](disc, gen, batch)
        value, aux = found if self.has_aux else (found, None)
        if isinstance(value, tuple | list | dict) or jnp.shape(value) != ():
            given = f"shape {jnp.shape(value)}" if hasattr(value, "shape") else type(value).__name__
            raise ValueError(
                f"the loss of {PLAYERS[index]} returns {given}; it must return a scalar, or, with "
                "Game(..., has_aux=True), a pair of a scalar and anything."
            )
        return value, aux

    def _scalar(self, index: int) -> Callable[[Params, Params, Any], Any]:
        return lambda disc, gen, batch: self._evaluate(index, disc, gen, batch)[0]

    def player_gradient(
        self,
        player: str,
        params: Pair,
        batch: Any,
        terms: PlayerTerms,
        *,
        mask: PlayerTerms,
        estimator: Estimator = ESTIMATORS["biased_estimate_general_grad_fn"],
        resample: Callable[[Any], Any] | None = None,
        second_batch: Any = None,
        num_shards: int = 1,
    ) -> Params:
        """Return one player's loss gradient plus its weighted regularisers.

        Args:
            player: ``disc`` or ``gen``.
            params: ``(disc_params, gen_params)``.
            batch: Batch of the loss.
            terms: Weights of the regularisers, may be traced.
            mask: Static booleans; terms that are false are not computed.
            estimator: Where the regularisers take their two factors from.
            resample: Replaces the latents of the split halves by fresh ones: a function of ``(first,
                second)``.
            second_batch: The batch under stop-gradient for the two-batch estimator.
            num_shards: Devices that an estimator without averaging imitates; the batch is cut into that many
                parts.
        """
        own = player_index(player)
        gradient = jax.grad(self._scalar(own), own)(*params, batch)
        if not any(mask):
            return gradient
        regularizer = self.regularizer(
            player,
            params,
            batch,
            terms,
            mask=mask,
            estimator=estimator,
            resample=resample,
            second_batch=second_batch,
            num_shards=num_shards,
        )
        return jax.tree.map(jnp.add, gradient, regularizer)

    def regularizer(
        self,
        player: str,
        params: Pair,
        batch: Any,
        terms: PlayerTerms,
        *,
        mask: PlayerTerms,
        estimator: Estimator = ESTIMATORS["biased_estimate_general_grad_fn"],
        resample: Callable[[Any], Any] | None = None,
        second_batch: Any = None,
        num_shards: int = 1,
    ) -> Params:
        """Return the estimated gradient of the weighted regularisers alone, see ``player_gradient``."""
        player_index(player)  # refuses a name that is none
        if estimator.batches == "two":
            if second_batch is None:
                raise ValueError(f"estimator {estimator.name} needs two batches; pass second_batch.")
            differentiated, constant = batch, second_batch
        elif estimator.batches == "halves":
            differentiated, constant = split_batch(batch)
            if resample is not None:
                differentiated, constant = resample((differentiated, constant))
        else:
            differentiated = constant = batch

        def estimate(first: Any, second: Any) -> Params:
            losses = (self._scalar(0), self._scalar(1))
            frozen = frozen_gradients(*losses, params, second, frozen_needed(player, mask))
            return regularizer_gradient(player, *losses, params, first, terms, mask, frozen)

        if estimator.averaged or num_shards == 1:
            return estimate(differentiated, constant)
        per_shard = jax.vmap(estimate)(_cut(differentiated, num_shards), _cut(constant, num_shards))
        return jax.tree.map(lambda a: a.mean(0), per_shard)


def check_leaves(player: str, params: Params) -> None:
    """Refuse what is no array of real or complex numbers: counters, strings, functions of a module."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        kind = getattr(leaf, "dtype", None) or (
            jnp.result_type(leaf) if isinstance(leaf, float | complex) else None
        )
        if kind is None or not jnp.issubdtype(kind, jnp.inexact):
            raise TypeError(
                f"the parameters of {player} hold {kind or type(leaf).__name__} at "
                f"{jax.tree_util.keystr(path) or 'their root'}, which has no gradient; split it off, as "
                "equinox.partition(net, equinox.is_inexact_array) does, and combine inside of the loss."
            )


def _cut(batch: Any, num_shards: int) -> Any:
    def cut(a: jax.Array) -> jax.Array:
        if a.shape[0] % num_shards:
            raise ValueError(f"batch size {a.shape[0]} is not divisible by {num_shards} devices.")
        return a.reshape(num_shards, a.shape[0] // num_shards, *a.shape[1:])

    return jax.tree.map(cut, batch)
