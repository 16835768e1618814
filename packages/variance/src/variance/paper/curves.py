"""Curves over training that several figures share: stacking seeds, reading ends, drawing bands."""

from collections.abc import Iterable

import numpy as np
from matplotlib.figure import Figure

from gdyn_reproduce.plotting import band, label_curves, new_figure
from gdyn_reproduce.records import Result

COLOURS = {"SG-B": "C0", "SG-2B": "C1", "SVRG": "C2", "GC": "C3", "GC-online": "C4"}
ESTIMATORS = tuple(COLOURS)


def stack(pieces: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return one array per column with seeds along the first axis; `steps` stays a vector."""
    names = [name for name in pieces[0] if name != "steps"]
    return {
        "steps": pieces[0]["steps"],
        **{name: np.stack([piece[name] for piece in pieces]) for name in names},
    }


def flatten(found: dict[float, list[dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """Return arrays named `lr=<rate>|<column>` for all learning rates."""
    return {
        f"lr={rate:g}|{name}": value
        for rate, pieces in found.items()
        for name, value in stack(pieces).items()
    }


def tail_mean(values: np.ndarray, fraction: float = 0.3) -> np.ndarray:
    """Return the mean over the last part of the measurements, per seed."""
    count = max(1, round(fraction * values.shape[-1]))
    return np.asarray(values[..., -count:].mean(-1))


def estimators_in(columns: Iterable[str]) -> list[str]:
    """Return the estimators that were measured, in the house order."""
    found = {name.partition(".")[0] for name in columns}
    return [name for name in ESTIMATORS if name in found]


def is_ordered(columns: dict[str, np.ndarray], order: list[str]) -> list[bool]:
    """Return, per seed, whether the variances at the end rise along `order`."""
    ends = np.stack([tail_mean(columns[f"{name}.avg_var"]) for name in order])
    return [bool((np.diff(column) > 0).all()) for column in ends.T]


def ratio_at_end(columns: dict[str, np.ndarray], name: str, reference: str) -> list[float]:
    """Return, per seed, the ratio of two estimators' variances at the end."""
    ends = tail_mean(columns[f"{name}.avg_var"]) / tail_mean(columns[f"{reference}.avg_var"])
    return [float(value) for value in ends]


def is_zero(variance: np.ndarray) -> np.ndarray:
    """Return the measurements at which a variance is zero up to rounding for every seed.

    SVRG has no variance where its snapshot is the current point; on a logarithmic axis such points hide the
    curve between them.

    Example:
        >>> is_zero(np.array([[1e-7, 3e-22, 2e-8]]))
        array([False,  True, False])
    """
    return np.asarray((variance < 1e-12 * variance.max(-1, keepdims=True)).all(0))


def plot_training(result: Result, title: str) -> Figure:
    """Draw average and normalised variance: one colour per estimator, one dash per learning rate.

    A single estimator at several rates has a colour for each of them.
    """
    figure, axes = new_figure(1, 2)
    rates = sorted({name.partition("|")[0] for name in result.arrays}, key=lambda name: -float(name[3:]))
    for number, (rate, dash) in enumerate(zip(rates, ("-", "--", ":", "-."), strict=False)):
        columns = {k.partition("|")[2]: v for k, v in result.arrays.items() if k.startswith(rate + "|")}
        steps = columns["steps"]
        names = estimators_in(columns)
        for name in names:
            drawn = ~is_zero(columns[f"{name}.avg_var"])
            where = name if drawn.all() else f"{name} between snapshots"
            label = where if len(rates) == 1 else f"{where}, {rate}"
            colour = f"C{number}" if len(names) == 1 < len(rates) else COLOURS[name]
            statistic = "norm_var_trace" if f"{name}.norm_var_trace" in columns else "norm_var"
            for ax, metric in zip(axes, ("avg_var", statistic), strict=True):
                band(ax, steps[drawn], columns[f"{name}.{metric}"][:, drawn], label, colour)
            for ax in axes:
                ax.lines[-1].set_linestyle(dash)
    axes[0].set(yscale="log", xlabel="step", title="Average variance")
    axes[1].set(xlabel="step", title="Normalised variance")
    label_curves(axes[1])
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure
