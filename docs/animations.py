"""Moving pictures of the front page, drawn from committed numbers when the pages are built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter

from gdyn_reproduce.plotting import COLOURS, house_style, new_figure

RESULTS = Path(__file__).parents[1] / "packages"
FRAMES = 40
WHOLE = 8
"""Frames that show the whole picture. They come first, for readers whose pictures do not move."""


def draw_all(folder: Path) -> None:
    """Write every animation into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in (("game", _game), ("edge", _edge)):
        with house_style():
            figure, update = draw()
            figure.set_dpi(80)
            figure.get_layout_engine().set(h_pad=0.1)  # inches; a title would touch the upper edge
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # once is enough
            frames = [*range(FRAMES - WHOLE, FRAMES), *range(FRAMES - WHOLE)]
            moving = FuncAnimation(figure, update, frames=frames, blit=False)
            moving.save(folder / f"{name}.gif", PillowWriter(fps=10))


def _numbers(record: str) -> dict[str, Any]:
    with np.load(RESULTS / f"{record}.npz") as stored:
        return dict(stored)


def _game() -> tuple[Any, Any]:
    """Follow both updates of the linear game, with the flow that they leave and the flow they follow."""
    numbers = _numbers("dd_two_player/results/linear-game-quick")
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
            line.set_data(*path[: 1 + round((len(path) - 1) * min(1.0, (frame + 1) / (FRAMES - WHOLE)))].T)

    return figure, update


def _edge() -> tuple[Any, Any]:
    """Raise the learning rate of gradient descent on one layer: a point, two points, chaos."""
    numbers = _numbers("instability/results/reduced-map-quick")
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
        shown = max(1, round(len(grid) * min(1.0, (frame + 1) / (FRAMES - WHOLE))))
        points.set_data(np.tile(grid[:shown], len(attractor)), attractor[:, :shown].ravel())
        now.set_xdata([grid[shown - 1]] * 2)

    return figure, update
