r"""Gradients of the three regularisers of a player, in one second-order pass, and their six estimators.

For player ``p`` with opponent ``q``, parameters ``x_p, x_q`` and losses ``L_p, L_q``:

    self_norm       < grad_p L_p, sg(grad_p L_p) >
    other_norm      < grad_q L_q, sg(grad_q L_q) >
    other_dot_prod  < grad_q L_p, sg(grad_q L_q) >

each differentiated with respect to ``x_p`` only. The factor under stop-gradient may come from another batch,
which makes the estimate unbiased. The weighted sum of all terms is a directional derivative of the two
losses,

    D L_p [c_self u_p, c_dot u_q] + D L_q [0, c_norm u_q],   u_p = sg(grad_p L_p), u_q = sg(grad_q L_q),

so one forward-mode pass and one reverse pass give its gradient, whatever the number of terms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from dd_two_player.drift import PlayerTerms, player_index

__all__ = ["ESTIMATORS", "Estimator", "frozen_gradients", "regularizer_gradient", "split_batch"]

Params = Any
Loss = Callable[[Params, Params, Any], jax.Array]


@dataclass(frozen=True)
class Estimator:
    """Where the two factors of a regulariser take their data from.

    Attributes:
        name: The published name, used in configurations.
        batches: ``same``: both factors use the batch of the loss. ``halves``: the first half of the batch,
            with fresh latents, in the differentiated factor and the second half in the factor under
            stop-gradient. ``two``: the caller supplies two batches.
        averaged: Whether the factor under stop-gradient is averaged over devices, which makes the result
            independent of their number; otherwise every device multiplies its own two factors.
        summary: One line for documentation and error messages.
    """

    name: str
    batches: Literal["same", "halves", "two"]
    averaged: bool
    summary: str


ESTIMATORS: dict[str, Estimator] = {
    e.name: e
    for e in (
        Estimator("biased_estimate_grad_fn", "same", False, "same batch, each device on its own"),
        Estimator("biased_estimate_general_grad_fn", "same", True, "same batch, averaged over devices"),
        Estimator(
            "biased_estimate_multiple_devices_grad_fn", "same", True, "same batch, averaged over devices"
        ),
        Estimator(
            "unbiased_estimate_fn_lowest_variance", "halves", True, "two half batches, averaged over devices"
        ),
        Estimator(
            "unbiased_estimate_fn_different_device_results", "halves", False, "two half batches per device"
        ),
        Estimator("two_data_estimate_grad_fn", "two", True, "two explicit batches"),
    )
}


def frozen_gradients(
    loss_disc: Loss,
    loss_gen: Loss,
    params: tuple[Params, Params],
    batch: Any,
    needed: tuple[bool, bool] = (True, True),
) -> tuple[Params, Params]:
    """Return ``(grad_phi L_D, grad_theta L_G)``, the constant factors; ``None`` where not needed.

    They are constants of the regularisers because they are computed outside of the differentiated function.
    No stop-gradient is applied, so that fields made of them can themselves be differentiated (Jacobians of
    flows).
    """
    disc, gen = params
    u_disc = jax.grad(loss_disc, 0)(disc, gen, batch) if needed[0] else None
    u_gen = jax.grad(loss_gen, 1)(disc, gen, batch) if needed[1] else None
    return u_disc, u_gen


def regularizer_gradient(
    player: str,
    loss_disc: Loss,
    loss_gen: Loss,
    params: tuple[Params, Params],
    batch: Any,
    terms: PlayerTerms,
    mask: PlayerTerms,
    frozen: tuple[Params, Params],
) -> Params:
    """Return the gradient of the weighted regularisers with respect to the parameters of ``player``.

    Args:
        player: ``disc`` or ``gen``.
        loss_disc: ``(disc_params, gen_params, batch) -> scalar``.
        loss_gen: Same for the generator.
        params: ``(disc_params, gen_params)``.
        batch: Data of the differentiated factors.
        terms: Coefficients, numbers or traced scalars.
        mask: Static booleans; a term that is false is not computed.
        frozen: The factors under stop-gradient, see :func:`frozen_gradients`.

    Example:
        With ``L_D = L_G = phi * theta`` the interaction term of the discriminator is ``phi * sg(phi)``:

        >>> loss = lambda phi, theta, batch: phi * theta
        >>> u = frozen_gradients(loss, loss, (2.0, 3.0), None)
        >>> float(regularizer_gradient("disc", loss, loss, (2.0, 3.0), None,
        ...       PlayerTerms(other_dot_prod=1.0), PlayerTerms(False, False, True), u))
        2.0
    """
    own = player_index(player)
    losses = (loss_disc, loss_gen)
    u_own, u_other = frozen[own], frozen[1 - own]

    def along(index: int, own_params: Params, u_first: Params | None, u_second: Params | None) -> jax.Array:
        """Differentiate loss ``index`` along the two directions; ``None`` is no direction."""

        def value(own_at: Params, other_at: Params) -> jax.Array:
            at = (own_at, other_at) if own == 0 else (other_at, own_at)
            return losses[index](*at, batch)

        other_params = params[1 - own]
        if u_second is None:
            slope: jax.Array = jax.jvp(lambda x: value(x, other_params), (own_params,), (u_first,))[1]
        elif u_first is None:
            slope = jax.jvp(lambda y: value(own_params, y), (other_params,), (u_second,))[1]
        else:
            slope = jax.jvp(value, (own_params, other_params), (u_first, u_second))[1]
        return slope

    def weighted(own_params: Params) -> jax.Array:
        parts = []
        if mask.self_norm or mask.other_dot_prod:
            self_part = _scaled(u_own, terms.self_norm) if mask.self_norm else None
            dot_part = _scaled(u_other, terms.other_dot_prod) if mask.other_dot_prod else None
            parts.append(along(own, own_params, self_part, dot_part))
        if mask.other_norm:
            parts.append(along(1 - own, own_params, None, _scaled(u_other, terms.other_norm)))
        return sum(parts[1:], parts[0])

    if not any(mask):
        return jax.tree.map(jnp.zeros_like, params[own])
    return jax.grad(weighted)(params[own])


def frozen_needed(player: str, mask: PlayerTerms) -> tuple[bool, bool]:
    """Return whether the factors of (disc, gen) are needed by the active terms of ``player``.

    >>> frozen_needed("disc", PlayerTerms(False, True, False))
    (False, True)
    """
    own, other = bool(mask.self_norm), bool(mask.other_norm or mask.other_dot_prod)
    return (own, other) if player_index(player) == 0 else (other, own)


def split_batch(batch: Any) -> tuple[Any, Any]:
    """Split every array of a batch along its first axis into first and second half.

    Raises:
        ValueError: For an odd batch size.

    >>> first, second = split_batch({"data": jnp.arange(4)})
    >>> second["data"].tolist()
    [2, 3]
    """
    for leaf in jax.tree.leaves(batch):
        check_even(leaf.shape[0])
    first = jax.tree.map(lambda a: a[: a.shape[0] // 2], batch)
    second = jax.tree.map(lambda a: a[a.shape[0] // 2 :], batch)
    return first, second


def check_even(size: int) -> None:
    """Refuse an odd batch size, which has no two halves.

    >>> check_even(3)
    Traceback (most recent call last):
    ValueError: batch size is 3; estimators that split the batch need an even one.
    """
    if size % 2:
        raise ValueError(f"batch size is {size}; estimators that split the batch need an even one.")


def _scaled(tree: Params, factor: Any) -> Params:
    return jax.tree.map(lambda a: (factor * a).astype(a.dtype), tree)
