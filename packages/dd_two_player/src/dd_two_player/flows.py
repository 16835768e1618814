"""Flows of a game: the plain field, modified fields of backward error analysis, discrete paths.

Everything here is deterministic and low-dimensional by intention: toy games and checks of the theory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.integrate import solve_ivp

from dd_two_player.drift import PLAYERS, Coefficients, Drift, check_number, check_two, drift_coefficients
from dd_two_player.game import Game, call_compiled
from dd_two_player.regularization import active_terms
from dd_two_player.runge_kutta import TABLEAUX, apply_updates
from gdyn_common.errors import require_count

__all__ = [
    "discrete_path",
    "integrate",
    "jacobian",
    "modified_field",
    "modified_flow",
    "runge_kutta_map",
    "step_map",
]

Pair = tuple[Any, Any]


def modified_field(
    game: Game,
    coefficients: Coefficients | None = None,
    *,
    rates: tuple[float, float] | None = None,
    batch: Any = None,
) -> Callable[[Pair], Pair]:
    """Return the vector field of a game with given terms; for the flow of a method use `modified_flow`.

    Args:
        game: The two losses.
        coefficients: Drift coefficients; the plain flow without.
        rates: Factors of the two players' fields: ``(1, 1)`` for the paper's own-clock convention, the total
            rates ``(T_D, T_G)`` for the joint clock in which one step is one unit of time. Must be said when
            there are coefficients, because these do not say to which clock they belong.
        batch: Passed to the losses.

    Returns:
        ``(phi, theta) -> (phi', theta')``.

    Raises:
        ValueError: For coefficients without rates.
        TypeError: For a `Drift`, which `modified_flow` takes.

    The field raises the errors of `Game.check_derivatives`.

    Example:
        >>> game = Game(lambda p, t, _: -p * t, lambda p, t, _: p * t)
        >>> field = modified_field(game, drift_coefficients((0.2, 0.2)), rates=(1.0, 1.0))
        >>> [round(float(v), 6) for v in field((1.0, 0.0))]
        [0.1, -1.0]
    """
    if isinstance(coefficients, Drift):
        raise TypeError("modified_field takes coefficients; use modified_flow(game, drift) for a Drift.")
    if coefficients is not None and rates is None:
        raise ValueError(
            "coefficients do not say to which clock they belong; pass rates=(1.0, 1.0) for the paper's own "
            "clocks, or use modified_flow(game, Drift.of(learning_rates))."
        )
    chosen = Coefficients() if coefficients is None else coefficients
    rates = (1.0, 1.0) if rates is None else rates
    check_two("rates", rates)
    for player, rate in zip(PLAYERS, rates, strict=True):
        check_number(f"rates of {player}", rate)
    mask = active_terms(chosen)

    def field(params: Pair) -> Pair:
        return call_compiled(game, _field, mask, params, chosen, rates, batch)

    return field


def modified_flow(game: Game, drift: Drift, *, batch: Any = None) -> Callable[[Pair], Pair]:
    """Return the flow that a method follows; one unit of time is one step of the method.

    Args:
        game: The two losses.
        drift: From `Drift.of`, with the rates, turns and numbers of updates of the method.
        batch: Passed to the losses.

    Returns:
        ``(phi, theta) -> (phi', theta')``; after ``n`` units of time it is where the method is after ``n``
        steps, up to the third order in the rates.

    Raises:
        ValueError: If the drift's convention gives each player its own clock and the two differ.

    Example:
        One step of size 0.1 on ``L_D = phi theta = -L_G`` against its flow, without drift and with it:

        >>> game = Game(lambda p, t, _: p * t, lambda p, t, _: -p * t)
        >>> step = discrete_path(step_map(game, (0.1, 0.1)), (1.0, 1.0), 1)[-1]
        >>> plain = integrate(modified_field(game, rates=(0.1, 0.1)), (1.0, 1.0), [1.0])[-1]
        >>> flow = integrate(modified_flow(game, Drift.of((0.1, 0.1))), (1.0, 1.0), [1.0])[-1]
        >>> bool(abs(step - plain).max() > 4e-3), bool(abs(step - flow).max() < 1e-3)
        (True, True)
    """
    if not isinstance(drift, Drift):
        raise TypeError(
            f"drift is a {type(drift).__name__}; modified_flow takes a Drift: Drift.of(learning_rates, ...)."
        )
    drift.check_common_clock()
    return modified_field(game, drift.coefficients, rates=drift.clock, batch=batch)


def _field(
    game: Game,
    mask: Coefficients,
    params: Pair,
    coefficients: Coefficients,
    rates: tuple[Any, Any],
    batch: Any,
) -> Pair:
    game.check_derivatives(params, batch)  # a field may be differentiated
    disc, gen = game.gradients(params, batch, coefficients, mask=mask)
    down = lambda rate, side: jax.tree.map(lambda a: (-rate * a.conj()).astype(a.dtype), side)  # noqa: E731
    return down(rates[0], disc), down(rates[1], gen)


def integrate(
    field: Callable[[Any], Any],
    start: Any,
    times: Any,
    *,
    rtol: float = 1e-10,
    atol: float = 1e-12,
    max_evaluations: int = 100_000,
) -> np.ndarray:
    """Integrate a field with an adaptive Runge-Kutta method of order 8.

    A field in single precision is integrated to 5e-7: below that it is rounding, which no step resolves.

    Returns:
        Flattened parameters at ``times``, shape ``(len(times), dim)``, complex if the start is; rows after a
        blow-up are NaN.

    Raises:
        ValueError: If times do not increase from 0, if start or field are not finite there, or if the field
            does not have the size of the start.
        TypeError: If the field is complex and the start is not.
        FloatingPointError: If the field changes so fast that ``max_evaluations`` do not reach the end.
    """
    grid = np.asarray(times, dtype=float)
    finite = grid.ndim == 1 and grid.size > 0 and np.isfinite(grid).all()
    if not finite or grid[0] < 0 or np.any(np.diff(grid) <= 0):
        raise ValueError(f"times must be finite, increasing and not negative, got {grid!r}.")
    flat, unravel = _flatten(start), _unflattener(start)
    first = field(unravel(flat))
    slope = _flatten(first)
    if slope.size != flat.size:
        raise ValueError(f"the field has {slope.size} numbers and the start {flat.size}; they must agree.")
    if np.iscomplexobj(slope) and not np.iscomplexobj(flat):
        raise TypeError("the field is complex and the start is real; pass a complex start.")
    if not (np.isfinite(flat).all() and np.isfinite(slope).all()):
        raise ValueError("the start, or the field there, is not finite; there is no flow.")
    types = [np.asarray(a).dtype for a in jax.tree.leaves(first)]
    rounding = max((float(jnp.finfo(t).eps) for t in types if jnp.issubdtype(t, jnp.inexact)), default=0.0)
    rtol, atol = max(rtol, 4 * rounding), max(atol, rounding * np.abs(flat).max(initial=0.0))
    left = iter(range(max_evaluations))

    def derivative(time: float, x: np.ndarray) -> np.ndarray:
        if next(left, None) is None:
            raise FloatingPointError(
                f"the field changes too fast: {max_evaluations} evaluations reached time {time:g} of "
                f"{grid[-1]:g}; lower the learning rates or the time, or raise max_evaluations."
            )
        return _flatten(field(unravel(x)))

    path = np.full((grid.size, flat.size), np.nan, dtype=flat.dtype)
    if grid[-1] == 0:
        path[0] = flat
        return path
    with np.errstate(over="ignore", invalid="ignore"):  # a blow-up, which the path shows
        solution = solve_ivp(derivative, (0.0, grid[-1]), flat, "DOP853", grid, rtol=rtol, atol=atol)
    path[: solution.y.shape[1]] = solution.y.T
    return path


def step_map(
    game: Game,
    learning_rates: tuple[float, float],
    *,
    num_updates: tuple[int, int] = (1, 1),
    scheme: str = "simultaneous",
    first: str = "disc",
    coefficients: Coefficients | None = None,
    batch: Any = None,
) -> Callable[[Pair], Pair]:
    """Return one gradient-descent step of a game as a map of the parameters, regularisers included."""
    drift_coefficients(learning_rates, num_updates, scheme, first)  # validates the setting
    chosen = Coefficients() if coefficients is None else coefficients
    turns = Turns(scheme, first, (int(num_updates[0]), int(num_updates[1])), active_terms(chosen))

    def step(params: Pair) -> Pair:
        return call_compiled(game, _step, turns, params, chosen, learning_rates, batch)

    return step


class Turns(NamedTuple):
    """The static part of a step: compiled once, whatever the rates and coefficients."""

    scheme: str
    first: str
    num_updates: tuple[int, int]
    mask: Coefficients = active_terms(Coefficients())

    def order(self) -> list[tuple[int, ...]]:
        """Return who moves, update by update.

        >>> Turns("alternating", "gen", (1, 2)).order()
        [(1,), (1,), (0,)]
        """
        if self.scheme == "simultaneous":
            return [(0, 1)]
        players = (0, 1) if self.first == "disc" else (1, 0)
        return [(player,) for player in players for _ in range(self.num_updates[player])]


def _step(
    game: Game, turns: Turns, params: Pair, coefficients: Coefficients, rates: tuple[Any, Any], batch: Any
) -> Pair:
    def update(params: Pair, gradients: Pair, player: int) -> Pair:
        moved = apply_updates(params[player], jax.tree.map(jnp.conj, gradients[player]), rates[player])
        return (moved, params[1]) if player == 0 else (params[0], moved)

    for players in turns.order():
        gradients = game.gradients(params, batch, coefficients, mask=turns.mask)
        for player in players:
            params = update(params, gradients, player)
    return params


def runge_kutta_map(
    game: Game, learning_rates: tuple[float, float], *, order: int = 4, batch: Any = None
) -> Callable[[Pair], Pair]:
    """Return one Runge-Kutta step of a game (order 1, 2 or 4) as a map of the parameters."""
    if order not in TABLEAUX:
        raise ValueError(f"order is {order}; allowed: 1, 2, 4.")
    drift_coefficients(learning_rates)  # validates the rates

    def step(params: Pair) -> Pair:
        return call_compiled(game, _runge_kutta, order, params, learning_rates, batch)

    return step


def _runge_kutta(game: Game, order: int, params: Pair, rates: tuple[Any, Any], batch: Any) -> Pair:
    def moved(slopes: Pair, scale: float) -> Pair:
        return tuple(
            apply_updates(p, jax.tree.map(jnp.conj, s), scale * r)
            for p, s, r in zip(params, slopes, rates, strict=True)
        )

    slopes: list[Any] = []
    for node in TABLEAUX[order].nodes:
        slopes.append(game.gradients(moved(slopes[-1], node) if slopes else params, batch))
    weights = TABLEAUX[order].weights
    total = jax.tree.map(lambda *g: sum(w * x for w, x in zip(weights, g, strict=True)), *slopes)
    return moved(total, 1.0)


def discrete_path(step: Callable[[Pair], Pair], start: Pair, num_steps: int) -> np.ndarray:
    """Return the flattened parameters after each step, shape ``(num_steps + 1, dim)``, the start included."""
    require_count("num_steps", num_steps, least=0)
    path = [_flatten(start)]
    params = start
    for _ in range(num_steps):
        params = step(params)
        path.append(_flatten(params))
    return np.stack(path)


def jacobian(field: Callable[[Pair], Pair], at: Pair) -> np.ndarray:
    """Return the dense Jacobian of a field (or of a step map) at a real point, shape ``(dim, dim)``.

    Example:
        >>> field = modified_field(Game(lambda p, t, _: -p * t, lambda p, t, _: p * t))
        >>> (jacobian(field, (0.0, 0.0)) + 0.0).tolist()
        [[0.0, 1.0], [-1.0, 0.0]]
    """
    if any(np.iscomplexobj(leaf) for leaf in jax.tree.leaves(at)):
        raise TypeError("jacobian needs real parameters; split complex ones into real and imaginary parts.")
    flat, unravel = ravel_pytree(jax.tree.map(lambda a: jnp.asarray(a, jnp.result_type(float)), at))
    return np.asarray(jax.jacobian(lambda x: ravel_pytree(field(unravel(x)))[0])(flat))


def _flatten(params: Pair) -> np.ndarray:
    """Flatten in NumPy: eager JAX operations would cost more than the fields themselves."""
    leaves = [np.zeros(0), *(np.asarray(leaf) for leaf in jax.tree.leaves(params))]
    return np.concatenate([leaf.astype(np.result_type(float, leaf), copy=False).ravel() for leaf in leaves])


def _unflattener(params: Pair) -> Callable[[np.ndarray], Pair]:
    leaves, structure = jax.tree.flatten(params)
    shapes = [np.shape(leaf) for leaf in leaves]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    types = jnp if any(isinstance(leaf, jax.Array) for leaf in leaves) else np  # NumPy's double stays double
    dtype = types.result_type(float, *leaves)

    def unflatten(x: np.ndarray) -> Pair:
        parts = np.split(x.astype(dtype), ends[:-1])
        shaped = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=bool(shapes))]
        pair: Pair = jax.tree.unflatten(structure, shaped)
        return pair

    return unflatten
