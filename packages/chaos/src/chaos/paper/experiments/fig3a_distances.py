"""Figure 3a: distances of perturbed trainings to the unperturbed one."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from chaos.paper.config import Fig3Config
from chaos.paper.study import Study
from chaos.perturbation import STRATEGIES
from gdyn_reproduce.plotting import COLOURS, band, label_curves, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Estimate, Run


def compute(config: Fig3Config, run: Run) -> Result:
    """Perturb along the directions of the tangent matrix and follow all copies together."""
    study = Study(config, run)
    study.announce(estimate)
    runs = [study.perturbed(seed) for seed in config.seeds]
    distances = np.stack([r["distances"] for r in runs])  # (seeds, strategies, times)
    final = {name: distances[:, i, -1] for i, name in enumerate(STRATEGIES)}
    converging = np.maximum(final["max_convergence"], final["randn_convergence"])
    others = np.minimum.reduce([final[name] for name in ("max_chaos", "randn_chaos", "randn")])
    rivals = np.maximum.reduce([values for name, values in final.items() if name != "max_chaos"])
    calm = np.minimum.reduce([final[name] for name in ("max_convergence", "randn_convergence", "randn")])
    t, half = runs[0]["t"], distances.shape[2] // 2
    late = distances[:, :, -1] / distances[:, :, half]
    largest = np.array([r["exponents"].max() for r in runs])
    measurements: dict[str, bool | float | list[float] | list[bool]] = {
        "max_chaos_is_fastest": (final["max_chaos"] > rivals).tolist(),
        "convergence_is_slowest": (converging < others).tolist(),
        "late_growth": late.min(1).tolist(),
        # the controls: other perturbations in the place of the chosen ones, and growth by the exponent
        "randn_is_fastest": (final["randn"] > np.maximum(final["max_chaos"], final["randn_chaos"])).tolist(),
        "chaos_is_slowest": (np.maximum(final["max_chaos"], final["randn_chaos"]) < calm).tolist(),
        "exponential_growth": np.exp(largest * (t[-1] - t[half])).tolist(),
    }
    measurements |= {f"{name}_distance": values.tolist() for name, values in final.items()}
    return Result(measurements, {"t": t, "distances": distances})


def estimate(config: Fig3Config) -> Estimate:
    """Expected cost, from a few calibration steps."""
    return Study.estimate_perturbed(config)


def plot(result: Result) -> Figure:
    """Draw the distances, mean and range over seeds."""
    figure, axes = new_figure()
    for i, (colour, name) in enumerate(zip(COLOURS, STRATEGIES, strict=False)):
        label = name.replace("randn", "random").replace("_", " ")
        band(axes, result.arrays["t"], result.arrays["distances"][:, i], label, colour)
    axes.set(
        title="Distance from the unperturbed run, by direction of the perturbation",
        xlabel="training step",
        ylabel="distance of the weights",
    )
    label_curves(axes)
    return figure
