"""How large the drift of a real game is: per player and layer, against the error that one step makes.

One step from ``x`` ends at ``x + s``; the flow over the same unit of time ends at ``x + r``. Theory says

    s - r = self term + interaction term + O(h^3)

with both terms of order ``h^2``, of the joint clock (see `dd_two_player.drift`). Here the two terms are
computed exactly, as derivatives of the gradient pair along each player's own step, and ``r`` is measured
without them, by a Runge-Kutta method of order 3, whose error is of order ``h^4``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dd_two_player.drift import PLAYERS, Coefficients, Drift
from dd_two_player.flows import Turns
from dd_two_player.game import Game, call_compiled, check_pair
from gdyn_common.display import Axes, Figure, Shown, axes_for
from gdyn_common.errors import require_count

__all__ = ["DriftMicroscope", "DriftReport", "LayerDrift", "measure_drift"]

Pair = tuple[Any, Any]
ALL = "all"
# of step, self term, interaction term, error and residual: what `_row` takes
PAIRS = ((0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (0, 1), (0, 2), (3, 1), (3, 2))
COLUMNS = (
    "player",
    "layer",
    "step",
    "self",
    "inter",
    "cos self",
    "cos inter",
    "error",
    "self %",
    "inter %",
    "rest",
)


@dataclass(frozen=True)
class LayerDrift:
    """Drift of one layer in one step, in units of its parameters.

    Attributes:
        player: ``disc``, ``gen``, or ``all``.
        layer: Path of the layer, ``all`` for the whole player.
        step: Norm of the step, which is the rates times the gradients.
        self_term: Norm of the self term of the drift.
        interaction: Norm of the interaction term.
        self_cosine: Cosine of the self term and the step.
        interaction_cosine: Cosine of the interaction term and the step.
        error: Norm of the measured error of the step: its end minus the flow's.
        self_share: Part of the error that the self term makes, ``<term, error> / <error, error>``.
        interaction_share: The same of the interaction term; both sum to 1 up to ``O(h)``.
        residual: Norm of the error minus both terms, of third order in the rates.
    """

    player: str
    layer: str
    step: float
    self_term: float
    interaction: float
    self_cosine: float
    interaction_cosine: float
    error: float
    self_share: float
    interaction_share: float
    residual: float


@dataclass(frozen=True, repr=False)
class DriftReport(Shown):
    """Drift of one step of a game.

    Attributes:
        total: Of all parameters.
        players: Of each player, ``disc`` first.
        layers: Of every layer.
        losses: Of ``(disc, gen)``; where one is not finite there is no drift, and all numbers are NaN.
    """

    total: LayerDrift
    players: tuple[LayerDrift, LayerDrift]
    layers: tuple[LayerDrift, ...]
    losses: tuple[float, float]

    def summary(self) -> str:
        """Return a table: sizes relative to the step, cosines with it, shares of the error in percent."""
        if not np.isfinite(self.losses).all():
            return f"no drift: the losses are {self.losses[0]} of disc and {self.losses[1]} of gen"
        rows: list[tuple[str, ...]] = [COLUMNS]
        for row in (self.total, *self.players, *self.layers):
            relative = [
                v / row.step if row.step else 0.0 for v in (row.self_term, row.interaction, row.error)
            ]
            rest = row.residual / row.error if row.error else 0.0
            numbers = [row.step, *relative[:2], row.self_cosine, row.interaction_cosine, relative[2]]
            percent = [f"{100 * v:.0f}" for v in (row.self_share, row.interaction_share, rest)]
            rows.append((row.player, row.layer, *(f"{v:.2g}" for v in numbers), *percent))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    def to_dict(self) -> list[dict[str, Any]]:
        """Return one row per layer, then per player, then of all; `pandas.DataFrame` takes it as is."""
        return [asdict(row) for row in (*self.layers, *self.players, self.total)]

    def plot(self, axes: Axes | None = None) -> Figure:
        """Draw the sizes of both terms relative to the step, per layer, and return the figure.

        Args:
            axes: Axes of matplotlib to draw into; None makes a new figure.
        """
        axes = axes_for(axes)
        places = np.arange(len(self.layers))
        for shift, name in ((-0.1, "self_term"), (0.1, "interaction")):
            sizes = [getattr(row, name) / row.step if row.step else 0.0 for row in self.layers]
            axes.plot(sizes, places + shift, "o", label=name.replace("_", " "))
        axes.set_yticks(places, [f"{row.player} {row.layer}" for row in self.layers])
        axes.invert_yaxis()
        axes.set(title="Drift of one step by layer", xlabel="size relative to the step")
        axes.set_xscale("log", nonpositive="mask")
        low, high = axes.get_xlim()
        axes.xaxis.get_major_locator().set_params(subs=(1, 2, 5) if high < 100 * low else (1,))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.grid(axis="x", alpha=0.25)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))  # beside the dots, which may lie anywhere
        return axes.figure


def measure_drift(
    game: Game,
    params: Pair,
    batch: Any,
    learning_rates: tuple[float, float],
    *,
    num_updates: tuple[int, int] = (1, 1),
    scheme: str = "simultaneous",
    first: str = "disc",
) -> DriftReport:
    """Measure the drift of one step of gradient descent; nothing is changed.

    The terms cost one derivative of the gradient pair along each player's step. The error costs two gradient
    pairs beside those of the step itself.

    Args:
        game: Any game.
        params: ``(disc_params, gen_params)``.
        batch: Passed to the losses; all gradients use it.
        learning_rates: Of one update of ``(disc, gen)``.
        num_updates: Updates per step.
        scheme: ``simultaneous`` or ``alternating``.
        first: Who moves first in an alternating step.

    Returns:
        Sizes, cosines and shares of the terms of both players. In float32 the error and its residual are good
        to about 1e-7 of the step; half precision is measured in float32. A residual above half of the error
        says that the step is too long: beyond a rate of 1 / curvature neither the terms nor the measured flow
        are near, and the error is good to a tenth at that rate.

    Raises:
        ValueError: As `drift_coefficients` and `Game.check_derivatives`.

    Example:
        ``L_D = phi theta = -L_G`` at (1, 1) with rates ``h = 0.1``: no self term, interaction ``h^2 / 2``.

        >>> game = Game(lambda p, t, _: p * t, lambda p, t, _: -p * t)
        >>> report = measure_drift(game, (1.0, 1.0), None, (0.1, 0.1))
        >>> [round(v, 4) for v in (report.players[0].self_term, report.players[0].interaction)]
        [0.0, 0.005]
    """
    drift = Drift.of(learning_rates, num_updates, scheme, first)
    check_pair(params)
    params = (params[0], params[1])
    turns = Turns(scheme, first, (int(num_updates[0]), int(num_updates[1])))
    values = (batch, learning_rates, drift.clock, drift.coefficients)
    found, sizes, losses = call_compiled(game, _products, turns, params, *values)
    if isinstance(found, jax.core.Tracer):
        raise TypeError("measure_drift returns a report of numbers; call it outside of jit, vmap and grad.")
    products = np.asarray(found, float) * [np.prod(np.asarray(sizes, float)[list(pair)]) for pair in PAIRS]
    paths = [(player, _layer(path)) for player, side in zip(PLAYERS, params, strict=True)
             for path, _ in jax.tree_util.tree_leaves_with_path(side)]  # fmt: skip
    layers = list(dict.fromkeys(paths))

    def row(player: str, layer: str) -> LayerDrift:
        chosen = [player in (ALL, p) and layer in (ALL, name) for p, name in paths]
        return _row(player, layer, products[chosen].sum(0))

    return DriftReport(
        row(ALL, ALL),
        (row("disc", ALL), row("gen", ALL)),
        tuple(row(player, layer) for player, layer in layers),
        (float(losses[0]), float(losses[1])),
    )


@dataclass
class DriftMicroscope:
    """A callback that measures the drift now and then during training.

    Attributes:
        game: The game that is trained.
        learning_rates: Of one update of ``(disc, gen)``.
        every: Steps between measurements.
        options: Further arguments of `measure_drift`.
        reports: What was measured, by step.
    """

    game: Game
    learning_rates: tuple[float, float]
    every: int = 100
    options: dict[str, Any] = field(default_factory=dict)
    reports: dict[int, DriftReport] = field(default_factory=dict)

    def __repr__(self) -> str:
        steps = sorted(self.reports)
        seen = f", of steps {steps[0]} to {steps[-1]}" if steps else ""
        return f"{len(steps)} measurements of the drift{seen}, one every {self.every} steps"

    def __post_init__(self) -> None:
        """Refuse a period that is no number of steps."""
        require_count("every", self.every)

    def __call__(self, step: int, params: Pair, batch: Any) -> None:
        """Measure if it is time to."""
        if step % self.every == 0:
            found = measure_drift(self.game, params, batch, self.learning_rates, **self.options)
            self.reports[step] = found

    def to_dict(self) -> list[dict[str, Any]]:
        """Return all rows of all reports, each with its step number ``at``."""
        return [{"at": step, **row} for step, report in self.reports.items() for row in report.to_dict()]

    def plot(self, axes: Axes | None = None) -> Figure:
        """Draw the sizes of both terms relative to the step, of each player, over the training steps.

        Args:
            axes: Axes of matplotlib to draw into; None makes a new figure.
        """
        axes = axes_for(axes)
        for place, player in enumerate(PLAYERS):
            rows = [report.players[place] for report in self.reports.values()]
            for name, line in (("self_term", "-"), ("interaction", "--")):
                sizes = [getattr(row, name) / row.step if row.step else 0.0 for row in rows]
                label = f"{player} {name.replace('_', ' ')}"
                axes.plot(list(self.reports), sizes, f"{line}o", color=f"C{place}", markersize=3, label=label)
        axes.set(title="Drift during training", xlabel="step", ylabel="size relative to the step")
        axes.set_yscale("log", nonpositive="mask")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))  # beside the curves, which cross everywhere
        return axes.figure


def _layer(path: Any) -> str:
    """Return the path of a leaf without its last entry, which tells weights from biases."""
    if path and str(path[-1]) == ".value":  # a variable of flax, which is a leaf of its layer
        path = path[:-1]
    return jax.tree_util.keystr(path[:-1] or path) or "."


def _row(player: str, layer: str, products: Float[np.ndarray, " products"]) -> LayerDrift:
    """Return sizes and angles from inner products, in the order of `PAIRS`."""
    ss, aa, bb, ee, rr, sa, sb, ea, eb = map(float, products)

    def cosine(product: float, one: float, other: float) -> float:
        return 0.0 if one == 0 or other == 0 else product / (one**0.5 * other**0.5)

    return LayerDrift(
        player,
        layer,
        step=ss**0.5,
        self_term=aa**0.5,
        interaction=bb**0.5,
        self_cosine=cosine(sa, ss, aa),
        interaction_cosine=cosine(sb, ss, bb),
        error=ee**0.5,
        self_share=0.0 if ee == 0 else ea / ee,
        interaction_share=0.0 if ee == 0 else eb / ee,
        residual=rr**0.5,
    )


def _products(
    game: Game, turns: Turns, params: Pair, batch: Any, rates: Pair, clock: Pair, coefficients: Coefficients
) -> tuple[Float[Array, "leaves products"], Float[Array, "vectors"], Float[Array, "2"]]:
    """Return inner products of step, self term, interaction, error and residual, their units, and losses.

    Products are per leaf, of vectors divided by their largest entry; NaN if a loss is not finite, which
    gradients need not show. Half precision is raised to single: a step is hardly more than its rounding.
    """
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.promote_types(jnp.result_type(a), "float32")), params)
    batch = jax.tree.map(lambda a: a.astype("float32") if _is_half(a) else a, batch)

    def descent(at: Pair, factors: Any) -> Pair:
        return _scaled(jax.tree.map(jnp.conj, game.gradients(at, batch)), tuple(-t for t in factors))

    def field(at: Pair) -> Pair:
        return descent(at, clock)

    def moved(by: Pair, factor: float = 1.0) -> Pair:
        pair: Pair = jax.tree.map(lambda x, d: (x + factor * d).astype(jnp.result_type(x)), params, by)
        return pair

    def derivative(along: Pair) -> Pair:
        pair: Pair = jax.jvp(field, (params,), (along,))[1]
        return pair

    game.check_derivatives(params, batch)
    losses = jnp.stack([*map(jnp.asarray, game.value_and_gradients(params, batch).losses)])
    velocity = field(params)
    nothing = jax.tree.map(jnp.zeros_like, velocity)
    by_disc, by_gen = derivative((velocity[0], nothing[1])), derivative((nothing[0], velocity[1]))
    disc, gen = coefficients
    # the coefficients are those of fields per unit of the own clock: joint time carries both factors
    own = _scaled((by_disc[0], by_gen[1]), (-disc.self_norm / clock[0], -gen.self_norm / clock[1]))
    cross = _scaled(
        (by_gen[0], by_disc[1]), (-disc.other_dot_prod / clock[1], -gen.other_dot_prod / clock[0])
    )

    step = nothing
    for players in turns.order():
        change = descent(moved(step), rates)
        step = tuple(
            jax.tree.map(jnp.add, step[p], change[p]) if p in players else step[p]
            for p in range(len(PLAYERS))
        )
    middle = field(moved(velocity, 0.5))
    last = field(moved(jax.tree.map(lambda a, b: 2 * b - a, velocity, middle)))
    flow = jax.tree.map(lambda a, b, c: (a + 4 * b + c) / 6, velocity, middle, last)
    error = jax.tree.map(jnp.subtract, step, flow)
    rest = jax.tree.map(lambda e, a, b: e - a - b, error, own, cross)
    vectors = [jax.tree.leaves(vector) for vector in (step, own, cross, error, rest)]
    sizes = [jnp.stack([jnp.abs(a).max(initial=0.0) for a in leaves]).max() for leaves in vectors]
    sizes = [jnp.where(size > 0, size, 1.0) for size in sizes]  # squares would leave the range of the type
    unit = [[a / size for a in leaves] for leaves, size in zip(vectors, sizes, strict=True)]
    columns = [
        jnp.stack([jnp.vdot(a, b).real for a, b in zip(unit[i], unit[j], strict=True)]) for i, j in PAIRS
    ]
    seen = jnp.where(jnp.isfinite(losses).all(), 1.0, jnp.nan)
    return jnp.stack(columns, 1), seen * jnp.stack(sizes), losses


def _scaled(pair: Pair, factors: Any) -> Pair:
    """Return both sides times their factors, in their own types."""
    disc, gen = (
        jax.tree.map(lambda a, f=f: (f * a).astype(a.dtype), side)
        for side, f in zip(pair, factors, strict=True)
    )
    return disc, gen


def _is_half(value: Any) -> bool:
    return hasattr(value, "dtype") and value.dtype in (jnp.float16, jnp.bfloat16)
