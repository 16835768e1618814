"""Figure 2a: pruning of chaotic directions that starts after some steps of SGD."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from chaos.paper.config import Fig2aConfig
from chaos.paper.study import Study
from gdyn_reproduce.plotting import COLOURS, band, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Estimate, Run


def compute(config: Fig2aConfig, run: Run) -> Result:
    """Train SGD and one CGD run per start and seed."""
    study = Study(config, run)
    study.announce(estimate)
    sgd = [study.trained(seed) for seed in config.seeds]
    late = [[study.trained(seed, "chaotic", start) for seed in config.seeds] for start in config.starts]
    step = sgd[0]["step"]
    curves = {"sgd": np.stack([r["accuracy"] for r in sgd])}
    curves |= {
        f"start{start}": np.stack([r["accuracy"] for r in results])
        for start, results in zip(config.starts, late, strict=True)
    }
    finals = np.stack([curves[f"start{s}"][:, -1] for s in config.starts] + [curves["sgd"][:, -1]])
    order = np.arange(len(finals))
    measurements: dict[str, float | list[float]] = {
        "order": [float(spearmanr(order, finals[:, i]).statistic) for i in range(len(config.seeds))],
        "stall": [_stall(step, curves, config.starts, i) for i in range(len(config.seeds))],
    }
    for name, curve in curves.items():
        measurements[f"{name}_accuracy"] = _plateau(curve).tolist()
    return Result(measurements, {"step": step, "starts": np.array(config.starts), **curves})


def _plateau(curve: np.ndarray) -> np.ndarray:
    """Accuracy smoothed over the last tenth of the run, as the published curve is smoothed."""
    smoothed: np.ndarray = curve[:, -max(1, curve.shape[1] // 10) :].mean(1)
    return smoothed


def _stall(step: np.ndarray, curves: dict[str, np.ndarray], starts: list[int], i: int) -> float:
    """Gain after the first start as a share of what SGD gains in the same time."""
    at = int(np.searchsorted(step, starts[0]))
    ours, free = curves[f"start{starts[0]}"][i], curves["sgd"][i]
    return float((ours[-1] - ours[at]) / (free[-1] - free[at]))


def estimate(config: Fig2aConfig) -> Estimate:
    """Expected cost, from a few calibration steps."""
    pruned = sum(max(config.num_steps - start, 0) for start in config.starts) * len(config.seeds)
    plain = (len(config.starts) + 1) * config.num_steps * len(config.seeds) - pruned
    return Study.estimate(config, pruned_steps=pruned, plain_steps=plain)


def plot(result: Result) -> Figure:
    """Draw test accuracy over steps, the starts marked."""
    figure, axes = new_figure()
    starts = result.arrays["starts"].tolist()
    for colour, name in zip(COLOURS, [*(f"start{s}" for s in starts), "sgd"], strict=False):
        label = "SGD" if name == "sgd" else f"pruned from step {name.removeprefix('start')}"
        band(axes, result.arrays["step"], result.arrays[name], label, colour)
    for colour, start in zip(COLOURS, starts, strict=False):
        axes.axvline(start, color=colour, linestyle=":")
    axes.set(xlabel="step", ylabel="test accuracy", ylim=(0, 1))
    axes.legend()
    return figure
