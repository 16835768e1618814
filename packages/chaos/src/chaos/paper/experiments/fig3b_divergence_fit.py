"""Figure 3b: the growth law ``d^2 = a t + b t^2 + d_0^2`` and exponential bounds."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import minimize_scalar

from chaos.divergence import exponential_bounds, fit_divergence
from chaos.paper.config import Fig3Config
from chaos.paper.study import Study
from chaos.perturbation import STRATEGIES
from gdyn_reproduce.plotting import COLOURS, label_curves, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Estimate, Run


def compute(config: Fig3Config, run: Run) -> Result:
    """Fit every distance curve and compare it with the bounds of the exponents."""
    study = Study(config, run)
    study.announce(estimate)
    runs = [study.perturbed(seed) for seed in config.seeds]
    t = runs[0]["t"]
    distances = np.stack([r["distances"] for r in runs])
    fits = [[fit_divergence(t, d, config.distance) for d in curves] for curves in distances]
    bounds = np.stack([np.stack(exponential_bounds(t, config.distance, _extremes(r))) for r in runs])
    early, farthest = t <= config.tangent_steps, distances[:, :, -1].max(1)
    curves = np.array([[f.curve for f in row] for row in fits])
    inside = (distances >= bounds[:, None, 0]) & (distances <= bounds[:, None, 1])
    flat = (distances >= bounds[:, None, 0]) & (distances <= config.distance)
    spread = _power(distances - distances.mean(2, keepdims=True))
    return Result(
        measurements={
            "r2": [float(np.median([f.r2 for f in row])) for row in fits],
            "worst_r2": [min(f.r2 for f in row) for row in fits],
            "early_inside": inside[:, :, early].mean((1, 2)).tolist(),
            "late_gap": np.log10(bounds[:, 1, -1] / farthest).tolist(),
            "r2_exponential": [float(np.median([_exponential_r2(t, d) for d in row])) for row in distances],
            # the controls: no divergence, no exponent above zero, and the law in the place of the bound
            "r2_constant": np.median(1 - _power(distances - config.distance) / spread, 1).tolist(),
            "early_inside_flat": flat[:, :, early].mean((1, 2)).tolist(),
            "late_gap_of_law": np.log10(curves[:, :, -1].max(1) / farthest).tolist(),
        },
        arrays={
            "t": t,
            "distances": distances,
            "fits": curves,
            "bounds": bounds,
        },
    )


def _power(a: np.ndarray) -> np.ndarray:
    power: np.ndarray = (a**2).sum(-1)
    return power


def _exponential_r2(t: np.ndarray, distance: np.ndarray) -> float:
    """Share of the variance of the distances that the best ``A exp(c t)`` explains, the rival law."""

    def residual(c: float) -> float:
        basis = np.exp(c * (t - t[-1]))
        return float(_power(distance - basis * (distance @ basis) / (basis @ basis)))

    steepest = 30 / t[-1]
    best = minimize_scalar(residual, bounds=(-steepest, steepest), method="bounded").fun
    return 1 - float(best) / float(_power(distance - distance.mean()))


def _extremes(run: dict[str, np.ndarray]) -> tuple[float, float]:
    finite = run["exponents"][np.isfinite(run["exponents"])]
    return float(finite.min()), float(finite.max())


def estimate(config: Fig3Config) -> Estimate:
    """Expected cost, from a few calibration steps."""
    return Study.estimate_perturbed(config)


def plot(result: Result) -> Figure:
    """Draw one seed: distances, fits (dashed) and the bounds."""
    figure, axes = new_figure()
    a = result.arrays
    for colour, name, distance, fit in zip(
        COLOURS, STRATEGIES, a["distances"][0], a["fits"][0], strict=False
    ):
        label = name.replace("randn", "random").replace("_", " ")
        axes.plot(a["t"], distance, color=colour, label=label)
        axes.plot(a["t"], fit, color=colour, linestyle="--")
    low, high = a["bounds"][0]
    axes.fill_between(a["t"], low, high, color="0.9")
    axes.set(
        title="Distance from the unperturbed run (dashed: fitted law; grey: exponential bounds)",
        xlabel="training step",
        ylabel="distance of the weights",
        yscale="log",
        ylim=(a["distances"].min() / 2, 10 * a["distances"].max()),
    )
    label_curves(axes)
    return figure
