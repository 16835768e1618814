"""The linear game: both updates, the flow that they leave, and the flow that they follow."""

from __future__ import annotations

from typing import Any

import numpy as np

from animations.frames import numbers_of, shown
from gdyn_reproduce.plotting import COLOURS, new_figure


def draw() -> tuple[Any, Any]:
    """Follow both updates of the linear game, with the flow that they leave and the flow they follow."""
    numbers = numbers_of("dd_two_player/results/linear-game-quick")
    figure, axes = new_figure(1, 2, figsize=(7.2, 3.8))
    drawn = []
    for axis, scheme in zip(axes, ("simultaneous", "alternating"), strict=True):
        for name, style, label, colour in (
            ("flow", "--", "gradient flow", COLOURS[2]),
            (f"modified_{scheme}", "-", "flow with drift", COLOURS[0]),
            (f"path_{scheme}", ".", "descent", COLOURS[1]),
        ):
            (line,) = axis.plot([], [], style, color=colour, markersize=4, linewidth=1, label=label)
            drawn.append((line, numbers[name]))
        ends = np.concatenate([path for _, path in drawn[-3:]])
        axis.set(title=f"{scheme.capitalize()} updates", xlabel="discriminator", aspect="equal")
        axis.set_xlim(1.1 * ends[:, 0].min(), 1.1 * ends[:, 0].max())
        axis.set_ylim(1.1 * ends[:, 1].min(), 1.1 * ends[:, 1].max())
    axes[0].set_ylabel("generator")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)

    def update(frame: int) -> None:
        for line, path in drawn:
            line.set_data(*path[: shown(frame, len(path))].T)

    return figure, update
