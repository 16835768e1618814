"""Data parallelism: more copies with their own samples help mu; locally formed alpha stays biased.

With n samples per copy and p parents the locally formed alpha penalties shrink a player's expected reward
by p / n, also on Gaussian data: players with more parents than a copy has samples are driven away from their
vector, however many copies there are. Copies see 8 samples here and the last player has 15 parents.

The copies are the leading axis of a batch here. That several devices give the same numbers is a test of
`eigengame.sharding`, not of this experiment.
"""

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

from eigengame.core.directions import alpha_direction, mu_direction
from eigengame.core.solver import initial_vectors
from eigengame.metrics import subspace_distance
from eigengame.optax_transforms import normalize_rows
from eigengame.paper.config import ComputeOptions, check_positive, on_device, per_seed
from eigengame.paper.synthetic import symmetric_matrix
from gdyn_common.seeding import generator, named_seed
from gdyn_reproduce.plotting import COLOURS, band, label_curves, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run

METHODS = ("mu", "alpha_local")
POINTS = 50


@dataclass
class DataParallelConfig(ComputeOptions):
    """More copies of the players, each with its own samples.

    Attributes:
        dim: Dimension.
        num_components: Number of players.
        batch_per_copy: Rows that each copy sees per step.
        copies: Numbers of copies.
        rate_factor: Learning rate times the top eigenvalue.
        tail: Share of the steps, at the end, over which distances are averaged.
        seeds: Seeds of vectors and samples.
    """

    dim: int = 256
    num_components: int = 16
    batch_per_copy: int = 8
    copies: list[int] = field(default_factory=lambda: [1, 4, 8])
    rate_factor: float = 0.1
    num_steps: int = 3000
    tail: float = 0.2
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(num_steps=self.num_steps, rate_factor=self.rate_factor, tail=self.tail)


@on_device
def compute(config: DataParallelConfig, run: Run) -> Result:
    """Follow mu and locally formed alpha for every number of copies."""
    arrays: dict[str, NDArray] = {
        "steps": config.num_steps // POINTS * np.arange(1, POINTS + 1),
        "copies": np.array(config.copies),
    }
    measurements: dict[str, list[float]] = {}
    for method in METHODS:
        for copies in run.progress(config.copies, method):
            distances = partial(_distances, config, method, copies)
            stacked = per_seed(run, f"{method}/{copies}/", distances, config.seeds)["distance"]
            arrays[f"{method}/{copies}"] = stacked
            tail = max(int(config.tail * POINTS), 1)
            measurements[f"{method}_distance_copies{copies}"] = stacked[:, -tail:].mean(axis=1).tolist()
        first, last = (
            np.array(measurements[f"{method}_distance_copies{copies}"])
            for copies in (config.copies[0], config.copies[-1])
        )
        measurements[f"{method}_most_over_one"] = (last / first).tolist()
    return Result(measurements, arrays)


def plot(result: Result) -> Figure:
    """Draw the subspace distance, a panel per method."""
    figure, axes = new_figure(1, 2, sharey=True)
    for axis, method in zip(axes, METHODS, strict=True):
        for colour, copies in zip(COLOURS, result.arrays["copies"], strict=False):
            label = "1 copy" if copies == 1 else f"{copies} copies"
            band(axis, result.arrays["steps"], result.arrays[f"{method}/{copies}"], label, colour)
        title = {"mu": "Under mu", "alpha_local": "Under alpha, penalties of each copy"}.get(method, method)
        axis.set(title=title, xlabel="step", yscale="log")
    for axis in axes:  # whose limits are shared, hence known only now
        label_curves(axis)
    axes[0].set_ylabel("subspace distance")
    return figure


def _distances(config: DataParallelConfig, method: str, copies: int, seed: int) -> dict[str, NDArray]:
    values = np.geomspace(1, 0.01, config.dim)
    _, vectors = symmetric_matrix(values, generator(0, "data-parallel"))
    start = initial_vectors(jax.random.key(seed), config.num_components, config.dim, config.dtype)
    points = _trajectory(
        start,
        jnp.asarray(np.sqrt(values)[:, None] * vectors, config.dtype),
        jnp.asarray(config.rate_factor / values[0], config.dtype),
        jax.random.key(named_seed(seed, "data-parallel", method) % 2**31),
        method,
        copies,
        config.batch_per_copy,
        config.num_steps // POINTS,
    )
    truth = vectors[: config.num_components]
    return {"distance": np.array([subspace_distance(V, truth) for V in np.asarray(points)])}


@partial(jax.jit, static_argnames=("method", "copies", "rows", "every"))
def _trajectory(
    V: Float[Array, "k d"],
    factor: Float[Array, "d d"],
    rate: Array,
    key: Array,
    method: str,
    copies: int,
    rows: int,
    every: int,
) -> Float[Array, "points k d"]:
    direction = mu_direction if method == "mu" else alpha_direction
    optimizer = optax.sgd(rate, momentum=0.9, nesterov=True)

    def one(carry: tuple[Array, optax.OptState], key: Array) -> tuple[tuple[Array, optax.OptState], None]:
        V, opt_state = carry
        X = jax.random.normal(key, (copies, rows, factor.shape[0])) @ factor
        ascent = jax.vmap(partial(direction, V))(X).mean(axis=0)
        updates, opt_state = optimizer.update(-ascent, opt_state, V)
        return (normalize_rows(optax.apply_updates(V, updates)), opt_state), None

    def point(carry: tuple[Array, optax.OptState], key: Array) -> tuple[tuple[Array, optax.OptState], Array]:
        carry, _ = jax.lax.scan(one, carry, jax.random.split(key, every))
        return carry, carry[0]

    return jax.lax.scan(point, (V, optimizer.init(V)), jax.random.split(key, POINTS))[1]
