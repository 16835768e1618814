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

import operator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np

__all__ = [
    "CONVENTIONS",
    "SCHEMES",
    "Coefficients",
    "Drift",
    "PlayerTerms",
    "drift_coefficients",
    "opponent",
    "player_index",
]

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
    return PLAYERS[1 - player_index(player)]


def player_index(player: str) -> int:
    """Return 0 for ``disc`` and 1 for ``gen``.

    >>> player_index("discriminator")
    Traceback (most recent call last):
    ValueError: player is 'discriminator'; allowed: disc, gen.
    """
    if player not in PLAYERS:
        raise ValueError(f"player is {player!r}; allowed: {', '.join(PLAYERS)}.")
    return PLAYERS.index(player)


def check_two(name: str, value: Any) -> None:
    """Refuse what does not hold one entry for each player.

    >>> check_two("learning_rates", 0.1)
    Traceback (most recent call last):
    ValueError: learning_rates is 0.1; it must be a pair: one for disc, one for gen.
    """
    if not (isinstance(value, tuple | list) or np.ndim(value) == 1) or len(value) != 2:
        raise ValueError(f"{name} is {value!r}; it must be a pair: one for disc, one for gen.")


def concrete(value: Any) -> np.ndarray | None:
    """Return a number or array in double precision, ``None`` if it is traced and has no value yet.

    What is no real number is NaN, which the caller refuses by name.

    >>> concrete("0.1"), concrete(1j)
    (array(nan), array(nan))
    """
    if isinstance(value, jax.core.Tracer):
        return None
    try:
        return np.asarray(np.nan if isinstance(value, str) or np.iscomplexobj(value) else value, dtype=float)
    except (TypeError, ValueError):
        return np.asarray(np.nan)


def check_number(name: str, value: Any) -> None:
    """Refuse what is no real scalar; an array would be multiplied entry by entry.

    >>> check_number("the rate of disc", np.array([0.1]))
    Traceback (most recent call last):
    ValueError: the rate of disc is an array of shape (1,); it must be one real number.
    """
    known = concrete(value)
    if np.ndim(value) or (np.iscomplexobj(value) if known is None else np.isnan(known)):
        given = f"an array of shape {np.shape(value)}" if np.ndim(value) else repr(value)
        raise ValueError(f"{name} is {given}; it must be one real number.")


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


@dataclass(frozen=True)
class Drift:
    """The drift of a method, with the clock on which it is to be read.

    Coefficients alone do not say whose flow they belong to: those of the joint clock on two unscaled fields
    are the flow of no method at all. This object keeps both together;
    :func:`dd_two_player.modified_flow` takes it.

    Attributes:
        coefficients: The drift coefficient of every term.
        clock: Total rates ``(T_D, T_G)`` of one step.
        convention: ``paper``, ``joint`` or ``original``; see the module's description.

    Example:
        >>> drift = Drift.of((0.5, 0.25), scheme="alternating")
        >>> drift.clock, drift.coefficients.gen.other_dot_prod
        ((0.5, 0.25), -0.25)
        >>> Drift.of((0.5, 0.25), convention="paper").check_common_clock()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: the paper convention gives each player its own clock, here 0.5 and 0.25: ...
    """

    coefficients: Coefficients
    clock: tuple[Scalar, Scalar]
    convention: str = "joint"

    @classmethod
    def of(
        cls,
        learning_rates: tuple[Scalar, Scalar],
        num_updates: tuple[int, int] = (1, 1),
        scheme: str = "simultaneous",
        first: str = "disc",
        convention: str = "joint",
    ) -> Drift:
        """Return the drift of one step; arguments and errors are those of :func:`drift_coefficients`."""
        coefficients = drift_coefficients(learning_rates, num_updates, scheme, first, convention)
        clock = (num_updates[0] * learning_rates[0], num_updates[1] * learning_rates[1])
        return cls(coefficients, clock, convention)

    def added(self, terms: Coefficients) -> Drift:
        """Return the drift of the method whose gradients carry these terms explicitly.

        To the order of the theory explicit terms and drift add up: with the terms of
        ``Regularization.cancel_interaction().coefficients(drift.coefficients)`` no interaction is left.
        """
        pairs = zip(self.coefficients, terms, strict=True)
        total = (PlayerTerms(*(a + b for a, b in zip(*rows, strict=True))) for rows in pairs)
        return Drift(Coefficients(*total), self.clock, self.convention)

    def check_common_clock(self) -> None:
        """Refuse a drift that belongs to no flow of both players.

        Raises:
            ValueError: If each player has its own clock and the two differ.
        """
        first, second = map(concrete, self.clock)
        if self.convention != "joint" and (first is None or second is None or np.any(first != second)):
            raise ValueError(
                f"the {self.convention} convention gives each player its own clock, here {self.clock[0]} and "
                f"{self.clock[1]}: there is no flow of both; use convention='joint'."
            )


def _is_integer(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def _check(lrs: Any, num_updates: Any, scheme: str, first: str, convention: str) -> None:
    for what, given, allowed in (
        ("scheme", scheme, SCHEMES),
        ("first", first, PLAYERS),
        ("convention", convention, CONVENTIONS),
    ):
        if given not in allowed:
            raise ValueError(f"{what} is {given!r}; allowed: {', '.join(allowed)}.")
    check_two("learning_rates", lrs)
    check_two("num_updates", num_updates)
    for player, rate in zip(PLAYERS, lrs, strict=True):
        value = concrete(rate)
        if value is not None and not np.all(np.isfinite(value) & (value > 0)):
            raise ValueError(f"learning rate of {player} is {rate}; it must be positive and finite.")
        check_number(f"learning rate of {player}", rate)
    for player, count in zip(PLAYERS, num_updates, strict=True):
        if isinstance(count, bool) or not _is_integer(count) or count < 1:
            raise ValueError(f"num_updates of {player} is {count!r}; it must be an integer of at least 1.")
    if scheme == "simultaneous" and tuple(map(int, num_updates)) != (1, 1):
        raise ValueError(
            "simultaneous updates take one update per player and step, "
            f"got num_updates={tuple(map(int, num_updates))}; "
            "use scheme='alternating' for more."
        )
