"""GANs trained side by side with different update rules; one module for all rows of that kind."""

from __future__ import annotations

import resource
from typing import Any

import numpy as np
from scipy.stats import t as student

from dd_two_player.paper.experiment_config import GanStudyConfig
from dd_two_player.paper.gan_study import measure, seconds_of
from gdyn_reproduce.plotting import new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Estimate, Run

SIDE = 5


def compute(config: GanStudyConfig, run: Run) -> Result:
    """Train and score every arm."""
    measured, arrays = measure(config, run)
    return Result(measured, arrays)


def estimate(config: GanStudyConfig) -> Estimate:
    """Measure a few steps of every arm; memory is the largest of this process until then."""
    seconds = seconds_of(config)
    return Estimate(seconds, 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def plot(result: Result) -> Any:
    """Draw distances of every seed with their geometric means, and samples of every arm at its last rates.

    The titles of the samples, in the colour of the arm, are the legend of the distances.
    """
    labels = [name.removesuffix("/pictures") for name in result.arrays if name.endswith("/pictures")]
    arms = list(dict.fromkeys(label.partition("@")[0] for label in labels))
    rates = {arm: [at for name, _, at in (x.partition("@") for x in labels) if name == arm] for arm in arms}
    pairs = rates[arms[0]]
    if len(arms) <= 4:  # distances on the left, samples in two columns beside them
        figure, axes = new_figure(2, 3, figsize=(7.8, 4.8), gridspec_kw={"width_ratios": [1.6, 1, 1]})
        place: Any = np.s_[:, 0]
        sheets = axes[:, 1:]
    else:  # distances on top, samples in four columns under them
        below = -(-len(arms) // 4)
        heights = {"height_ratios": [1.6] + [1] * below}
        figure, axes = new_figure(1 + below, 4, figsize=(7.8, 3.2 + 2.0 * below), gridspec_kw=heights)
        place, sheets = np.s_[0, :], axes[1:]
    for ax in axes.flat:
        ax.set_axis_off()
    plane = figure.add_subplot(axes[0, 0].get_gridspec()[place])
    for i, (arm, ax) in enumerate(zip(arms, sheets.flat, strict=False)):
        distances, last = result.arrays["distances"][i], rates[arm][-1]
        _plot_distances(plane, distances, 0.6 * ((i + 0.5) / len(arms) - 0.5), f"C{i}")
        ax.imshow(_tiled(result.arrays[f"{arm}@{last}/pictures"]), cmap="gray", vmin=0, vmax=1)
        lost = int((~np.isfinite(distances)).sum())
        note = f"\n{lost} of {distances.size} not finite" if lost else ""
        ax.set_title(f"{arm.replace('_', ' ')}\n{last}{note}", color=f"C{i}")
    untrained = float(result.arrays["untrained"].mean())
    plane.axhline(untrained, color="0.5", linestyle="--", linewidth=0.8)
    plane.annotate(
        "untrained",
        (1.01, untrained),
        xycoords=("axes fraction", "data"),
        ha="left",
        va="center",
        annotation_clip=False,
    )
    plane.set_xticks(range(len(pairs)), pairs)
    plane.set(
        title="Fréchet distance of samples from data",
        xlabel="learning rates, discriminator:generator",
        yscale="log",
        xlim=(-0.5, len(pairs) - 0.5),
    )
    return figure


def _plot_distances(ax: Any, distances: np.ndarray, shift: float, color: str) -> None:
    """Draw distances ``(rates, seeds)`` and 95 % intervals of their geometric means, finite runs only."""
    for j, values in enumerate(distances):
        kept = values[np.isfinite(values)]
        ax.plot(np.full(len(kept), j + shift), kept, ".", color=color, alpha=0.6)
        if len(kept) > 1:
            logs = np.log(kept)
            half = student.ppf(0.975, len(kept) - 1) * logs.std(ddof=1) / np.sqrt(len(kept))
            low, mean, high = np.exp(logs.mean() + half * np.array([-1, 0, 1]))
            ax.errorbar(j + shift, mean, [[mean - low], [high - mean]], fmt="_", capsize=3, color=color, lw=1)


def _tiled(images: np.ndarray) -> np.ndarray:
    """Return the first images as one, in [0, 1], with a white line between neighbours."""
    values = (np.clip(np.nan_to_num(images[: SIDE * SIDE]), -1, 1) + 1) / 2
    framed = np.pad(values, [(0, 0), (0, 1), (0, 1), (0, 0)], constant_values=1.0)
    grid = framed.reshape(SIDE, SIDE, *framed.shape[1:])
    joined: np.ndarray = np.concatenate(np.concatenate(grid, 1), 1).squeeze()
    return joined
