"""Figure 2: two copies against scaled iteration, over all parameters (left) or in one layer (right)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from gdyn_reproduce.plotting import COLOURS, band, label_curves, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Estimate, Run
from instability.copies import Copies
from instability.determinism import bit_reproducible
from instability.metrics import first_step_above
from instability.paper.calibration import training_cost
from instability.paper.config import NetworkConfig, check_not_empty
from instability.paper.networks import build_model, load_configured_images
from instability.paper.training import TrainingPlan, make_copies, train

NULL_CONTROLS = [1, 2]
SEPARATED = 1e-3  # far above float32 rounding, far below saturation


@dataclass
class Fig2Config(NetworkConfig):
    """Divergence of two copies against scaled iteration.

    Attributes:
        divisors: The learning rate is divided by each of these in turn; sample j is after j * n updates.
        scaled_iterations: Samples per curve.
        perturbation: The integer k of the second copy.
        layer: Parameter to compare; empty for all of them.
    """

    divisors: list[int] = field(default_factory=lambda: [2, 4, 8, 16, 32, 320, 3200, 32000])
    scaled_iterations: int = 100
    perturbation: int = 3
    layer: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_empty("divisors", self.divisors)
        if min(self.divisors) < 1 or self.scaled_iterations < 1:
            raise ValueError("divisors and scaled_iterations must be at least 1.")


def compute(config: Fig2Config, run: Run) -> Result:
    """Train two copies per divisor and seed; the first divisor and seed also the null controls."""
    images = load_configured_images(config, config.seeds[0])
    run.note(data=images.source)
    if config.layer:
        plan = TrainingPlan(num_steps=1, batch_size=1, learning_rate=1.0)
        make_copies(build_model(config, images, 0), plan, [1]).weights(
            0, config.layer
        )  # refuses unknown names
    keys = [(n, s) for n in config.divisors for s in config.seeds]
    with bit_reproducible(config.device):
        pieces = [run.piece(f"divisor={n}/seed={s}", partial(_train, config, run, n, s)) for n, s in keys]
    shape = (len(config.divisors), len(config.seeds), config.scaled_iterations)
    curves = np.array([p["divergence"] for p in pieces]).reshape(shape)
    ends = (curves[0], curves[-1])
    return Result(
        measurements={
            "largest_rate_divergence": curves[0, :, -1].tolist(),
            "smallest_rate_divergence": curves[-1, :, -1].tolist(),
            "separation_delay": [
                _separation(small) / _separation(large) for large, small in zip(*ends, strict=True)
            ],
            "separation_delay_of_equal_rates": [
                _separation(other) / _separation(large)
                for large, other in zip(curves[0], np.roll(curves[0], 1, axis=0), strict=True)
            ],
            "first_divergence": curves[0, :, 0].tolist(),
            "null_divergence": max(float(p["controls"]) for p in pieces),
            "controls": all(float(p["controls"]) == 0 for p in pieces),
        },
        arrays={
            "divergence": curves,
            "divisors": np.array(config.divisors),
            "learning_rates": config.learning_rate / np.array(config.divisors),
            "layer": np.array(config.layer or "all parameters"),
        },
    )


def _separation(curve: np.ndarray) -> int:
    """Return the scaled iteration at which copies are visibly apart, at least one past the end if never."""
    index = first_step_above(curve, SEPARATED)
    return 1 + (index if index >= 0 else len(curve))


def estimate(config: Fig2Config) -> Estimate:
    """Time a few updates of one copy and count the updates of all."""
    pairs = 2 * len(config.seeds) * sum(config.divisors)
    return training_cost(config, config.scaled_iterations * (pairs + len(NULL_CONTROLS) * config.divisors[0]))


def plot(result: Result) -> Figure:
    """Draw one curve per learning rate, mean and range over seeds."""
    arrays = result.arrays
    figure, axis = new_figure()
    iterations = np.arange(1, arrays["divergence"].shape[-1] + 1)
    for colour, rate, curves in zip(COLOURS, arrays["learning_rates"], arrays["divergence"], strict=False):
        band(axis, iterations, np.maximum(curves, 1e-10), f"rate {rate:.3g}", colour)
    axis.set(
        title=f"Two runs that differ by rounding: {arrays['layer']}",
        xlabel="iteration, scaled by the learning rate",
        ylabel="average relative L1",
        yscale="log",
    )
    label_curves(axis)
    return figure


def _train(config: Fig2Config, run: Run, divisor: int, seed: int) -> dict[str, np.ndarray | float]:
    images = load_configured_images(config, seed)
    plan = TrainingPlan.of(config, config.scaled_iterations * divisor, divisor=divisor)
    controls = NULL_CONTROLS if (divisor, seed) == (config.divisors[0], config.seeds[0]) else []
    copies = make_copies(build_model(config, images, seed), plan, [1, config.perturbation, *controls])

    def measure(copies: Copies, _: np.ndarray) -> list[list[float]]:
        return [copies.divergence(config.layer or None)]

    history = train(
        copies,
        images,
        plan,
        seed=seed,
        measure=measure,
        measure_every=divisor,
        checkpoint=run.checkpoint(f"divisor={divisor}/seed={seed}"),
        progress=lambda steps: run.progress(steps, f"learning rate {plan.learning_rate:.3g}, seed {seed}"),
    )
    return {"divergence": history[:, 0, 1], "controls": float(history[:, 0, 2:].max(initial=0.0))}
