"""The house style of pictures, and saving them as PNG and SVG.

Colours are Okabe and Ito's, which readers with any colour vision can tell apart, with grey in place of
yellow, which a thin line on white hides.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gdyn_common.storage import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
"""Blue, vermilion, green, purple, orange, sky blue, black, grey."""

_STYLE: dict[str, Any] = {
    "figure.figsize": (6.4, 4.0),
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
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


_one_at_a_time = threading.RLock()
"""Matplotlib keeps its settings in the process, so two threads take turns."""


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Draw in the house style, without a display, and leave matplotlib's settings as they were.

    What a user has set, in a ``matplotlibrc`` or a notebook, has no part in the picture.

    Raises:
        ValueError: If matplotlib refuses the environment, for example a misspelt ``MPLBACKEND``.
    """
    try:
        import matplotlib as mpl
    except ValueError as error:
        raise ValueError(f"matplotlib does not start: {str(error)[:200]}") from None
    from matplotlib.rcsetup import cycler

    style: Any = _STYLE | {"axes.prop_cycle": cycler(color=COLOURS)}
    with _one_at_a_time, mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(style)
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

    size = options.pop("figsize", (6.4, 3.6 * rows) if columns == 1 else (3.9 * columns, 3.3 * rows))
    figure = Figure(figsize=size)
    return figure, figure.subplots(rows, columns, **options)


def save_figure(figure: Figure, stem: Path) -> None:
    """Write ``<stem>.png``, with a palette of 256 colours, and ``<stem>.svg``, each atomically."""
    from PIL import Image

    _spell_log_ticks(figure)
    drawn, small, vectors = io.BytesIO(), io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    # A third of the size, which counts because pictures of results are committed. Median cut, the default,
    # gives thin lines of two hues the same colour.
    palette = Image.open(drawn).convert("RGB")
    palette = palette.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    palette.save(small, "png", optimize=True)
    atomic_write(stem.with_suffix(".png"), small.getvalue())
    figure.savefig(vectors, format="svg", metadata={"Date": None})
    atomic_write(stem.with_suffix(".svg"), vectors.getvalue())


def label_curves(axes: Axes) -> None:
    """Write each labelled curve's name at its right end, in its colour, instead of a legend.

    Names that would overlap are moved apart vertically; the axes shrink to make room for them.
    """
    axes.autoscale_view()  # the limits are otherwise set when drawn, after the ends were looked up
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    height = 12 / 72 * axes.figure.dpi / axes.get_window_extent().height  # a line of text, of the axes
    ends = []
    for line in lines:
        points = axes.transData.transform(np.column_stack([line.get_xdata(), line.get_ydata()]).astype(float))
        inside = axes.transAxes.inverted().transform(points[np.isfinite(points).all(1)])
        ends.append(float(np.clip(inside[inside[:, 0].argmax(), 1], 0, 1)) if len(inside) else 0.0)
    for line, place in zip(lines, _spread(ends, height), strict=True):
        axes.annotate(
            str(line.get_label()),
            (1.01, place),
            xycoords="axes fraction",
            color=line.get_color(),
            fontsize=9,
            va="center",
            annotation_clip=False,
        )


def _spread(wanted: list[float], height: float) -> list[float]:
    """Move places in [0, 1] as little as needed, and keep their order, until all are ``height`` apart."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    groups: list[tuple[float, list[int]]] = []  # the middle of each cluster of touching names
    for index in order:
        middle, members = wanted[index], [index]
        while groups and middle - groups[-1][0] < height * (len(members) + len(groups[-1][1])) / 2:
            members = groups.pop()[1] + members
            middle = float(np.mean([wanted[member] for member in members]))
        groups.append((middle, members))
    places = [0.0] * len(wanted)
    for middle, members in groups:
        reach = height * (len(members) - 1) / 2
        middle = min(max(middle, reach), max(1 - reach, reach))
        for rank, index in enumerate(members):
            places[index] = middle - reach + height * rank
    return places


def plain(value: float, digits: int = 4) -> str:
    """Spell a number for a picture: from 0.001 to 100 000 as it stands, beyond as 2·10⁻⁷."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{float(f'{value:.{digits}g}'):g}".replace("-", "\N{MINUS SIGN}")  # matplotlib's own minus
    factor, power = f"{value:.{digits - 1}e}".split("e")
    factor = factor.rstrip("0").rstrip(".") if "." in factor else factor
    sign, factor = ("-", factor[1:]) if factor.startswith("-") else ("", factor)
    return f"${sign}{'' if factor == '1' else factor + chr(92) + 'cdot'}10^{{{int(power)}}}$"


def _spell_log_ticks(figure: Figure) -> None:
    """Write the ticks of logarithmic axes as plain numbers."""
    from matplotlib.ticker import LogFormatterMathtext

    class Plain(LogFormatterMathtext):
        def __call__(self, x: float, pos: Any = None) -> str:
            return plain(x) if super().__call__(x, pos) else ""

    class Between(Plain):
        """Between powers of ten writes the fewer numbers, the longer the axis: more would run together."""

        def __call__(self, x: float, pos: Any = None) -> str:
            assert self.axis is not None
            low, high = sorted(self.axis.get_view_interval())
            if not 2.5 * low < high <= 100 * low:
                return super().__call__(x, pos)
            digits = "235" if high <= 5 * low else "25" if high <= 15 * low else "3"
            return plain(x) if f"{x:e}"[0] in digits else ""

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() in ("log", "symlog"):
                axis.set_major_formatter(Plain())
                axis.set_minor_formatter(Between(minor_thresholds=(1, 0.4)))


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
