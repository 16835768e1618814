"""Utility of a child on the circle orthogonal to an imperfect parent, exact and averaged over minibatches.

The samples are heavy-tailed (Laplace). For Gaussian ones the alpha utility does not move its maximum at
all: orthogonal to the parent it is a Schur complement of a Wishart matrix, whose mean is the exact one
times (n - 1) / n. Only the height is biased then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eigengame.core.values import utilities
from eigengame.paper.config import ComputeOptions, on_device, per_seed
from gdyn_common.seeding import generator
from gdyn_reproduce.plotting import COLOURS, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run

KINDS = ("mu", "alpha")
GAUSSIAN = "alpha_gaussian"  # the null: alpha on Gaussian samples


@dataclass
class LandscapeConfig(ComputeOptions):
    """Utility of a child around a rotated parent, exact and averaged over minibatches.

    Attributes:
        variances: Three eigenvalues of the covariance.
        parent_degrees: Rotations of the parent.
        batch_size: Rows of a minibatch.
        num_batches: Minibatches averaged.
        num_angles: Points of the child's half circle.
        seeds: Seeds of the data.
    """

    variances: list[float] = field(default_factory=lambda: [3.0, 1.2, 1.0])
    parent_degrees: list[float] = field(default_factory=lambda: [-20.0, -10.0, 0.0, 10.0, 20.0])
    batch_size: int = 4
    num_batches: int = 50_000
    num_angles: int = 721
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.variances) != 3:
            raise ValueError(f"variances={self.variances} must be three numbers.")


@on_device
def compute(config: LandscapeConfig, run: Run) -> Result:
    """Measure how far sampling moves the child's best angle, per utility, seed and parent."""
    found = per_seed(run, "", partial(_landscapes, config), config.seeds)
    arrays = {"theta": _thetas(config), "parents": np.array(config.parent_degrees)}
    measurements = {}
    for kind in (*KINDS, GAUSSIAN):
        sampled, exact = found[f"{kind}/sampled"], found[f"{kind}/exact"]
        # shift in degrees of the maximum, on a half circle (v and -v are the same)
        best = arrays["theta"][sampled.argmax(axis=-1)] - arrays["theta"][exact.argmax(axis=-1)]
        shift = np.abs((best + 90) % 180 - 90)
        arrays |= {f"{kind}/sampled": sampled.mean(axis=0), f"{kind}/exact": exact.mean(axis=0)}
        measurements[f"{kind}_shift"] = shift.max(axis=1).tolist()
    return Result(measurements, arrays)


def plot(result: Result) -> Figure:
    """Draw the landscapes: exact dashed, sampled solid, a colour per size of the parent's error."""
    figure, axes = new_figure(1, 2)
    sizes = sorted({abs(float(degrees)) for degrees in result.arrays["parents"]})
    for axis, kind in zip(axes, KINDS, strict=True):
        for degrees, sampled, exact in zip(
            result.arrays["parents"],
            result.arrays[f"{kind}/sampled"],
            result.arrays[f"{kind}/exact"],
            strict=True,
        ):
            colour = COLOURS[sizes.index(abs(float(degrees))) % len(COLOURS)]
            label = f"first player off by {degrees:g}°" if degrees >= 0 else "_"
            axis.plot(result.arrays["theta"], sampled, color=colour, label=label)
            axis.plot(result.arrays["theta"], exact, color=colour, linestyle="--")
        axis.set(xlabel="angle of the second player (degrees)", title=f"Under {kind}")
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside upper left",
        ncols=len(sizes),
        title="Utility of the second player (dashed: exact; solid: mean over minibatches)",
        alignment="left",
    )
    return figure


def _thetas(config: LandscapeConfig) -> NDArray:
    return np.linspace(-90, 90, config.num_angles)


def _landscapes(config: LandscapeConfig, seed: int) -> dict[str, NDArray]:
    draw = generator(seed, "landscape")
    scales = np.sqrt(config.variances)
    size = (config.num_batches, config.batch_size, 3)
    heavy, gaussian = (
        jnp.asarray(samples * scales, config.dtype)
        for samples in (draw.laplace(scale=0.5**0.5, size=size), draw.standard_normal(size))
    )
    parents, thetas = (
        jnp.asarray(np.radians(angle), config.dtype) for angle in (config.parent_degrees, _thetas(config))
    )
    found: dict[str, NDArray] = {}
    for kind in (*KINDS, GAUSSIAN):
        batches = gaussian if kind == GAUSSIAN else heavy
        # same samples in both, so that the difference is sampling's non-linearity and not its noise
        for name, data in (("sampled", batches), ("exact", batches.reshape(1, -1, 3))):
            utility = kind.split("_")[0]
            found[f"{kind}/{name}"] = np.stack(
                [np.asarray(_mean_utility(parent, thetas, data, utility)) for parent in parents]
            )
    return found


@partial(jax.jit, static_argnames="kind")
def _mean_utility(
    parent: Array, thetas: Float[Array, " t"], batches: Float[Array, "b n 3"], kind: str
) -> Float[Array, " t"]:
    """Return the child's mean utility; the parent leans from the first axis between the other two."""
    lean = jnp.sqrt(0.5)
    first = jnp.stack([jnp.cos(parent), lean * jnp.sin(parent), lean * jnp.sin(parent)])
    down = jnp.stack([-jnp.sin(parent), lean * jnp.cos(parent), lean * jnp.cos(parent)])
    across = jnp.stack([0.0, -lean, lean])

    def of_angle(theta: Array) -> Array:
        V = jnp.stack([first, jnp.cos(theta) * down + jnp.sin(theta) * across])
        return jnp.mean(jax.vmap(lambda X: utilities(V, X, kind)[1])(batches))  # type: ignore[arg-type]  # str

    values: Array = jax.lax.map(of_angle, thetas)
    return values
