"""The reduced map over learning rates: attractors and Lyapunov exponents (ours, beside figure 4)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from matplotlib.figure import Figure

from gdyn_reproduce.plotting import new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run, RunOptions
from instability.paper.config import check_rates
from instability.pde.reduced_map import ReducedMap

NEGATIVE_CONTROLS = (0.04, 0.06)
ROUNDING = 1e-13
SEPARATION = 1e-8
TRANSIENT = 1000


@dataclass
class ReducedMapConfig(RunOptions):
    """Exact one-dimensional map of the non-linear PDE on a checkerboard.

    Attributes:
        image_size: Side of the checkerboard.
        kernel_size: Side of the kernel.
        weight_decay: Coefficient of the weights in the gradient.
        learning_rates: Step sizes of the table.
        num_steps: Steps over which exponents are averaged.
        resolution: Step sizes of the bifurcation diagram.
    """

    image_size: int = 256
    kernel_size: int = 32
    weight_decay: float = 20.0
    learning_rates: list[float] = field(
        default_factory=lambda: [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.105]
    )
    num_steps: int = 20_000
    resolution: int = 600

    def __post_init__(self) -> None:
        check_rates("learning_rates", self.learning_rates)
        if self.num_steps < 1 or self.resolution < 2:
            raise ValueError("num_steps must be at least 1 and resolution at least 2.")


def compute(config: ReducedMapConfig, run: Run) -> Result:
    """Average the exponents, and sample the attractor on a grid of learning rates."""
    reduced = ReducedMap(config.kernel_size, config.image_size, config.weight_decay)
    rates = np.array(config.learning_rates)
    exponents = run.piece(
        "exponents", lambda: {"x": reduced.lyapunov_exponent(rates, num_steps=config.num_steps)}
    )["x"]
    grid = np.linspace(0.02, 2 / config.weight_decay, config.resolution)
    curve = run.piece("curve", lambda: {"x": reduced.lyapunov_exponent(grid, num_steps=1000)})["x"]
    attractor = reduced.trajectory(1.0, grid, 1200)[-100:]
    # Two equal orbits, and one that starts a rounding error away. (One unit in the last place may be rounded
    # off again: a one-dimensional orbit can merge with its neighbour.)
    twins = np.array([0.1, 0.1, 0.1 * (1 + ROUNDING)])
    orbits, calm = reduced.trajectory(twins, 0.07, 300), reduced.trajectory(twins, 0.06, 300)
    fixed = reduced.fixed_point()
    edge = 2 / float(reduced.sharpness(fixed))
    bounded = np.isfinite(exponents)
    separated = run.piece(
        "separation", lambda: {"x": _exponents_by_separation(reduced, rates, config.num_steps)}
    )["x"]
    beyond_edge = np.array(NEGATIVE_CONTROLS)
    return Result(
        measurements={
            "fixed_point": fixed,
            "negative_fixed_point": reduced.fixed_point(sign=-1),
            "edge_of_stability": edge,
            "signs_agree": bool((np.sign(exponents) == np.sign(separated))[bounded].all()),
            "beyond_weight_decay_diverges": bool(
                np.isnan(exponents[rates > 2 / config.weight_decay * 1.01]).all()
            ),
            "negative_controls": bool(
                (beyond_edge > edge).all() and (np.asarray(reduced.lyapunov_exponent(beyond_edge)) < 0).all()
            ),
            "below_weight_decay_diverges": bool(np.isnan(exponents[rates < 2 / config.weight_decay]).all()),
            "rounding_becomes": float(np.abs(orbits[-100:, 2] - orbits[-100:, 0]).max()),
            "rounding_becomes_at_0.06": float(np.abs(calm[-100:, 2] - calm[-100:, 0]).max()),
            "controls": bool(np.array_equal(orbits[:, 0], orbits[:, 1])),
        },
        arrays={
            "learning_rates": rates,
            "exponents": exponents,
            "grid": grid,
            "curve": curve,
            "attractor": attractor.astype(np.float32),  # only drawn, and most of the file
            "edge": np.array(edge),
        },
    )


def _exponents_by_separation(reduced: ReducedMap, rates: np.ndarray, num_steps: int) -> np.ndarray:
    """Return the mean log growth of the distance of two orbits, scaled back to 1e-8 after each step."""
    with np.errstate(all="ignore"):
        c = reduced.trajectory(1.0, rates, TRANSIENT)[-1]
        total = np.zeros(rates.shape)
        for _ in range(num_steps):
            other = c * (1 + SEPARATION)
            apart = other - c
            c, other = reduced.step(c, rates), reduced.step(other, rates)
            total += np.log(np.abs(other - c) / np.abs(apart))
    return np.asarray(total / num_steps)


def plot(result: Result) -> Figure:
    """Draw the bifurcation diagram above the exponents."""
    arrays = result.arrays
    figure, axes = new_figure(2, 1, sharex=True, figsize=(6.4, 6.0))
    grid = np.broadcast_to(arrays["grid"], arrays["attractor"].shape)
    axes[0].plot(grid.ravel(), arrays["attractor"].ravel(), ",", color="black", alpha=0.4, rasterized=True)
    axes[0].set(ylabel="weight c after 1100 steps")
    axes[1].axhline(0, color="0.5", linewidth=0.8)
    axes[1].plot(arrays["grid"], arrays["curve"], linewidth=0.8)
    axes[1].plot(arrays["learning_rates"], arrays["exponents"], "o", markersize=4)
    axes[1].set(xlabel="learning rate", ylabel="Lyapunov exponent per step", ylim=(-2, 1.2))
    for axis in axes:
        axis.axvline(float(arrays["edge"]), color="0.5", linestyle="--", linewidth=0.8)
    axes[0].set_title(
        f"Where gradient descent on one layer ends (dashed: 2 / sharpness = {float(arrays['edge']):.4g})"
    )
    return figure
