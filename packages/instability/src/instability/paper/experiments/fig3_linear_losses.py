"""Figure 3: losses of the linear PDE below, between and above its two thresholds."""

from __future__ import annotations

from functools import partial

import numpy as np
from matplotlib.figure import Figure

from gdyn_reproduce.plotting import COLOURS, label_curves, new_figure, plain
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Estimate, Run
from instability.paper import linear_runs
from instability.paper.calibration import one_layer_cost
from instability.paper.linear_runs import LinearConfig


def compute(config: LinearConfig, run: Run) -> Result:
    """Simulate every weight decay with its null controls and compare its growth with the spectrum's."""
    thresholds = linear_runs.thresholds(config)
    runs = [
        run.piece(f"weight_decay={decay:g}", partial(linear_runs.simulate, config, decay))
        for decay in run.progress(config.weight_decays, "weight decays")
    ]
    stable = np.array([thresholds.is_stable(decay) for decay in config.weight_decays])
    growth = np.array([float(r["growth"]) for r in runs])
    grows = growth > 1 + linear_runs.MARGIN
    return Result(
        measurements={
            "alpha_min": thresholds.alpha_min,
            "alpha_max": thresholds.alpha_max,
            "settles_inside": bool(not grows[stable].any()),
            "grows_outside": bool(grows[~stable].all()),
            "settles_outside": bool(not grows[~stable].any()),
            "grows_inside": bool(grows[stable].all()),
            "controls": all(bool(r["controls"]) for r in runs),
        },
        arrays={
            "losses": np.array([r["losses"] for r in runs]),
            "weight_decays": np.array(config.weight_decays),
            "growth": growth,
            "stable": stable,
            "bounds": np.array([thresholds.alpha_min, thresholds.alpha_max]),
        },
    )


def estimate(config: LinearConfig) -> Estimate:
    """Time a step and count three copies for each weight decay."""
    return one_layer_cost(config, 3 * len(config.weight_decays))


def plot(result: Result) -> Figure:
    """Draw the losses over their first, on either side of each threshold."""
    arrays = result.arrays
    low, high = arrays["bounds"]
    middle = np.sqrt(low * high)
    figure, axes = new_figure(1, 2)
    for axis, chosen, title in (
        (axes[0], arrays["weight_decays"] < middle, f"Around the lower bound {plain(low, 5)}"),
        (axes[1], arrays["weight_decays"] >= middle, f"Around the upper bound {plain(high, 5)}"),
    ):
        for colour, i in zip(COLOURS, np.flatnonzero(chosen), strict=False):
            style = "-" if arrays["stable"][i] else "--"
            losses = arrays["losses"][i] / arrays["losses"][i][0]
            axis.plot(losses, style, color=colour, label=plain(arrays["weight_decays"][i]))
        axis.set(
            xlabel="iteration",
            yscale="log",
            title=title,
            ylim=(1e-12, 1e8),
        )
        label_curves(axis)
    axes[0].set_ylabel("loss / first loss")
    figure.suptitle("Loss by weight decay (dashed: predicted unstable)", x=0.01, ha="left", fontsize=10)
    return figure
