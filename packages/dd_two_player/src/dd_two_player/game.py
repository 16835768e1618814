"""A differentiable two-player game: two losses on any pytrees, and the gradients of its players."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from dd_two_player.drift import PLAYERS, Coefficients, PlayerTerms, player_index
from dd_two_player.regularization import active_terms
from dd_two_player.regularizers import (
    ESTIMATORS,
    Estimator,
    batch_size,
    frozen_gradients,
    frozen_needed,
    split_batch,
    weighted_slope,
)
from dd_two_player.stopped import hidden_leaves, moving_leaves, seen_leaves

__all__ = ["Game", "GameValues"]

Params = Any
Pair = tuple[Params, Params]
T = TypeVar("T")
SAME_BATCH = ESTIMATORS["biased_estimate_general_grad_fn"]


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

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(self[:2])  # after a transformation they may be anything
        is_known = all(
            isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) and not x.is_deleted()
            for x in leaves
        )
        if not is_known or any(getattr(loss, "shape", None) != () for loss in self.losses):
            return f"losses and gradients of both players in {len(leaves)} leaves"
        losses = ", ".join(f"{float(loss):.4g}" for loss in self.losses)
        sides = ([jnp.abs(g).astype("float32").ravel() for g in jax.tree.leaves(s)] for s in self.gradients)
        sizes = ", ".join(f"{float(jnp.linalg.norm(jnp.concatenate([jnp.zeros(1), *s]))):.4g}" for s in sides)
        return f"losses {losses}; gradients of size {sizes}"


@dataclass(frozen=True)
class Game:
    """Two players, each with a loss of ``(disc_params, gen_params, batch)``; both minimise.

    The first player is called ``disc``, the second ``gen``, after the application; nothing depends on it.
    Whatever a loss needs beside the parameters (data, latents, a random key, labels, a network's state) is
    inside ``batch``: flows, steps and measurements compile the losses once, and what these read from
    elsewhere stays as it was then.

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
            ValueError: For a loss that is no scalar, or, if there are terms, as `check_derivatives`.
        """
        chosen = Coefficients() if coefficients is None else coefficients
        active = active_terms(chosen) if mask is None else active_terms(mask)
        check_pair(params)
        if any(map(any, active)):
            self._check(params, batch, _needed(0, active[0]) | _needed(1, active[1]))
        found = [jax.value_and_grad(self._losses[own], own, has_aux=True)(*params, batch) for own in (0, 1)]
        plain = (found[0][1], found[1][1])  # the factors under stop-gradient as well: computed once
        gradients = list(plain)
        for own, player in enumerate(PLAYERS):
            if any(active[own]):
                slope = weighted_slope(player, self._losses, params, batch, chosen[own], active[own], plain)
                extra = jax.grad(slope, has_aux=True)(params[own])[0]
                gradients[own] = jax.tree.map(jnp.add, plain[own], extra)
        (loss_disc, aux_disc), (loss_gen, aux_gen) = (values for values, _ in found)
        return GameValues((loss_disc, loss_gen), (gradients[0], gradients[1]), (aux_disc, aux_gen))

    def check_derivatives(self, params: Pair, batch: Any) -> None:
        """Refuse losses that hide from autodiff how one player acts on the other.

        For its own gradient a loss may well stop that of the other player's parameters, or of what these
        make. But interaction terms and drift are derivatives along the other player's step. They are compared
        at one random point with what they would be if nothing was stopped. Stops that make no difference,
        such as that of the largest entry in a softmax, pass.

        Raises:
            ValueError: For a parameter that its player moves and the other's loss uses without a derivative,
                in all or in some of its terms.
        """
        self._check(params, batch, {(player, along) for player in (0, 1) for along in (0, 1)})

    def _check(self, params: Pair, batch: Any, needed: set[tuple[int, int]]) -> None:
        """Refuse what `check_derivatives` does, if it spoils one of the derivatives that are needed.

        Args:
            params: Of both players.
            batch: For the losses.
            needed: Pairs of players: whose gradient is differentiated, and along whose step.
        """
        check_pair(params)
        flags = tuple(leaf for leaf in jax.tree.leaves(batch) if isinstance(leaf, bool | int | float))
        kind = (jax.tree.structure(params), jax.tree.structure(batch), flags)
        params = (params[0], params[1])
        if kind not in self._hidden:
            try:
                self._hidden[kind] = self._looked_at(params, batch)
            except jax.errors.ConcretizationTypeError:
                return  # Python code that branches on parameters cannot be traced, and is not looked at
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for player, leaf in sorted(self._hidden[kind]):
            along = paths[leaf][0].idx
            if (player, along) in needed:
                name = f"{PLAYERS[along]}{jax.tree_util.keystr(paths[leaf][1:])}"
                raise ValueError(
                    f"the loss of {PLAYERS[player]} uses {name} behind stop_gradient in some of its terms, "
                    "so that drift, regularisers and Jacobians would miss a part; leave out stop_gradient, "
                    "or put what it stops into the batch."
                )

    def _looked_at(self, params: Pair, batch: Any) -> set[tuple[int, int]]:
        """Return what is hidden in part, see `hidden_leaves`; refuse what is hidden as a whole."""
        values = [lambda pair, f=f: f(*pair, batch)[0] for f in self._losses]
        moved = [moving_leaves(value, params)[0] for value in values]
        seen = [seen_leaves(value, params)[0] for value in values]
        for i, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(params)):
            own = path[0].idx
            if i in seen[own] and i in moved[1 - own] and i not in seen[1 - own]:
                raise ValueError(
                    f"the loss of {PLAYERS[1 - own]} uses {PLAYERS[own]}{jax.tree_util.keystr(path[1:])} but "
                    "has no derivative there, so that drift, regularisers and Jacobians would miss it; leave "
                    "out stop_gradient, which the gradients of a game do not need."
                )

        def gradient(player: int, pair: Pair) -> Params:
            return jax.grad(self._losses[player], player, has_aux=True)(*pair, batch)[0]

        return hidden_leaves([partial(gradient, 0), partial(gradient, 1)], params)

    def _evaluate(self, index: int, disc: Params, gen: Params, batch: Any) -> tuple[Any, Any]:
        """Return a player's loss and what comes with it."""
        found = (self.loss_disc, self.loss_gen)[index](disc, gen, batch)
        paired = isinstance(found, tuple | list) and len(found) == 2
        if paired != self.has_aux:
            raise ValueError(
                f"the loss of {PLAYERS[index]} returns {'a pair' if paired else _described(found)}, and the "
                f"game has has_aux={self.has_aux}; with has_aux=True both losses return (loss, anything), "
                "else the loss alone."
            )
        value, aux = found if paired else (found, None)
        dtype = getattr(value, "dtype", type(value))
        real = isinstance(value, float) or (hasattr(value, "dtype") and jnp.issubdtype(dtype, jnp.floating))
        if not real or jnp.shape(value) != ():
            raise ValueError(
                f"the loss of {PLAYERS[index]} is {_described(value)}; it must be a real scalar, such as 0.0."
            )
        return value, aux

    @cached_property
    def programs(self) -> dict[Any, Callable[..., Any]]:
        """What was compiled for this game, see `flows`; it ends with the game."""
        return {}

    @cached_property
    def _hidden(self) -> dict[Any, set[tuple[int, int]]]:
        """What `hidden_leaves` found, by the structures of parameters and batch, with its numbers."""
        return {}

    @property
    def _losses(self) -> tuple[Callable[..., tuple[Any, Any]], Callable[..., tuple[Any, Any]]]:
        return partial(self._evaluate, 0), partial(self._evaluate, 1)

    def player_gradient(
        self, player: str, params: Pair, batch: Any, terms: PlayerTerms, **how: Any
    ) -> Params:
        """Return one player's gradient alone; see ``player_value_and_gradient``."""
        return self.player_value_and_gradient(player, params, batch, terms, **how)[1]

    def player_value_and_gradient(
        self, player: str, params: Pair, batch: Any, terms: PlayerTerms, *, mask: PlayerTerms, **sources: Any
    ) -> tuple[tuple[Any, Any], Params]:
        """Return one player's loss with its aux, and the loss gradient plus its weighted regularisers.

        Arguments are those of ``regularizer``; ``batch`` is that of the loss as well.
        """
        own = player_index(player)
        estimator = sources.get("estimator", SAME_BATCH)
        whole = estimator.batches == "same" and (estimator.averaged or sources.get("num_shards", 1) == 1)
        if any(mask) and whole and not mask.self_norm:
            self._check(params, batch, _needed(own, mask))
            # One reverse pass for loss and regularisers. The self term needs the loss gradient by itself.
            frozen = frozen_gradients(self._losses, params, batch, frozen_needed(player, mask))
            slope = weighted_slope(player, self._losses, params, batch, terms, mask, frozen)

            def total(own_params: Params) -> tuple[Any, tuple[Any, Any]]:
                extra, (loss, aux) = slope(own_params)
                return loss + extra, (loss, aux)

            (_, found), gradient = jax.value_and_grad(total, has_aux=True)(params[own])
            return found, gradient
        found, gradient = jax.value_and_grad(self._losses[own], own, has_aux=True)(*params, batch)
        if any(mask):
            extra = self.regularizer(player, params, batch, terms, mask=mask, **sources)
            gradient = jax.tree.map(jnp.add, gradient, extra)
        return found, gradient

    def regularizer(
        self,
        player: str,
        params: Pair,
        batch: Any,
        terms: PlayerTerms,
        *,
        mask: PlayerTerms,
        estimator: Estimator = SAME_BATCH,
        resample: Callable[[Any], Any] | None = None,
        second_batch: Any = None,
        num_shards: int = 1,
    ) -> Params:
        """Return the estimated gradient of one player's weighted regularisers alone.

        Args:
            player: ``disc`` or ``gen``.
            params: ``(disc_params, gen_params)``.
            batch: Data of the regularisers.
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
        if not isinstance(estimator, Estimator):
            raise TypeError(f"estimator is {estimator!r}; pass one of ESTIMATORS[{', '.join(ESTIMATORS)}].")
        if not any(mask):
            return jax.tree.map(jnp.zeros_like, params[own])
        self._check(params, batch, _needed(own, mask))
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
            frozen = frozen_gradients(self._losses, params, second, frozen_needed(player, mask))
            slope = weighted_slope(player, self._losses, params, first, terms, mask, frozen)
            return jax.grad(slope, has_aux=True)(params[own])[0]

        if estimator.averaged or num_shards == 1:
            return estimate(differentiated, constant)
        per_shard = jax.vmap(estimate)(_cut(differentiated, num_shards), _cut(constant, num_shards))
        return jax.tree.map(lambda a: a.mean(0), per_shard)


def _needed(own: int, mask: PlayerTerms) -> set[tuple[int, int]]:
    """Return which derivatives a player's terms are made of: of whose gradient, along whose step."""
    blocks = {
        (own, own): mask.self_norm,
        (1 - own, own): mask.other_norm,
        (own, 1 - own): mask.other_dot_prod,
    }
    return {block for block, active in blocks.items() if active}


def check_pair(params: Any) -> None:
    """Refuse what is no pair of trees of real or complex arrays: counters, strings, functions of a module.

    >>> check_pair(3.0)
    Traceback (most recent call last):
    TypeError: params is a float; a game takes a pair (disc_params, gen_params).
    """
    if not isinstance(params, tuple | list) or len(params) != 2:
        given = f"{type(params).__name__}{f' of {len(params)}' if hasattr(params, '__len__') else ''}"
        raise TypeError(f"params is a {given}; a game takes a pair (disc_params, gen_params).")
    for player, side in zip(PLAYERS, params, strict=True):
        for path, leaf in jax.tree_util.tree_leaves_with_path(side):
            kind = getattr(leaf, "dtype", None) or (
                jnp.result_type(leaf) if isinstance(leaf, float | complex) else None
            )
            if kind is None or not jnp.issubdtype(kind, jnp.inexact):
                raise TypeError(
                    f"the parameters of {player} hold {kind or type(leaf).__name__} at "
                    f"{jax.tree_util.keystr(path) or 'their root'}, which has no gradient; split it off, as "
                    "equinox.partition(net, equinox.is_inexact_array) does, and combine inside of the loss."
                )


def _described(value: Any) -> str:
    kind = getattr(value, "dtype", type(value).__name__)
    return f"{kind} of shape {jnp.shape(value)}" if hasattr(value, "shape") else f"{kind}"


def call_compiled(game: Game, body: Callable[..., T], static: Any, params: Pair, *values: Any) -> T:
    """Return ``body(game, static, params, *values)``, compiled once; the program ends with the game.

    Raises:
        TypeError: In one line, if this is no game, or if it does not take such parameters.
        ValueError: Likewise.
    """
    if not isinstance(game, Game):
        raise TypeError(f"game is a {type(game).__name__}; pass a Game(loss_disc, loss_gen).")
    if (body, static) not in game.programs:
        game.programs[body, static] = jax.jit(partial(body, game, static))
    try:
        found: T = game.programs[body, static](params, *values)
    except (TypeError, ValueError) as error:
        check_pair(params)
        shapes = " and ".join(str(jax.tree.map(jnp.shape, side)) for side in params)
        kind = TypeError if isinstance(error, TypeError) else ValueError
        reason = str(error).partition("\n")[0]
        raise kind(f"the game fails at parameters of shapes {shapes}: {reason}") from error
    return found


def _cut(batch: Any, num_shards: int) -> Any:
    size = batch_size(batch)
    if size % num_shards:
        raise ValueError(f"batch size {size} is not divisible by {num_shards} devices.")

    def cut(a: jax.Array) -> jax.Array:
        return a.reshape(num_shards, size // num_shards, *a.shape[1:])

    return jax.tree.map(cut, batch)
