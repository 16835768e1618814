"""Table 2: weight decays, their predicted stability, and what a simulation does."""

from __future__ import annotations

from functools import partial

import numpy as np
from matplotlib.figure import Figure

from gdyn_reproduce.plotting import new_figure, plain
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Estimate, Run
from instability.paper import linear_runs
from instability.paper.calibration import one_layer_cost
from instability.paper.linear_runs import LinearConfig


def compute(config: LinearConfig, run: Run) -> Result:
    """Compare the growth factor of each run with the largest ``|1 - lr (alpha - mu)|`` of the spectrum."""
    thresholds = linear_runs.thresholds(config)
    predicted = linear_runs.predicted_growth(config)
    runs = [
        run.piece(f"weight_decay={decay:g}", partial(linear_runs.simulate, config, decay))
        for decay in run.progress(config.weight_decays, "weight decays")
    ]
    measured = np.array([float(r["growth"]) for r in runs])
    stable = np.array([thresholds.is_stable(decay) for decay in config.weight_decays])
    settles, decays = measured <= 1 + linear_runs.MARGIN, np.array(config.weight_decays)
    return Result(
        measurements={
            "alpha_min": thresholds.alpha_min,
            "alpha_max": thresholds.alpha_max,
            "periodic_over_exact": thresholds.periodic_bound / thresholds.alpha_min,
            "growth_error": float(np.abs(measured - predicted).max()),
            "growth_error_of_neighbours": float(np.abs(measured - np.roll(predicted, 1)).max()),
            "verdicts_agree": bool((settles == stable).all()),
            "verdicts_of_periodic_bound": bool(
                (settles == (decays >= thresholds.periodic_bound) & (decays <= thresholds.alpha_max)).all()
            ),
            "periodic_bound": thresholds.periodic_bound,
            "controls": all(bool(r["controls"]) for r in runs),
        },
        arrays={
            "weight_decays": np.array(config.weight_decays),
            "predicted": predicted,
            "measured": measured,
            "stable": stable,
            "bounds": np.array([thresholds.alpha_min, thresholds.alpha_max]),
        },
    )


def estimate(config: LinearConfig) -> Estimate:
    """Time a step and count three copies for each weight decay."""
    return one_layer_cost(config, 3 * len(config.weight_decays))


def plot(result: Result) -> Figure:
    """Draw the table: one row per weight decay."""
    arrays = result.arrays
    figure, axis = new_figure(figsize=(7.2, 3.2))
    axis.axis("off")
    rows = [
        [plain(decay), "stable" if stable else "unstable", f"{p:.6f}", f"{m:.6f}"]
        for decay, stable, p, m in zip(
            arrays["weight_decays"], arrays["stable"], arrays["predicted"], arrays["measured"], strict=True
        )
    ]
    header = ["weight decay", "bounds say", "growth per step, predicted", "measured"]
    table = axis.table(rows, colLabels=header, loc="center", cellLoc="center")
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    table.scale(1, 1.5)
    for (row, _), cell in table.get_celld().items():
        cell.set_linewidth(0.3)
        if row and not arrays["stable"][row - 1]:
            cell.set_facecolor("#FBE3D6")
    low, high = arrays["bounds"]
    axis.set_title(f"The map is stable for weight decay from {plain(low, 5)} to {plain(high, 5)}")
    return figure
