"""The same copies in several floating types: where divergence starts and how it grows (ours)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure

from gdyn_reproduce.plotting import COLOURS, band, label_curves, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run
from instability.copies import Copies
from instability.determinism import bit_reproducible
from instability.paper.config import NetworkConfig
from instability.paper.networks import build_model, load_configured_images
from instability.paper.training import TrainingPlan, make_copies, train

NULL_CONTROLS = [1, 2]


@dataclass
class PrecisionConfig(NetworkConfig):
    """The same copies in several floating types.

    Attributes:
        dtypes: Floating types of weights and arithmetic.
        perturbation: The integer k of the second copy.
        measure_every: Updates between measurements.
    """

    dtypes: list[str] = field(default_factory=lambda: ["float64", "float32", "bfloat16"])
    perturbation: int = 3
    num_steps: int = 300
    measure_every: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.dtypes:
            if name not in ("float64", "float32", "bfloat16"):
                raise ValueError(f"dtypes holds {name!r}. Allowed: float64, float32, bfloat16.")


def compute(config: PrecisionConfig, run: Run) -> Result:
    """Train a perturbed copy and the null controls in each type."""
    keys = [(d, s) for d in config.dtypes for s in config.seeds]
    with bit_reproducible(config.device):
        pieces = [
            run.piece(f"dtype={d}/seed={s}", partial(_train, config, run, d, s))
            for d, s in run.progress(keys, "trainings")
        ]
    curves = np.array([p["divergence"] for p in pieces]).reshape(len(config.dtypes), len(config.seeds), -1)
    null = np.array([p["null"] for p in pieces]).reshape(curves.shape)
    second = min(1, curves.shape[2] - 1)
    early, early_null = curves[:, :, second], null[:, :, second]
    return Result(
        measurements={
            "early_levels_ordered": (np.diff(early, axis=0) > 0).all(axis=0).tolist(),
            "null_levels_ordered": (np.diff(early_null, axis=0) > 0).all(axis=0).tolist(),
            "controls": all(float(p["controls"]) == 0 for p in pieces),
        },
        arrays={
            "divergence": curves,
            "dtypes": np.array(config.dtypes),
            "steps": config.measure_every * np.arange(1, curves.shape[2] + 1),
        },
    )


def plot(result: Result) -> Figure:
    """Draw one curve per type, mean and range over seeds."""
    figure, axis = new_figure()
    for colour, dtype, curves in zip(
        COLOURS, result.arrays["dtypes"], result.arrays["divergence"], strict=False
    ):
        band(axis, result.arrays["steps"], np.maximum(curves, 1e-18), str(dtype), colour)
    axis.set(
        title="Two runs that differ by rounding, by the type of the numbers",
        xlabel="iteration",
        ylabel="average relative L1",
        yscale="log",
    )
    label_curves(axis)
    return figure


def _train(config: PrecisionConfig, run: Run, dtype: str, seed: int) -> dict[str, np.ndarray | float]:
    images = load_configured_images(config, seed)
    plan = TrainingPlan.of(config, config.num_steps)
    # The model is drawn in float32 and cast, so that all types start from one function.
    model = build_model(dataclasses.replace(config, dtype="float32"), images, seed)
    model = model.to(getattr(torch, dtype))
    copies = make_copies(model, plan, [1, config.perturbation, *NULL_CONTROLS])

    def measure(copies: Copies, _: np.ndarray) -> list[list[float]]:
        return [copies.divergence()]

    history = train(
        copies,
        images,
        plan,
        seed=seed,
        measure=measure,
        measure_every=config.measure_every,
        progress=lambda steps: run.progress(steps, f"{dtype}, seed {seed}"),
    )
    return {
        "divergence": history[:, 0, 1],
        "null": history[:, 0, 2:].max(axis=1),
        "controls": float(history[:, 0, 2:].max()),
    }
