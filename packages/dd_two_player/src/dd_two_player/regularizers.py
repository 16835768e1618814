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

from dd_two_player.drift import PlayerTerms, check_number, player_index

__all__ = ["ESTIMATORS", "Estimator", "frozen_gradients", "split_batch", "weighted_slope"]

Params = Any
Loss = Callable[[Params, Params, Any], tuple[jax.Array, Any]]


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
    """

    name: str
    batches: Literal["same", "halves", "two"]
    averaged: bool


ESTIMATORS: dict[str, Estimator] = {
    e.name: e
    for e in (
        Estimator("biased_estimate_grad_fn", "same", averaged=False),
        Estimator("biased_estimate_general_grad_fn", "same", averaged=True),
        Estimator("biased_estimate_multiple_devices_grad_fn", "same", averaged=True),
        Estimator("unbiased_estimate_fn_lowest_variance", "halves", averaged=True),
        Estimator("unbiased_estimate_fn_different_device_results", "halves", averaged=False),
        Estimator("two_data_estimate_grad_fn", "two", averaged=True),
    )
}


def frozen_gradients(
    losses: tuple[Loss, Loss],
    params: tuple[Params, Params],
    batch: Any,
    needed: tuple[bool, bool] = (True, True),
) -> tuple[Params, Params]:
    """Return ``(grad_phi L_D, grad_theta L_G)``, the constant factors; ``None`` where not needed.

    They are constants of the regularisers because they are computed outside of the differentiated function.
    No stop-gradient is applied, so that fields made of them can themselves be differentiated (Jacobians of
    flows).
    """
    found = (jax.grad(losses[i], i, has_aux=True)(*params, batch)[0] if needed[i] else None for i in (0, 1))
    return tuple(found)  # type: ignore[return-value]  # two of them


def weighted_slope(
    player: str,
    losses: tuple[Loss, Loss],
    params: tuple[Params, Params],
    batch: Any,
    terms: PlayerTerms,
    mask: PlayerTerms,
    frozen: tuple[Params, Params],
) -> Callable[[Params], tuple[jax.Array, tuple[jax.Array, Any]]]:
    """Return the weighted regularisers of ``player`` as a function of its parameters.

    Its value comes with the player's loss and what that returned beside it, from the same forward pass: the
    gradient of loss plus regularisers is one reverse pass.

    Args:
        player: ``disc`` or ``gen``.
        losses: Of both players, ``(disc_params, gen_params, batch) -> (scalar, anything)``.
        params: ``(disc_params, gen_params)``.
        batch: Data of the differentiated factors.
        terms: Coefficients, numbers or traced scalars.
        mask: Static booleans; a term that is false is not computed.
        frozen: The factors under stop-gradient, see :func:`frozen_gradients`.

    Example:
        With ``L_D = L_G = phi * theta`` the interaction term of the discriminator is ``phi * sg(phi)``:

        >>> loss = lambda phi, theta, batch: (phi * theta, None)
        >>> u = frozen_gradients((loss, loss), (2.0, 3.0), None)
        >>> slope = weighted_slope("disc", (loss, loss), (2.0, 3.0), None,
        ...       PlayerTerms(other_dot_prod=1.0), PlayerTerms(False, False, True), u)
        >>> float(jax.grad(slope, has_aux=True)(2.0)[0])
        2.0
    """
    own = player_index(player)
    batch = _single(batch)

    def along(index: int, at: list[Params], directions: dict[int, Params]) -> tuple[Any, Any, Any]:
        """Return loss ``index``, its slope along the directions of the players that move, and its aux."""

        def value(*moved: Params) -> tuple[jax.Array, Any]:
            point = {0: at[0], 1: at[1]} | dict(zip(directions, moved, strict=True))
            return losses[index](point[0], point[1], batch)

        found: tuple[Any, Any, Any] = jax.jvp(
            value, tuple(at[i] for i in directions), tuple(directions.values()), has_aux=True
        )
        return found

    def direction(index: int, active: bool, weight: Any) -> dict[int, Params]:
        return {index: _scaled(_single(frozen[index]), weight)} if active else {}

    def slope(own_params: Params) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        at = [_single(params[0]), _single(params[1])]
        at[own] = _single(own_params)
        moves = direction(own, mask.self_norm, terms.self_norm)
        moves |= direction(1 - own, mask.other_dot_prod, terms.other_dot_prod)
        loss, total, aux = along(own, at, moves)
        if mask.other_norm:
            total = total + along(1 - own, at, direction(1 - own, True, terms.other_norm))[1]
        return total, (loss, aux)

    return slope


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

    >>> first, second = split_batch({"data": jax.numpy.arange(4)})
    >>> second["data"].tolist()
    [2, 3]
    """
    size = batch_size(batch)
    check_even(size)
    return jax.tree.map(lambda a: a[: size // 2], batch), jax.tree.map(lambda a: a[size // 2 :], batch)


def batch_size(batch: Any) -> int:
    """Return the length of the first axis, which all of a batch that is cut must share.

    >>> batch_size({"data": jax.numpy.zeros((4, 2)), "key": jax.random.key(0)})
    Traceback (most recent call last):
    ValueError: this estimator cuts the batch, so that all of it must be arrays of one length along their \
first axis, not of shapes (4, 2), (); put keys and states into the losses: a Game for each step.
    """
    shapes = [jax.numpy.shape(leaf) for leaf in jax.tree.leaves(batch)]
    if not shapes or () in shapes or len({shape[0] for shape in shapes}) > 1:
        raise ValueError(
            "this estimator cuts the batch, so that all of it must be arrays of one length along their first "
            f"axis, not of shapes {', '.join(map(str, shapes))}; put keys and states into the losses: a Game "
            "for each step."
        )
    return shapes[0][0]


def check_even(size: int) -> None:
    """Refuse an odd batch size, which has no two halves.

    >>> check_even(3)
    Traceback (most recent call last):
    ValueError: batch size is 3; estimators that split the batch need an even one.
    """
    if size % 2:
        raise ValueError(f"batch size is {size}; estimators that split the batch need an even one.")


def _single(tree: Params) -> Params:
    """Raise float16 to single precision: a weight times a gradient easily lies below its smallest number."""
    return jax.tree.map(lambda a: a.astype("float32") if _is_half(a) else a, tree)


def _is_half(value: Any) -> bool:
    return hasattr(value, "astype") and value.dtype == "float16"


def _scaled(tree: Params, factor: Any) -> Params:
    """Return a direction; that of steepest ascent is the conjugate of what JAX calls a complex gradient."""
    check_number("a coefficient", factor)
    return jax.tree.map(lambda a: (factor * a.conj()).astype(a.dtype), tree)
