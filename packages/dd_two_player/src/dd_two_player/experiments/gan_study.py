"""GANs trained side by side with different update rules; one module for all rows of that kind."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import t as student

from dd_two_player.experiment_config import GanStudyConfig
from dd_two_player.gan_study import measure
from gdyn_common.plotting import new_figure
from gdyn_common.records import Result
from gdyn_common.runs import Run

SIDE = 5


def compute(config: GanStudyConfig, run: Run) -> Result:
    """Train and score every arm."""
    measured, arrays = measure(config, run)
    return Result(measured, arrays)


def plot(result: Result) -> Any:
    """Draw distances with 95 % intervals over seeds, and samples of every arm."""
    labels = [name.removesuffix("/pictures") for name in result.arrays if name.endswith("/pictures")]
    arms = list(dict.fromkeys(label.partition("@")[0] for label in labels))
    pairs = list(dict.fromkeys(label.partition("@")[2] for label in labels))
    figure, axes = new_figure(1, 1 + len(arms), figsize=(4 + 2.2 * len(arms), 3.6))
    scores = result.arrays["scores"]
    for i, arm in enumerate(arms):
        mean, count = scores[i].mean(1), scores.shape[2]
        error = scores[i].std(1, ddof=1) / np.sqrt(count) if count > 1 else np.zeros_like(mean)
        half = student.ppf(0.975, max(count - 1, 1)) * error
        axes[0].errorbar(np.arange(len(pairs)) + 0.08 * i, mean, half, fmt="o", capsize=3, label=arm)
        images = result.arrays[f"{arm}@{pairs[-1]}/pictures"][: SIDE * SIDE]
        grid = images.reshape(SIDE, SIDE, *images.shape[1:])
        joined = np.concatenate(np.concatenate(grid, 1), 1).squeeze()
        axes[1 + i].imshow((np.clip(np.nan_to_num(joined), -1, 1) + 1) / 2, cmap="gray", vmin=0, vmax=1)
        axes[1 + i].set(title=f"{arm}\n{pairs[-1]}")
        axes[1 + i].set_axis_off()
    axes[0].set_xticks(range(len(pairs)), pairs)
    axes[0].set(xlabel="rates disc:gen", ylabel="Frechet classifier distance")
    axes[0].legend()
    return figure
