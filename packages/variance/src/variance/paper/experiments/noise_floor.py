"""Normalised variance of pure noise: 1 + 1/(m - 2) by the reference definition, 1 by the unbiased one."""

from dataclasses import dataclass, field

import numpy as np
import torch
from matplotlib.figure import Figure

from gdyn_common.seeding import named_seed
from gdyn_reproduce.plotting import new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run
from variance import statistics
from variance.paper.checks import require
from variance.paper.compute import ComputeOptions


@dataclass
class NoiseFloorConfig(ComputeOptions):
    """Normalised variance of pure noise against the number of draws.

    Attributes:
        draws: Values of m.
        coordinates: Number of coordinates.
        deviation: Standard deviation of the noise.
    """

    draws: list[int] = field(default_factory=lambda: [5, 10, 20, 50])
    coordinates: int = 20_000
    deviation: float = 1.0
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    dtype: str = "float64"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            min(self.draws, default=0) >= 4, f"draws={self.draws}: at least 4 (the mean of the floor exists)."
        )


def compute(config: NoiseFloorConfig, run: Run) -> Result:
    """Measure pure noise in both modes, and small noise in reference mode."""
    shape = (len(config.draws), len(config.seeds))
    arrays = {name: np.zeros(shape) for name in ("reference", "unbiased", "small")}
    for (i, m), (j, seed) in ((a, b) for a in enumerate(config.draws) for b in enumerate(config.seeds)):
        generator = torch.Generator().manual_seed(named_seed(seed, "noise", m))
        drawn = torch.randn(2 * m, config.coordinates, generator=generator, dtype=torch.float64)
        noise = config.tensor(config.deviation * drawn)
        arrays["reference"][i, j] = statistics.reference(noise[:m], noise[m:]).norm_var
        arrays["unbiased"][i, j] = statistics.unbiased(noise, standard_errors=False).norm_var_coord
        arrays["small"][i, j] = statistics.reference(1e-4 * noise[:m], 1e-4 * noise[m:]).norm_var
    floor = np.array([statistics.noise_floor(m) for m in config.draws])
    measurements = {
        "reference_over_floor": (arrays["reference"] / floor[:, None]).mean(0).tolist(),
        "unbiased": arrays["unbiased"].mean(0).tolist(),
        "small_noise": arrays["small"][-1].tolist(),
    }
    return Result(measurements, arrays | {"draws": np.array(config.draws), "floor": floor})


def plot(result: Result) -> Figure:
    """Draw measured values beside the formula."""
    a = result.arrays
    figure, ax = new_figure()
    ax.plot(a["draws"], a["floor"], "k:", label="1 + 1/(m - 2)")
    ax.plot(a["draws"], a["reference"].mean(1), "o", label="reference definition")
    ax.plot(a["draws"], a["unbiased"].mean(1), "s", label="unbiased")
    ax.plot(a["draws"], a["small"].mean(1), "^", label="reference, noise of 1e-4")
    ax.set(
        title="Normalised variance of pure noise (1 is right)", xlabel="draws m", ylabel="normalised variance"
    )
    ax.legend()
    return figure
