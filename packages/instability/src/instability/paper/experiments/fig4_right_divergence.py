"""Figure 4, right: copies of the non-linear PDE that differ by rounding, and their predicted growth."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure

from gdyn_reproduce.plotting import COLOURS, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Estimate, Run
from instability import metrics
from instability.paper.calibration import one_layer_cost
from instability.paper.config import (
    OneLayerConfig,
    check_checkerboard,
    check_perturbations,
    check_rates,
)
from instability.paper.images import make_image
from instability.pde import nonlinear as nonlinear_pde
from instability.pde.reduced_map import ReducedMap, log_growth, split_kernel

NULL_CONTROLS = (1, 2)
FLOOR = {"float64": 1e-13, "float32": 1e-6}
"""Divergence at which growth is first measured: above one rounding, below everything else."""
VISIBLE = 1e-3
TRANSIENT = 100


@dataclass
class Fig4RightConfig(OneLayerConfig):
    """Divergence of two copies of the non-linear PDE.

    Attributes:
        learning_rates: Step sizes whose copies the paper compares, and two controls.
        weight_decay: Coefficient of the weights in the gradient.
        perturbations: The integers k; null controls k = 1 and k = 2 are added.
        window: Steps averaged for the drawn curves.
    """

    learning_rates: list[float] = field(default_factory=lambda: [0.01, 0.03, 0.04, 0.05, 0.06, 0.07, 0.09])
    weight_decay: float = 20.0
    perturbations: list[int] = field(default_factory=lambda: [1, 3, 5, 7])
    window: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rates("learning_rates", self.learning_rates)
        check_rates("weight_decay", [self.weight_decay], zero=True)
        check_checkerboard(self.image)
        check_perturbations(self.perturbations)
        if not 1 <= self.window < self.num_steps:
            raise ValueError(
                f"window={self.window} must lie between 1 and num_steps - 1 = {self.num_steps - 1}."
            )


def compute(config: Fig4RightConfig, run: Run) -> Result:
    """Measure every copy against k = 1 at every step, for each first kernel."""
    reduced = ReducedMap(config.kernel_size, config.image_size, config.weight_decay, config.label)
    rates = np.array(config.learning_rates)
    shape = (len(config.seeds), len(rates))
    keys = [(s, r) for s in config.seeds for r in config.learning_rates]
    pieces = [
        run.piece(f"seed={s}/learning_rate={r:g}", partial(_simulate, config, s, r))
        for s, r in run.progress(keys, "copies")
    ]
    curves = np.array([p["divergence"] for p in pieces]).reshape(*shape, -1, config.num_steps)
    predicted = np.array([_predict(config, reduced, s, r) for s, r in keys]).reshape(*shape, -1)
    chaotic = np.asarray(reduced.lyapunov_exponent(rates)) > 0.05
    floor = FLOOR[config.dtype]
    # The controls below amplify a little before they settle; what they must do is forget.
    start = min(TRANSIENT, config.num_steps // 2)
    late = curves[..., start:]
    ratios = [
        [_growth_ratio(c, p, floor) for c, p in zip(*pair, strict=True)]
        for pair in _pairs(curves, predicted, chaotic)
    ]
    amplified = (curves[:, chaotic].max(axis=-1) > VISIBLE).all(axis=(1, 2))
    forgotten = (late[:, ~chaotic].max(axis=-1) < 10 * floor).all(axis=(1, 2))
    return Result(
        measurements={
            "chaotic_rates_amplify": amplified.tolist(),
            "other_rates_forget": forgotten.tolist(),
            "other_rates_amplify": (curves[:, ~chaotic].max(axis=-1) > VISIBLE).all(axis=(1, 2)).tolist(),
            "null_divergence": max(float(p["controls"]) for p in pieces),
            "growth_over_prediction": [float(np.nanmean(r)) if r else float("nan") for r in ratios],
            "saturation": late[:, chaotic][..., late.shape[-1] // 2 :].mean(axis=(1, 2, 3)).tolist(),
            "controls": all(float(p["controls"]) == 0 for p in pieces),
        },
        arrays={
            "divergence": curves[0, :, 0],
            "predicted": predicted[0],
            "learning_rates": rates,
            "chaotic": chaotic,
            "window": np.array(config.window),
        },
    )


def estimate(config: Fig4RightConfig) -> Estimate:
    """Time a step and count every copy and control."""
    copies = len(NULL_CONTROLS) + len(config.perturbations)
    return one_layer_cost(config, copies * len(config.learning_rates) * len(config.seeds))


def plot(result: Result) -> Figure:
    """Draw raw curves from rounding level up, with their prediction, and the paper's moving average."""
    arrays = result.arrays
    figure, axes = new_figure(1, 2)
    first = arrays["divergence"]
    window = int(arrays["window"])
    for i, (colour, rate) in enumerate(zip(COLOURS, arrays["learning_rates"], strict=False)):
        axes[0].plot(np.maximum(first[i], 1e-17), color=colour, label=f"{rate:.3g}", linewidth=1)
        if arrays["chaotic"][i]:
            growth = arrays["predicted"][i]
            line = np.exp(np.minimum(growth - growth[0], 100)) * max(first[i][0], 1e-16)
            axes[0].plot(np.where(line < 2, line, np.nan), ":", color=colour, linewidth=1)
        axes[1].plot(metrics.moving_average(first[i], window), color=colour)
    axes[0].set(
        xlabel="iteration",
        ylabel="average relative L1",
        yscale="log",
        ylim=(1e-17, 10),
        xlim=(0, 200),
        title="Distance of two copies (dotted: predicted)",
    )
    handles = axes[0].get_legend_handles_labels()
    axes[1].legend(*handles, title="rate", loc="center left", bbox_to_anchor=(1, 0.5))
    axes[1].set(xlabel="iteration", ylim=(0, 2), title=f"The same, mean over {window} iterations")
    return figure


