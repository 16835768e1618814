"""A differentiable two-player game: two losses on any pytrees, and the gradients of its players."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from dd_two_player.drift import Coefficients, PlayerTerms, player_index
from dd_two_player.regularization import active_terms
from dd_two_player.regularizers import (
    ESTIMATORS,
    Estimator,
    frozen_gradients,
    frozen_needed,
    regularizer_gradient,
    split_batch,
)

__all__ = ["Game"]

Params = Any
Pair = tuple[Params, Params]


@dataclass(frozen=True)
class Game:
    """Two players, each with a loss of ``(disc_params, gen_params, batch)``; both minimise.

    The first player is called ``disc``, the second ``gen``, after the application; nothing depends on it.
    Whatever a loss needs beside the parameters (data, latents) is inside ``batch``.

    Attributes:
        loss_disc: Loss of the first player, a scalar.
        loss_gen: Loss of the second player, a scalar.

    Example:
        Consensus optimisation on the bilinear game ``L_D = phi * theta = -L_G``:

        >>> game = Game(lambda phi, theta, batch: phi * theta, lambda phi, theta, batch: -phi * theta)
        >>> recipe = Coefficients(PlayerTerms(other_norm=0.5), PlayerTerms(other_norm=0.5))
        >>> [float(g) for g in game.gradients((2.0, 3.0), None, recipe)]
        [4.0, -0.5]
    """

    loss_disc: Callable[[Params, Params, Any], jax.Array]
    loss_gen: Callable[[Params, Params, Any], jax.Array]

    def gradients(
        self,
        params: Pair,
        batch: Any,
        coefficients: Coefficients | None = None,
        *,
        mask: Coefficients | None = None,
    ) -> Pair:
        """Return ``(disc_gradient, gen_gradient)``, each with the same-batch regularisers added.

        Args:
            params: ``(disc_params, gen_params)``.
            batch: Passed to both losses.
            coefficients: Weights of the regularisers, of the shape that ``drift_coefficients`` returns.
            mask: Static booleans saying which terms to compute; by default all but those that are the number
                zero.
        """
        chosen = coefficients or Coefficients()
        active = mask or active_terms(chosen)
        return (
            self.player_gradient("disc", params, batch, chosen.disc, mask=active.disc),
            self.player_gradient("gen", params, batch, chosen.gen, mask=active.gen),
        )

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
        loss = (self.loss_disc, self.loss_gen)[own]
        gradient = jax.grad(loss, own)(*params, batch)
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
            frozen = frozen_gradients(
                self.loss_disc, self.loss_gen, params, second, frozen_needed(player, mask)
            )
            return regularizer_gradient(
                player, self.loss_disc, self.loss_gen, params, first, terms, mask, frozen
            )

        if estimator.averaged or num_shards == 1:
            return estimate(differentiated, constant)
        per_shard = jax.vmap(estimate)(_cut(differentiated, num_shards), _cut(constant, num_shards))
        return jax.tree.map(lambda a: a.mean(0), per_shard)


def _cut(batch: Any, num_shards: int) -> Any:
    def cut(a: jax.Array) -> jax.Array:
        if a.shape[0] % num_shards:
            raise ValueError(f"batch size {a.shape[0]} is not divisible by {num_shards} devices.")
        return a.reshape(num_shards, a.shape[0] // num_shards, *a.shape[1:])

    return jax.tree.map(cut, batch)
