"""Moving pictures of the front page, drawn when the pages are built."""

from __future__ import annotations

from pathlib import Path

from matplotlib.animation import FuncAnimation, PillowWriter

from animations import clusters, edge, game, spectrum
from animations.frames import FRAMES, MOVING
from gdyn_reproduce.plotting import house_style


def draw_all(folder: Path) -> None:
    """Write every animation into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in (game, edge, spectrum, clusters):
        with house_style():
            figure, update = picture.draw()
            figure.set_dpi(80)
            figure.get_layout_engine().set(h_pad=0.1)  # inches; a title would touch the upper edge
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # once is enough
            frames = [*range(MOVING, FRAMES), *range(MOVING)]
            moving = FuncAnimation(figure, update, frames=frames, blit=False)
            name = picture.__name__.rpartition(".")[2]
            moving.save(folder / f"{name}.gif", PillowWriter(fps=10))
