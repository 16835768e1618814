"""Bias of minibatch directions: the average over equal parts of a batch against the whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import jax
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eigengame.core.directions import alpha_direction, mu_direction
from eigengame.paper.config import ComputeOptions, on_device
from gdyn_common.seeding import generator
from gdyn_reproduce.plotting import COLOURS, band, label_curves, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run

DIRECTIONS = {"mu": mu_direction, "alpha": alpha_direction}
QUARTERS = 4
"""Parts at which the error is judged; the picture shows all."""


@dataclass
class BiasConfig(ComputeOptions):
    """Averaged directions of equal parts of one batch against the direction of the whole.

    The error of mu is rounding, so the type is float64 by default.

    Attributes:
        num_samples: Size of the batch.
        dim: Dimension.
        num_components: Number of players.
        parts: Numbers of equal parts; each must divide num_samples.
        seeds: Seeds of data and vectors.
    """

    num_samples: int = 40
    dim: int = 50
    num_components: int = 10
    parts: list[int] = field(default_factory=lambda: [1, 2, 4, 10, 40])
    seeds: list[int] = field(default_factory=lambda: list(range(1000)))
    dtype: str = "float64"

    def __post_init__(self) -> None:
        super().__post_init__()
        for parts in self.parts:
            if parts < 1 or self.num_samples % parts:
                raise ValueError(f"parts={parts} does not divide num_samples={self.num_samples}.")


@on_device
def compute(config: BiasConfig, run: Run) -> Result:
    """Measure relative errors of averaged directions."""
    errors = run.piece("errors", partial(_errors, config))
    measurements: dict[str, list[float] | list[bool]] = {
        f"{name}_error_parts{QUARTERS}": errors[name][:, column].tolist()
        for column, parts in enumerate(config.parts)
        if parts == QUARTERS
        for name in DIRECTIONS
    }
    split = [column for column, parts in enumerate(config.parts) if parts > 1]
    measurements["mu_worst_error"] = errors["mu"].max(axis=1).tolist()
    for name in DIRECTIONS:
        measurements[f"{name}_error_grows"] = np.all(np.diff(errors[name][:, split]) > 0, axis=1).tolist()
    return Result(measurements, errors | {"parts": np.array(config.parts)})


def plot(result: Result) -> Figure:
    """Draw the relative error against the number of parts."""
    figure, axis = new_figure()
    for colour, name in zip(COLOURS, DIRECTIONS, strict=False):
        several = result.arrays["parts"] > 1  # one part is the whole batch, without any error
        errors = np.maximum(result.arrays[name][:, several], 1e-17)
        band(axis, result.arrays["parts"][several], errors, name, colour)
    axis.set(
        title="Mean of the directions of parts of a batch, against the direction of the whole",
        xscale="log",
        yscale="log",
        xlabel="parts of the batch",
        ylabel="relative error",
    )
    label_curves(axis)
    return figure


def _errors(config: BiasConfig) -> dict[str, NDArray]:
    per_seed = [_errors_of_seed(config, seed) for seed in config.seeds]
    return {name: np.array([errors[name] for errors in per_seed]) for name in DIRECTIONS}


def _errors_of_seed(config: BiasConfig, seed: int) -> dict[str, list[float]]:
    draw = generator(seed, "bias")
    X = draw.standard_normal((config.num_samples, config.dim)) * np.geomspace(10, 0.1, config.dim)
    V = draw.standard_normal((config.num_components, config.dim))
    V /= np.linalg.norm(V, axis=1, keepdims=True)
    errors: dict[str, list[float]] = {}
    for name in DIRECTIONS:
        exact = np.asarray(_averaged(V, X[None], name))
        averages = (_averaged(V, X.reshape(parts, -1, config.dim), name) for parts in config.parts)
        errors[name] = [float(np.linalg.norm(mean - exact) / np.linalg.norm(exact)) for mean in averages]
    return errors


@partial(jax.jit, static_argnames="name")
def _averaged(V: Array, parts: Array, name: str) -> Array:
    average: Array = jax.vmap(partial(DIRECTIONS[name], V))(parts).mean(axis=0)
    return average
