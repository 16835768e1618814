"""Figure 2b: Lyapunov exponents of training over time."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from chaos.paper.config import Fig2bConfig
from chaos.paper.study import Study
from chaos.paper.training import Control
from gdyn_reproduce.plotting import COLOURS, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Estimate, Run

CONTROLS: tuple[Control, ...] = ("", "untrained", "bent up")


def compute(config: Fig2bConfig, run: Run) -> Result:
    """Follow the tangent matrix of SGD from every seed."""
    study = Study(config, run)
    study.announce(estimate)
    exponents, untrained, bent = (
        np.stack([study.tracked(seed, config.at, control)["exponents"] for seed in config.seeds])
        for control in CONTROLS
    )
    largest = exponents[:, :, -1]
    counts = (exponents > 0).sum(2)
    return Result(
        measurements={
            "largest_first": largest[:, 0].tolist(),
            "largest_last": largest[:, -1].tolist(),
            "fall": _last_over_first(largest),
            "count_ratio": _last_over_first(counts),
            # the controls: parameters that stay, and curvature that is positive after the first time
            "fall_untrained": _last_over_first(untrained[:, :, -1]),
            "count_ratio_bent_up": _last_over_first((bent > 0).sum(2)),
            "unresolved": float(np.isinf(exponents).sum()),
        },
        arrays={"at": np.array(config.at), "largest": largest, "counts": counts, "last": exponents[:, -1]},
    )


def _last_over_first(values: np.ndarray) -> list[float]:
    ratios: list[float] = (values[:, -1] / values[:, 0]).tolist()
    return ratios


def estimate(config: Fig2bConfig) -> Estimate:
    """Expected cost, from a few calibration steps."""
    seeds = len(config.seeds) * len(CONTROLS)
    return Study.estimate(config, tangent_steps=seeds * max(config.at), decompositions=seeds * len(config.at))


def plot(result: Result) -> Figure:
    """Draw the largest exponent and the number of expanding directions, and below them the last spectrum."""
    figure, axes = new_figure(2, 2, figsize=(6.4, 5.4))
    for ax in axes[1]:
        ax.remove()
    spectrum = figure.add_subplot(axes[0, 0].get_gridspec()[1, :])
    at = result.arrays["at"]
    for seed, (colour, largest, counts, last) in enumerate(
        zip(COLOURS, result.arrays["largest"], result.arrays["counts"], result.arrays["last"], strict=False)
    ):
        axes[0, 0].plot(at, largest, "o-", color=colour, label=f"seed {seed}")
        axes[0, 1].plot(at, counts, "o-", color=colour)
        spectrum.plot(last[np.isfinite(last)], color=colour)
    for ax, title, values in (
        (axes[0, 0], "Largest exponent, per step", result.arrays["largest"]),
        (axes[0, 1], "Number of expanding directions", result.arrays["counts"]),
    ):
        ax.set(title=title, xlabel="training steps", ylim=(0, 1.08 * values.max()))
    spectrum.set(title=f"All exponents after {at[-1]:g} steps, per step", xlabel="direction")
    spectrum.set_yscale("symlog", linthresh=1e-4)  # most are nearly zero
    spectrum.axhline(0, color="0.5", linewidth=0.8)
    axes[0, 0].legend()
    return figure
