"""Sharpness along training against 2 / learning rate (ours, beside section 5.3)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from gdyn_reproduce.plotting import COLOURS, band, label_curves, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run
from instability.copies import Copies
from instability.curvature import sharpness
from instability.determinism import bit_reproducible
from instability.paper.config import NetworkConfig, check_rates
from instability.paper.networks import build_model, load_configured_images
from instability.paper.training import TrainingPlan, make_copies, train
from instability.stability import max_stable_sharpness

NULL_CONTROLS = [1, 2]


@dataclass
class SharpnessConfig(NetworkConfig):
    """Sharpness along training against its stable maximum.

    Attributes:
        measure_every: Updates between measurements.
        learning_rates: Learning rates to train with; they replace `learning_rate`.
    """

    num_steps: int = 200
    measure_every: int = 20
    learning_rates: list[float] = field(default_factory=lambda: [0.05, 0.2])

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rates("learning_rates", self.learning_rates)


def compute(config: SharpnessConfig, run: Run) -> Result:
    """Train with each learning rate, null controls beside, and measure the sharpness on one fixed batch."""
    keys = [(r, s) for r in config.learning_rates for s in config.seeds]
    with bit_reproducible(config.device):
        pieces = [
            run.piece(f"learning_rate={r:g}/seed={s}", partial(_train, config, run, r, s))
            for r, s in run.progress(keys, "trainings")
        ]
    limits = np.array(
        [
            max_stable_sharpness(r, momentum=config.momentum, nesterov=config.nesterov)
            for r in config.learning_rates
        ]
    )
    curves = np.array([p["sharpness"] for p in pieces]).reshape(len(limits), len(config.seeds), -1)
    late = curves[:, :, curves.shape[2] // 2 :].mean(axis=2) / limits[:, None]
    return Result(
        measurements={
            "largest_rate_ratio": late[np.argmin(limits)].tolist(),
            "smallest_rate_ratio": late[np.argmax(limits)].tolist(),
            "controls": all(float(p["controls"]) == 0 for p in pieces),
        },
        arrays={
            "sharpness": curves,
            "limits": limits,
            "learning_rates": np.array(config.learning_rates),
            "steps": config.measure_every * np.arange(1, curves.shape[2] + 1),
        },
    )


def plot(result: Result) -> Figure:
    """Draw the sharpness, and its stable maximum dashed."""
    arrays = result.arrays
    figure, axis = new_figure()
    for colour, rate, limit, curves in zip(
        COLOURS, arrays["learning_rates"], arrays["limits"], arrays["sharpness"], strict=False
    ):
        band(axis, arrays["steps"], curves, f"rate {rate:g}", colour)
        axis.axhline(limit, color=colour, linestyle="--", linewidth=1)
    axis.set(
        title="Sharpness during training (dashed: largest stable value, 2 / rate)",
        xlabel="iteration",
        ylabel="sharpness",
        yscale="log",
    )
    label_curves(axis)
    return figure


def _train(
    config: SharpnessConfig, run: Run, learning_rate: float, seed: int
) -> dict[str, np.ndarray | float]:
    images = load_configured_images(config, seed)
    plan = TrainingPlan.of(dataclasses.replace(config, learning_rate=learning_rate), config.num_steps)
    copies = make_copies(build_model(config, images, seed), plan, [1, *NULL_CONTROLS])
    x, y = images.batch(seed, 0, min(256, len(images.train_x)))

    def measure(copies: Copies, _: np.ndarray) -> list[list[float]]:
        model = copies.models[0]
        parameter = next(model.parameters())
        value = sharpness(
            model,
            lambda m: nn.functional.cross_entropy(m(x.to(parameter)), y.to(parameter.device)),
            weight_decay=config.weight_decay,
            tol=1e-3,
        )
        return [[value] * len(copies.models), copies.divergence()]

    history = train(
        copies,
        images,
        plan,
        seed=seed,
        measure=measure,
        measure_every=config.measure_every,
        progress=lambda steps: run.progress(steps, f"learning rate {learning_rate:g}, seed {seed}"),
    )
    return {"sharpness": history[:, 0, 0], "controls": float(history[:, 1].max())}
