"""One layer, trained to its end at every learning rate."""

from __future__ import annotations

from typing import Any

import numpy as np

from animations.frames import numbers_of, shown
from gdyn_reproduce.plotting import COLOURS, new_figure


def draw() -> tuple[Any, Any]:
    """Raise the learning rate of gradient descent on one layer: a point, two points, chaos."""
    numbers = numbers_of("instability/results/reduced-map-quick")
    grid, attractor = numbers["grid"], numbers["attractor"]
    figure, axis = new_figure(figsize=(7.2, 3.8))
    (points,) = axis.plot([], [], ",", color="black", alpha=0.5)
    now = axis.axvline(grid[0], color=COLOURS[1], linewidth=1)
    axis.axvline(float(numbers["edge"]), color="0.5", linestyle="--", linewidth=0.8)
    axis.set(
        title="Where gradient descent on one layer ends (dashed: 2 / sharpness)",
        xlabel="learning rate",
        ylabel="weight after 1100 steps",
        xlim=(grid[0], grid[-1]),
        ylim=(1.05 * np.nanmin(attractor), 1.05 * np.nanmax(attractor)),
    )

    def update(frame: int) -> None:
        rates = shown(frame, len(grid))
        points.set_data(np.tile(grid[:rates], len(attractor)), attractor[:, :rates].ravel())
        now.set_xdata([grid[rates - 1]] * 2)

    return figure, update
