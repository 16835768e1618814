"""The house style of pictures, and saving them as PNG and SVG.

Colours are Okabe and Ito's eight, which readers with any colour vision can tell apart.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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
    from matplotlib.rcsetup import cycler

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

    _spell_log_ticks(figure)
    drawn, small, vectors = io.BytesIO(), io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    # A third of the size, which counts because pictures of results are committed.
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    atomic_write(stem.with_suffix(".png"), small.getvalue())
    figure.savefig(vectors, format="svg", metadata={"Date": None})
    atomic_write(stem.with_suffix(".svg"), vectors.getvalue())


def label_curves(axes: Axes) -> None:
    """Write each labelled curve's name at its right end, in its colour, instead of a legend.

    Names that would overlap are moved apart vertically; the axes are widened to hold them.
    """
    axes.autoscale_view()  # the limits are otherwise set when drawn, after the ends were looked up
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    height = 14 / 72 * axes.figure.dpi / axes.get_window_extent().height  # a line of text, of the axes
    ends = []
    for line in lines:
        points = axes.transData.transform(np.column_stack([line.get_xdata(), line.get_ydata()]).astype(float))
        inside = axes.transAxes.inverted().transform(points[np.isfinite(points).all(1)])
        ends.append(float(np.clip(inside[-1, 1], 0, 1)) if len(inside) else 0.0)
    order = sorted(range(len(lines)), key=lambda index: ends[index])
    for below, above in itertools.pairwise(order):
        ends[above] = max(ends[above], ends[below] + height)
    overflow = max((ends[index] for index in order), default=0) - 1
    for index in order:
        axes.annotate(
            str(lines[index].get_label()),
            (1.01, ends[index] - max(overflow, 0)),
            xycoords="axes fraction",
            color=lines[index].get_color(),
            va="center",
            annotation_clip=False,
        )


def _spell_log_ticks(figure: Figure) -> None:
    """Write the ticks of logarithmic axes as plain numbers between 0.001 and 100 000, as powers beyond."""
    from matplotlib.ticker import LogFormatterMathtext

    class Plain(LogFormatterMathtext):
        def __call__(self, x: float, pos: Any = None) -> str:
            label = super().__call__(x, pos)
            return f"{x:g}" if label and 1e-3 <= abs(x) < 1e5 else label

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":
                axis.set_major_formatter(Plain())
                axis.set_minor_formatter(Plain(minor_thresholds=(1, 0.4)))


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
