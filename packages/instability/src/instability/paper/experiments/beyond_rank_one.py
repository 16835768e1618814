"""Exponents of one layer beyond 2 / sharpness on images of higher rank (ours, beside figure 4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure

from gdyn_common.seeding import generator
from gdyn_reproduce.data import load_dataset
from gdyn_reproduce.plotting import COLOURS, band, label_curves, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run, RunOptions
from instability.exponents.spectrum import lyapunov_exponents
from instability.paper.config import check_not_empty
from instability.pde.convolution import ValidCorrelation
from instability.pde.descent import DescentOptions
from instability.pde.nonlinear import descent_map, initial_kernel, simulate
from instability.pde.one_layer import OneLayerNetwork

KINDS = ("noise", "digits")
SIZE, DISTURBANCE, ALIGNMENT = 16, 1e-3, 20
DIRECT = DescentOptions(method="direct")
MILD, FAR = 1.25, 2.5
"""Rates of the claim and of its control, in units of 2 / sharpness."""


@dataclass
class BeyondRankOneConfig(RunOptions):
    """Exponents at rates beyond 2 / sharpness for images of noise and of scanned digits.

    Attributes:
        kernel_size: Side of the kernel.
        relative_decay: Weight decay in units of the largest eigenvalue of M'M / N; the paper's is 20 / 1024.
        rates: Learning rates in units of 2 / sharpness at the minimum; 1.25 and 2.5 are judged.
        descent_steps: Steps towards the minimum, and half as many to settle away from it.
        num_steps: Steps to average over.
        seeds: Seeds of images and starts.
    """

    kernel_size: int = 4
    relative_decay: float = 20 / 1024
    rates: list[float] = field(default_factory=lambda: [1.1, MILD, 1.5, FAR])
    descent_steps: int = 1000
    num_steps: int = 60
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])

    def __post_init__(self) -> None:
        check_not_empty("seeds", self.seeds)
        if not {MILD, FAR} <= set(self.rates) or min(self.rates) <= 0:
            raise ValueError(f"rates={self.rates} must be positive and hold {MILD} and {FAR}.")
        if not 1 <= self.kernel_size <= SIZE:
            raise ValueError(f"kernel_size={self.kernel_size} must lie between 1 and {SIZE}.")


def compute(config: BeyondRankOneConfig, run: Run) -> Result:
    """Descend to the minimum of each image, then leave it at multiples of its edge of stability."""
    keys = [(kind, seed) for kind in KINDS for seed in config.seeds]
    pieces = [
        run.piece(f"{kind}/seed={seed}", partial(_study, config, kind, seed))
        for kind, seed in run.progress(keys, "images")
    ]
    exponents = np.array([p["exponents"] for p in pieces]).reshape(len(KINDS), len(config.seeds), -1)
    at = dict(zip(KINDS, exponents, strict=True))
    mild, far = config.rates.index(MILD), config.rates.index(FAR)
    rank = np.array([p["rank"] for p in pieces]).reshape(len(KINDS), -1).mean(axis=1)
    return Result(
        measurements={
            "controls": all(bool(p["controls"]) for p in pieces),
            **{f"{kind}_exponent": at[kind][:, mild].tolist() for kind in KINDS},
            **{f"{kind}_exponent_far": at[kind][:, far].tolist() for kind in KINDS},
            **{f"{kind}_rank": float(value) for kind, value in zip(KINDS, rank, strict=True)},
        },
        arrays={"rates": np.array(config.rates), "exponents": exponents, "rank": rank},
    )


def plot(result: Result) -> Figure:
    """Draw the exponents over the rate, and that of the linearised network dashed."""
    rates = result.arrays["rates"]
    figure, axis = new_figure()
    for colour, kind, curves in zip(COLOURS, KINDS, result.arrays["exponents"], strict=False):
        band(axis, rates, curves, kind, colour)
    axis.plot(rates, np.log(2 * rates - 1), color="0.5", linestyle="--", linewidth=1)
    axis.axhline(0, color="0.5", linewidth=0.8)
    axis.set(
        title="Beyond the edge rounding is forgotten at first (dashed: without the non-linearity)",
        xlabel="learning rate / (2 / sharpness)",
        ylabel="Lyapunov exponent per step",
    )
    label_curves(axis)
    return figure


def _image(kind: str, seed: int) -> Float[np.ndarray, "height width"]:
    rng = generator(seed, "image")
    if kind == "noise":
        return np.asarray(rng.standard_normal((SIZE, SIZE)))
    digits = load_dataset("digits16", "train").x
    image = np.asarray(digits[rng.integers(len(digits))], dtype=np.float64).reshape(SIZE, SIZE)
    return np.asarray((image - image.mean()) / image.std())


def _study(config: BeyondRankOneConfig, kind: str, seed: int) -> dict[str, np.ndarray | float]:
    image, size = _image(kind, seed), config.kernel_size
    correlation = ValidCorrelation(image, size)
    signal = np.linalg.eigvalsh(correlation.gram()) / correlation.num_positions
    decay = config.relative_decay * signal[-1]
    minima = simulate(
        image,
        initial_kernel(size, seed) / 2,
        learning_rates=1 / signal[-1],
        weight_decays=decay,
        perturbations=[1, 1, 2],
        num_steps=config.descent_steps,
        options=DIRECT,
    ).kernels
    network = OneLayerNetwork(image, size, method="direct")
    unit = descent_map(network, 1.0, decay)
    tangent = torch.autograd.functional.jacobian(
        lambda w: unit({"x": w}, 0)["x"], torch.from_numpy(minima[0])
    )
    sharpness = 1 - np.linalg.eigvalsh(tangent.reshape(size**2, size**2).numpy())[0]  # it is 1 - Hessian
    rates = 2 / sharpness * np.array(config.rates)
    orbits = simulate(
        image,
        minima[0] + DISTURBANCE * initial_kernel(size, seed + 1000),
        learning_rates=rates.tolist(),
        weight_decays=decay,
        num_steps=config.descent_steps // 2,
        options=DIRECT,
    ).kernels
    exponents = [
        lyapunov_exponents(
            descent_map(network, rate, decay),
            torch.from_numpy(orbit),
            num_steps=config.num_steps,
            transient=ALIGNMENT,
        ).exponents[0]
        for rate, orbit in zip(rates, orbits, strict=True)
    ]
    return {
        "exponents": np.array(exponents),
        "rank": float(signal.sum() ** 2 / (signal**2).sum()),
        "controls": float((minima == minima[0]).all()),
    }
