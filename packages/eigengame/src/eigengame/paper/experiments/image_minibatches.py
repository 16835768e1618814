"""Minibatches of images: streak and subspace distance at several batch sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eigengame.core.learning_rate import auto_constant
from eigengame.exact import pca
from eigengame.paper.comparison import as_device, best_rate, config_of, follow
from eigengame.paper.config import DataOptions, check_positive, on_device, per_seed
from gdyn_reproduce.plotting import COLOURS, band, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run

HELD_OUT = 1_000_003  # seed on which learning rates are chosen, never reported


@dataclass
class ImagesConfig(DataOptions):
    """Minibatches of images.

    Attributes:
        dataset: digits, mnist, fashion_mnist or another name of the loader.
        batch_sizes: Rows per step.
        methods: mu, alpha, gha, oja.
        rate_factors: Candidate learning rates, times the automatic one of the batch size.
        momentum: Nesterov momentum.
        num_samples: Samples shown to each method; steps are this over the batch size.
        num_steps: Most steps at any batch size.
        num_points: Points of the curves.
        seeds: Seeds of starting vectors and batches; learning rates are chosen on another one.
    """

    dataset: str = "mnist"
    num_components: int = 16
    batch_sizes: list[int] = field(default_factory=lambda: [1024, 256, 32])
    methods: list[str] = field(default_factory=lambda: ["mu", "alpha", "gha", "oja"])
    rate_factors: list[float] = field(default_factory=lambda: [0.03, 0.1, 0.3, 1.0])
    momentum: float = 0.9
    num_samples: int = 3_000_000
    num_steps: int = 6000
    num_points: int = 40
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(
            num_components=self.num_components,
            num_samples=self.num_samples,
            num_steps=self.num_steps,
            num_points=self.num_points,
        )
        if not self.batch_sizes or min(self.batch_sizes) < 1 or not self.rate_factors:
            raise ValueError("batch_sizes and rate_factors need at least one positive entry each.")


@on_device
def compute(config: ImagesConfig, run: Run) -> Result:
    """Choose each method's rate on a held-out seed, then follow it on the seeds."""
    data = config.training_set(config.dataset)
    run.note(data=data.provenance())
    images = np.asarray(data.x, config.dtype) / (255 if data.x.dtype == np.uint8 else 1)
    rows = as_device(images, config.dtype)
    exact = pca(np.asarray(rows), config.num_components)
    arrays: dict[str, NDArray] = {}
    measurements: dict[str, list[float]] = {}
    for batch_size in config.batch_sizes:
        for method in run.progress(config.methods, f"batch size {batch_size}"):
            one = partial(_follow, config, rows, exact.vectors, float(exact.values[0]), method, batch_size)
            name = f"batch={batch_size}/{method}"
            chosen = run.piece(f"{name}/rate", lambda one=one: _choose(config, one))  # type: ignore[misc]
            factor = float(chosen["factor"])
            curves = per_seed(run, f"{name}/", partial(one, factor), config.seeds)
            arrays[f"{batch_size}/steps"] = curves["steps"][0]
            arrays[f"{batch_size}/{method}/factor"] = np.array(factor)
            for metric in ("streak", "distance"):
                arrays[f"{batch_size}/{method}/{metric}"] = stacked = curves[metric]
                # the mean over the last quarter: single points jump with the noise of a batch
                tail = stacked[:, -max(stacked.shape[1] // 4, 1) :].mean(axis=1)
                measurements[f"batch{batch_size}_{method}_{metric}"] = tail.tolist()
                measurements[f"batch{batch_size}_{method}_start_{metric}"] = stacked[:, 0].tolist()
                measurements[f"batch{batch_size}_{method}_best_{metric}"] = (
                    stacked.max(axis=1) if metric == "streak" else stacked.min(axis=1)
                ).tolist()
        measurements |= _comparisons(measurements, batch_size, config.methods)
    return Result(measurements, arrays)


def plot(result: Result) -> Figure:
    """Draw streak (top) and subspace distance (bottom), a column per batch size."""
    sizes = sorted({int(name.split("/")[0]) for name in result.arrays}, reverse=True)
    figure, axes = new_figure(
        2, len(sizes), squeeze=False, sharex="col", sharey="row", figsize=(2.7 * len(sizes), 5.2)
    )
    for column, size in enumerate(sizes):
        steps = result.arrays[f"{size}/steps"]
        for row, metric in enumerate(("streak", "distance")):
            names = [name for name in result.arrays if name.startswith(f"{size}/") and name.endswith(metric)]
            for colour, name in zip(COLOURS, names, strict=False):
                band(axes[row, column], steps, result.arrays[name], name.split("/")[1], colour)
        factors = (
            f"{float(result.arrays[name]):.2g}"
            for name in result.arrays
            if name.startswith(f"{size}/") and name.endswith("/factor")
        )
        axes[0, column].set_title(f"Batches of {size},\nrates x {', '.join(factors)}", fontsize=9)
        axes[1, column].set(xlabel="step", yscale="log")
    axes[0, 0].set_ylabel("longest correct streak")
    axes[1, 0].set_ylabel("subspace distance")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=8)
    return figure


def _num_steps(config: ImagesConfig, batch_size: int) -> int:
    return min(config.num_steps, max(config.num_samples // batch_size, config.num_points))


def _follow(
    config: ImagesConfig,
    rows: jnp.ndarray,
    truth: NDArray,
    top: float,
    method: str,
    batch_size: int,
    factor: float,
    seed: int,
) -> dict[str, NDArray]:
    rate = factor * auto_constant(batch_size, config.momentum) / top
    return follow(
        config_of(method, config.momentum),
        rate,
        rows,
        truth,
        batch_size=batch_size,
        num_steps=_num_steps(config, batch_size),
        num_points=config.num_points,
        seed=seed,
    )


def _choose(config: ImagesConfig, one: partial[dict[str, NDArray]]) -> dict[str, NDArray]:
    def score(factor: float) -> float:
        curves = one(factor, HELD_OUT)
        return float(curves["streak"][config.num_points // 2 :].mean() - curves["distance"][-1])

    return {"factor": np.array(best_rate(config.rate_factors, score))}


def _comparisons(
    measured: dict[str, list[float]], batch_size: int, methods: list[str]
) -> dict[str, list[float]]:
    """Return mu against the others: ratio of distances, difference of streaks."""
    comparisons = {}
    for other in methods:
        for when in ("", "start_"):
            if other == "mu" or "mu" not in methods:
                continue
            ours, theirs = (
                {
                    metric: np.array(measured[f"batch{batch_size}_{name}_{when}{metric}"])
                    for metric in ("streak", "distance")
                }
                for name in ("mu", other)
            )
            prefix = f"batch{batch_size}_mu_over_{other}_{when}"
            comparisons[f"{prefix}distance_ratio"] = (ours["distance"] / theirs["distance"]).tolist()
            comparisons[f"{prefix}streak_lead"] = (ours["streak"] - theirs["streak"]).tolist()
    return comparisons