def _simulate(config: Fig4RightConfig, seed: int, learning_rate: float) -> dict[str, np.ndarray | float]:
    """Return the divergence of each perturbed copy and the largest of the null controls."""
    ks = [1, *NULL_CONTROLS, *config.perturbations[1:]]
    curves: list[list[float]] = []

    def observe(_: int, kernels: torch.Tensor) -> None:
        baseline = kernels[0].numpy()
        curves.append([metrics.average_relative_l1(copy, baseline) for copy in kernels.numpy()[1:]])

    nonlinear_pde.simulate(
        make_image(config.image, config.image_size),
        nonlinear_pde.initial_kernel(config.kernel_size, seed),
        learning_rates=learning_rate,
        weight_decays=config.weight_decay,
        num_steps=config.num_steps,
        label=config.label,
        perturbations=ks,
        options=config.options(),
        observe=observe,
    )
    divergence = np.array(curves).T
    controls = len(NULL_CONTROLS)
    return {"divergence": divergence[controls:], "controls": float(divergence[:controls].max())}


def _predict(config: Fig4RightConfig, reduced: ReducedMap, seed: int, learning_rate: float) -> np.ndarray:
    c, _ = split_kernel(nonlinear_pde.initial_kernel(config.kernel_size, seed))
    path = reduced.trajectory(c, learning_rate, config.num_steps - 1)
    return log_growth(np.asarray(reduced.sharpness(path)), learning_rate)


def _pairs(
    curves: np.ndarray, predicted: np.ndarray, chaotic: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each seed, every chaotic curve with the prediction of its learning rate."""
    copies = curves.shape[2]
    return [
        (c[chaotic].reshape(-1, c.shape[-1]), np.repeat(p[chaotic], copies, axis=0))
        for c, p in zip(curves, predicted, strict=True)
    ]


def _growth_ratio(curve: np.ndarray, predicted: np.ndarray, floor: float) -> float:
    """Return measured over predicted e-folds per step, between the floor and visibility."""
    start, end = metrics.first_step_above(curve, floor), metrics.first_step_above(curve, VISIBLE)
    if start < 0 or end - start < 2:
        return float("nan")
    rate = (predicted[end] - predicted[start]) / (end - start)
    return metrics.growth_rate(curve, floor, VISIBLE) / float(rate)
