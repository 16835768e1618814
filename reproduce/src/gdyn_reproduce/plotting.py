"""The house style of pictures, and saving them as PNG and SVG.

Colours are Okabe and Ito's eight, which readers with any colour vision can tell apart.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdyn_common.storage import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Blue, vermilion, green, purple, orange, sky blue, black, yellow."""

_STYLE: dict[str, Any] = {
    "figure.figsize": (6.4, 4.0),
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.formatter.min_exponent": 2,  # a tick of a log axis says 40, not 4 x 10^1
    "grid.alpha": 0.25,
    "lines.linewidth": 1.5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "none",  # text stays text: searchable, and readable by screen readers
    "svg.hashsalt": "gdyn",  # the same picture gives the same bytes
}


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Draw in the house style, without a display, and leave matplotlib's settings as they were."""
    import matplotlib as mpl
    from cycler import cycler

    style: Any = _STYLE | {"axes.prop_cycle": cycler(color=COLOURS)}
    with mpl.rc_context(style):
        yield


def new_figure(rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """Return a figure and its axes without the global state of pyplot.

    Args:
        rows: Rows of axes.
        columns: Columns of axes.
        options: Passed to `matplotlib.figure.Figure.subplots`, but for ``figsize``.

    Returns:
        The figure, and one axes object or an array of them.
    """
    from matplotlib.figure import Figure

    size = options.pop("figsize", (6.4 if columns == 1 else 4.6 * columns, 4.0 * rows))
    figure = Figure(figsize=size)
    return figure, figure.subplots(rows, columns, **options)


def save_figure(figure: Figure, stem: Path) -> None:
    """Write ``<stem>.png``, with a palette of 256 colours, and ``<stem>.svg``, each atomically."""
    from PIL import Image

    drawn, small, vectors = io.BytesIO(), io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    # A third of the size, which counts because pictures of results are committed.
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    atomic_write(stem.with_suffix(".png"), small.getvalue())
    figure.savefig(vectors, format="svg", metadata={"Date": None})
    atomic_write(stem.with_suffix(".svg"), vectors.getvalue())


def band(axes: Axes, x: Any, curves: Any, label: str, colour: str) -> None:
    """Draw the mean over the first axis as a line, and minimum to maximum as a shade.

    Args:
        axes: Where to draw.
        x: Abscissa, shape ``(points,)``.
        curves: One curve per seed, shape ``(seeds, points)``.
        label: Legend entry.
        colour: Colour of line and shade.
    """
    axes.plot(x, curves.mean(0), label=label, color=colour)
    axes.fill_between(x, curves.min(0), curves.max(0), color=colour, alpha=0.2, linewidth=0)
