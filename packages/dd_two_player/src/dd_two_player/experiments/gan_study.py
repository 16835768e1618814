"""GANs trained side by side with different update rules; one module for all rows of that kind."""

from __future__ import annotations

import resource
from typing import Any

import numpy as np
from scipy.stats import t as student

from dd_two_player.experiment_config import GanStudyConfig
from dd_two_player.gan_study import measure, seconds_of
from gdyn_common.plotting import new_figure
from gdyn_common.records import Result
from gdyn_common.runs import Estimate, Run

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
    """Draw distances per seed, 95 % intervals of their means, and samples of every arm at its last rates."""
    labels = [name.removesuffix("/pictures") for name in result.arrays if name.endswith("/pictures")]
    arms = list(dict.fromkeys(label.partition("@")[0] for label in labels))
    rates = {
        arm: [label.partition("@")[2] for label in labels if label.startswith(f"{arm}@")] for arm in arms
    }
    pairs = rates[arms[0]]
    figure, axes = new_figure(1, 1 + len(arms), figsize=(4 + 2.2 * len(arms), 3.6))
    for i, arm in enumerate(arms):
        title, last = arm.replace("_", " "), rates[arm][-1]
        label = title if rates[arm] == pairs else f"{title} at {last}"
        shift = 0.5 * ((i + 0.5) / len(arms) - 0.5)
        _draw_distances(axes[0], result.arrays["distances"][i], shift, f"C{i}", label)
        axes[1 + i].imshow(_tiled(result.arrays[f"{arm}@{last}/pictures"]), cmap="gray", vmin=0, vmax=1)
        axes[1 + i].set(title=f"{title}\nat {last}")
        axes[1 + i].set_axis_off()
    untrained = float(result.arrays["untrained"].mean())
    axes[0].axhline(untrained, color="0.5", linestyle="--", linewidth=0.8, label="untrained")
    axes[0].set_xticks(range(len(pairs)), pairs)
    axes[0].set(
        xlabel="learning rates, discriminator:generator",
        ylabel="Frechet classifier distance",
        xlim=(-0.5, len(pairs) - 0.5),
    )
    axes[0].set_ylim(bottom=0)  # intervals over few seeds may reach below, distances do not
    axes[0].legend(fontsize="small")
    return figure


def _draw_distances(ax: Any, distances: np.ndarray, shift: float, color: str, label: str) -> None:
    """Draw distances ``(rates, seeds)``; seeds that are not finite are left out and counted in the label."""
    lost = int((~np.isfinite(distances)).sum())
    for j, values in enumerate(distances):
        kept = values[np.isfinite(values)]
        ax.plot(np.full(len(kept), j + shift), kept, ".", color=color, alpha=0.5, markersize=4)
        if len(kept) > 1:
            half = student.ppf(0.975, len(kept) - 1) * kept.std(ddof=1) / np.sqrt(len(kept))
            ax.errorbar(j + shift, kept.mean(), half, fmt="_", capsize=3, color=color)
    ax.plot(
        [], [], "o", color=color, label=label + (f" ({lost} of {distances.size} not finite)" if lost else "")
    )


def _tiled(images: np.ndarray) -> np.ndarray:
    """Return the first images as one, in [0, 1], with a white line between neighbours."""
    values = (np.clip(np.nan_to_num(images[: SIDE * SIDE]), -1, 1) + 1) / 2
    framed = np.pad(values, [(0, 0), (0, 1), (0, 1), (0, 0)], constant_values=1.0)
    grid = framed.reshape(SIDE, SIDE, *framed.shape[1:])
    joined: np.ndarray = np.concatenate(np.concatenate(grid, 1), 1).squeeze()
    return joined
