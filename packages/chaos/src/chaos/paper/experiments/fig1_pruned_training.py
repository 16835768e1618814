"""Figure 1: test accuracy with chaotic, negative or positive curvature directions removed."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from chaos.paper.config import Fig1Config
from chaos.paper.study import Study
from gdyn_reproduce.plotting import COLOURS, band, label_curves, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Estimate, Run

DIRECTIONS = {"pos": "positive", "neg": "negative"}


def compute(config: Fig1Config, run: Run) -> Result:
    """Train every arm from every seed and compare final accuracies."""
    study = Study(config, run)
    study.announce(estimate)
    runs = {
        arm: [study.trained(seed, None if arm == "sgd" else arm) for seed in config.seeds]
        for arm in config.arms
    }
    final = {arm: np.array([r["accuracy"][-1] for r in results]) for arm, results in runs.items()}
    measurements: dict[str, float | list[float]] = {
        f"{arm}_accuracy": values.tolist() for arm, values in final.items()
    }
    for name in (
        "chaotic_minus_sgd",
        "neg_minus_sgd",
        "pos_minus_sgd",
        "pos_minus_chaotic",
        "neg_minus_chaotic",
        "random_minus_sgd",
        "pos_minus_random",
    ):
        a, b = name.split("_minus_")
        if a in final and b in final:
            measurements[name] = (final[a] - final[b]).tolist()
    arrays = {"step": runs[config.arms[0]][0]["step"], "arms": np.array(config.arms)}
    arrays |= {arm: np.stack([r["accuracy"] for r in results]) for arm, results in runs.items()}
    arrays |= {
        f"{arm}_pruned_fraction": np.stack([r["pruned_fraction"] for r in results])
        for arm, results in runs.items()
    }
    return Result(measurements, arrays)


def estimate(config: Fig1Config) -> Estimate:
    """Expected cost, from a few calibration steps."""
    pruned = sum(arm != "sgd" for arm in config.arms) * len(config.seeds) * config.num_steps
    return Study.estimate(config, pruned_steps=pruned, plain_steps=len(config.seeds) * config.num_steps)


def plot(result: Result) -> Figure:
    """Draw test accuracy over steps, mean and range over seeds."""
    figure, axes = new_figure()
    for colour, arm in zip(COLOURS, result.arrays["arms"].tolist(), strict=False):
        label = "SGD, none removed" if arm == "sgd" else f"{DIRECTIONS.get(arm, arm)} removed"
        band(axes, result.arrays["step"], result.arrays[arm], label, colour)
        if arm == "neg":  # usually the same curve as without chaotic directions: let both be seen
            axes.lines[-1].set_linestyle("--")
    axes.set(
        title="Test accuracy when some directions are removed from every step",
        xlabel="step",
        ylabel="test accuracy",
        ylim=(0, 1),
    )
    label_curves(axes)
    return figure
