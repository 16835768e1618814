"""Figure 2a: pruning of chaotic directions that starts after some steps of SGD."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from chaos.paper.config import Fig2aConfig
from chaos.paper.study import Study
from gdyn_reproduce.plotting import COLOURS, band, label_curves, new_figure
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
        "order": _correlations(finals, lambda i: order),
        # the control: each curve under the start of another one
        "order_of_others": _correlations(finals, lambda i: np.roll(order, 1 + i % (len(order) - 1))),
        "initial_accuracy": curves["sgd"][:, 0].tolist(),
    }
    for i, start in enumerate(config.starts):
        gain, free = (_gain(step, curves[name], start) for name in (f"start{start}", "sgd"))
        measurements["stall" if i == 0 else f"stall_{i + 1}"] = _share(gain, free)
        # the control: SGD of the next seed in the place of the pruned run
        measurements["stall_of_sgd" if i == 0 else f"stall_of_sgd_{i + 1}"] = _share(np.roll(free, 1), free)
    for name, curve in curves.items():
        measurements[f"{name}_accuracy"] = _plateau(curve).tolist()
    return Result(measurements, {"step": step, "starts": np.array(config.starts), **curves})


def _correlations(finals: np.ndarray, order: Callable[[int], np.ndarray]) -> list[float]:
    """Rank correlation of final accuracies with an order of the curves, for each seed."""
    return [float(spearmanr(order(i), column).statistic) for i, column in enumerate(finals.T)]


def _plateau(curve: np.ndarray) -> np.ndarray:
    """Accuracy smoothed over the last tenth of the run, as the published curve is smoothed."""
    smoothed: np.ndarray = curve[:, -max(1, curve.shape[1] // 10) :].mean(1)
    return smoothed


def _gain(step: np.ndarray, curve: np.ndarray, start: int) -> np.ndarray:
    """Accuracy gained from a step to the end, for each seed."""
    at = min(int(np.searchsorted(step, start)), len(step) - 1)
    gain: np.ndarray = curve[:, -1] - curve[:, at]
    return gain


def _share(gain: np.ndarray, free: np.ndarray) -> list[float]:
    """NaN for a seed whose SGD gained nothing either."""
    shares: list[float] = np.divide(gain, free, out=np.full_like(free, np.nan), where=free != 0).tolist()
    return shares


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
        label = "never (SGD)" if name == "sgd" else f"from step {name.removeprefix('start')}"
        band(axes, result.arrays["step"], result.arrays[name], label, colour)
    for colour, start in zip(COLOURS, starts, strict=False):
        axes.axvline(start, color=colour, linestyle=":")
    axes.set(
        title="Test accuracy when chaotic directions are removed from a step on",
        xlabel="step",
        ylabel="test accuracy",
        ylim=(0, 1),
    )
    label_curves(axes)
    return figure
