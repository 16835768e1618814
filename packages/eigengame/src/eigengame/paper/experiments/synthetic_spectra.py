"""Synthetic spectra: how many eigenvectors each method gets right in a fixed number of steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eigengame.core.directions import direction_from_products, project_to_tangent
from eigengame.core.solver import initial_vectors, retract
from eigengame.metrics import longest_correct_eigenvector_streak
from eigengame.paper.comparison import best_rate
from eigengame.paper.config import ComputeOptions, check_positive, on_device, per_seed
from eigengame.paper.synthetic import spectrum, symmetric_matrix
from gdyn_common.seeding import generator
from gdyn_reproduce.plotting import COLOURS, band, label_curves, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run


@dataclass
class SyntheticConfig(ComputeOptions):
    """Known spectra, exact products.

    Attributes:
        dim: Size of the matrix; all its eigenvectors are sought.
        spectra: linear, exponential.
        methods: mu, alpha, gha, oja, mu projected.
        learning_rates: Each method takes the one with the longest streak on held-out matrices.
        held_out: Number of held-out matrices.
        num_points: Points of the curves.
        seeds: Seeds of matrices and starting vectors.
    """

    dim: int = 50
    spectra: list[str] = field(default_factory=lambda: ["linear", "exponential"])
    methods: list[str] = field(default_factory=lambda: ["mu", "alpha", "gha", "oja", "mu projected"])
    learning_rates: list[float] = field(default_factory=lambda: [1e-1, 1e-2, 1e-3, 1e-4])
    held_out: int = 10
    num_steps: int = 1000
    num_points: int = 50
    seeds: list[int] = field(default_factory=lambda: list(range(10)))

    def __post_init__(self) -> None:
        super().__post_init__()
        if "mu" not in self.methods:
            raise ValueError(f"methods={self.methods} must contain 'mu', with which the others are compared.")
        check_positive(
            dim=self.dim, held_out=self.held_out, num_steps=self.num_steps, num_points=self.num_points
        )


@on_device
def compute(config: SyntheticConfig, run: Run) -> Result:
    """Choose each method's rate on held-out matrices, then run it on the seeds."""
    arrays: dict[str, NDArray] = {"steps": _steps(config)}
    measurements: dict[str, list[float]] = {}
    for kind in config.spectra:
        for method in run.progress(config.methods, f"{kind} spectrum"):
            rate = float(run.piece(f"{kind}/{method}/rate", partial(_choose, config, kind, method))["rate"])
            streaks = partial(_streaks, config, kind, method, rate)
            curves = per_seed(run, f"{kind}/{method}/", streaks, config.seeds)["streak"]
            key = method.replace(" ", "_")
            arrays[f"{kind}/{key}"] = curves
            measurements[f"{kind}_{key}_streak"] = curves[:, -1].tolist()
            measurements[f"{kind}_{key}_start_streak"] = curves[:, 0].tolist()
        for other in (method.replace(" ", "_") for method in config.methods if method != "mu"):
            lead = np.subtract(measurements[f"{kind}_mu_streak"], measurements[f"{kind}_{other}_streak"])
            measurements[f"{kind}_mu_lead_over_{other}"] = lead.tolist()
    return Result(measurements, arrays)


def plot(result: Result) -> Figure:
    """Draw the streak over the steps, a panel per spectrum."""
    kinds = sorted({name.split("/")[0] for name in result.arrays if "/" in name})
    figure, axes = new_figure(1, len(kinds), squeeze=False, sharey=True)
    for axis, kind in zip(axes[0], kinds, strict=True):
        curves = {name.split("/")[1]: array for name, array in result.arrays.items() if name.startswith(kind)}
        for colour, (method, values) in zip(COLOURS, curves.items(), strict=False):
            band(axis, result.arrays["steps"], values, method.replace("_", " "), colour)
        axis.set(xlabel="step", title=f"{kind.capitalize()} spectrum")
        label_curves(axis)
    axes[0, 0].set_ylabel("longest correct streak")
    return figure


def _steps(config: SyntheticConfig) -> NDArray:
    every = max(config.num_steps // config.num_points, 1)
    return every * np.arange(config.num_points + 1)


def _choose(config: SyntheticConfig, kind: str, method: str) -> dict[str, NDArray]:
    def score(rate: float) -> float:
        held_out = [-1 - index for index in range(config.held_out)]
        return float(np.mean([_streaks(config, kind, method, rate, seed)["streak"][-1] for seed in held_out]))

    return {"rate": np.array(best_rate(config.learning_rates, score))}


def _streaks(config: SyntheticConfig, kind: str, method: str, rate: float, seed: int) -> dict[str, NDArray]:
    draw = generator(seed % 2**32, "synthetic", kind)
    matrix, vectors = symmetric_matrix(spectrum(kind, config.dim), draw)  # type: ignore[arg-type]  # checked there
    start = initial_vectors(jax.random.key(seed % 2**32), config.dim, config.dim, config.dtype)
    every = int(_steps(config)[1])
    exact, step = (jnp.asarray(value, config.dtype) for value in (matrix, rate))
    points = _trajectory(start, exact, step, method, every, config.num_points)
    return {
        "streak": np.array(
            [longest_correct_eigenvector_streak(V, vectors) for V in np.asarray(points)], float
        )
    }


@partial(jax.jit, static_argnames=("method", "every", "num_points"))
def _trajectory(
    V: Float[Array, "k d"], matrix: Float[Array, "d d"], rate: Array, method: str, every: int, num_points: int
) -> Float[Array, "points k d"]:
    algorithm = method.split()[0]

    def one(_: int, V: Array) -> Array:
        direction = direction_from_products(algorithm, V, V @ matrix)  # type: ignore[arg-type]  # refuses others
        if method.endswith("projected"):
            direction = project_to_tangent(V, direction)
        moved: Array = retract(algorithm, optax.apply_updates(V, rate * direction), V.shape[0])  # type: ignore[arg-type]
        return moved

    def point(V: Array, _: None) -> tuple[Array, Array]:
        V = jax.lax.fori_loop(0, every, one, V)
        return V, V

    return jnp.concatenate([V[None], jax.lax.scan(point, V, None, length=num_points)[1]])
