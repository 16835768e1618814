"""Discretization drift: what a discrete method adds to the flow of a two-player game.

The players follow ``f = -grad_phi L_D`` and ``g = -grad_theta L_G``. Backward error analysis gives the flow
that the discrete updates really track, to second order in the learning rates:

    phi'   = f - a1 f_phi f   - a3 f_theta g
    theta' = g - b1 g_theta g - b3 g_phi f

``a1, b1`` belong to the *self* terms and ``a3, b3`` to the *interaction* terms. In the language of losses
the self term is the gradient of ``coefficient * <grad_self L_self, sg(grad_self L_self)>`` and the
interaction term that of ``coefficient * <grad_other L_self, sg(grad_other L_other)>``, with ``sg`` =
stop-gradient.

Three conventions are in use. They agree for equal rates and one update per player.

* ``paper``: each player has its own clock; phi is read at its total rate ``T_D = n_D eta_D``, theta at
  ``T_G``. Right for the local error of **one** step. With unequal rates it must not be integrated over
  several steps.
* ``joint``: one clock, the fields multiplied by ``T_D`` and ``T_G``, one step is one unit of time. Composes
  over steps.
* ``original``: the numbers of the published experiments' code, which uses rates per update and divides the
  self term by the number of updates. Equal to ``paper`` when every number of updates is one; loses the third
  order otherwise.

Source: the theorems on modified flows in Rosca et al. 2021 (arXiv 2105.13922) for ``paper``.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

__all__ = ["CONVENTIONS", "SCHEMES", "Coefficients", "PlayerTerms", "drift_coefficients", "opponent"]

Scalar = Any  # a Python number or a traced JAX scalar
Scheme = Literal["simultaneous", "alternating"]
Player = Literal["disc", "gen"]
Convention = Literal["paper", "joint", "original"]

SCHEMES: tuple[str, ...] = get_args(Scheme)
PLAYERS: tuple[str, ...] = get_args(Player)
CONVENTIONS: tuple[str, ...] = get_args(Convention)


class PlayerTerms(NamedTuple):
    """One number per regularisation term of a player (coefficients, multipliers or a mask).

    Attributes:
        self_norm: ``<grad_self L_self, sg(grad_self L_self)>``, the player's own gradient norm (half,
            squared).
        other_norm: ``<grad_other L_other, sg(grad_other L_other)>``, the opponent's gradient norm.
        other_dot_prod: ``<grad_other L_self, sg(grad_other L_other)>``, the interaction term.
    """

    self_norm: Scalar = 0.0
    other_norm: Scalar = 0.0
    other_dot_prod: Scalar = 0.0


class Coefficients(NamedTuple):
    """The terms of both players; also a pytree, so values may be traced."""

    disc: PlayerTerms = PlayerTerms()
    gen: PlayerTerms = PlayerTerms()


def opponent(player: str) -> str:
    """Return the other player.

    >>> opponent("disc")
    'gen'
    """
    return "gen" if player == "disc" else "disc"


def drift_coefficients(
    lrs: tuple[Scalar, Scalar],
    num_updates: tuple[int, int] = (1, 1),
    scheme: str = "simultaneous",
    first: str = "disc",
    convention: str = "paper",
) -> Coefficients:
    """Return the coefficients of the drift terms of one step.

    Args:
        lrs: Learning rates ``(disc, gen)`` of ONE update; Python numbers or traced scalars.
        num_updates: Updates per step ``(disc, gen)``; both must be one for simultaneous updates.
        scheme: ``simultaneous`` or ``alternating``.
        first: Who moves first in an alternating step.
        convention: ``paper``, ``joint`` or ``original``; see the module's description.

    Returns:
        The coefficient of each regulariser that the discrete method adds implicitly to that player's loss
        gradient; zero for ``other_norm``, which is no drift term.

    Raises:
        ValueError: For rates that are not positive and finite, updates below one, unknown names.

    Example:
        >>> drift_coefficients((0.1, 0.1)).gen
        PlayerTerms(self_norm=0.05, other_norm=0.0, other_dot_prod=0.05)
        >>> drift_coefficients((0.5, 0.25), scheme="alternating").gen.other_dot_prod
        -0.375
        >>> drift_coefficients((0.5, 0.25), scheme="alternating", convention="joint").gen.other_dot_prod
        -0.25
    """
    _check(lrs, num_updates, scheme, first, convention)
    rate = {"disc": lrs[0], "gen": lrs[1]}
    updates = {"disc": num_updates[0], "gen": num_updates[1]}
    clock = rate if convention == "original" else {p: updates[p] * rate[p] for p in PLAYERS}

    terms = {}
    for player in PLAYERS:
        other = opponent(player)
        self_norm = rate[player] / 2
        if convention == "original":
            self_norm = self_norm / updates[player]
        moves_second = scheme == "alternating" and player != first
        if convention == "joint":
            interaction = -clock[other] / 2 if moves_second else clock[other] / 2
        else:
            interaction = clock[player] / 2 - clock[other] if moves_second else clock[player] / 2
        terms[player] = PlayerTerms(self_norm, 0.0, interaction)
    return Coefficients(disc=terms["disc"], gen=terms["gen"])


def _check(lrs: Any, num_updates: Any, scheme: str, first: str, convention: str) -> None:
    for what, given, allowed in (
        ("scheme", scheme, SCHEMES),
        ("first", first, PLAYERS),
        ("convention", convention, CONVENTIONS),
    ):
        if given not in allowed:
            raise ValueError(f"{what} is {given!r}; allowed: {', '.join(allowed)}.")
    for player, rate in zip(PLAYERS, lrs, strict=True):
        if isinstance(rate, int | float) and not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"learning rate of {player} is {rate}; it must be positive and finite.")
    for player, count in zip(PLAYERS, num_updates, strict=True):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"num_updates of {player} is {count!r}; it must be an integer of at least 1.")
    if scheme == "simultaneous" and tuple(num_updates) != (1, 1):
        raise ValueError(
            "simultaneous updates take one update per player and step, "
            f"got num_updates={tuple(num_updates)}; "
            "use scheme='alternating' for more."
        )
