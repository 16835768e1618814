"""Table: weights with and without measuring, for every estimator."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from gdyn_common.seeding import generator, named_seed
from gdyn_reproduce.plotting import new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run
from variance.data import TensorPopulation
from variance.losses import cross_entropy
from variance.objective import Objective
from variance.paper.compute import ComputeOptions
from variance.paper.estimators import estimators_for
from variance.paper.training import Timing
from variance.paper.trajectory import Setting, trainer_for

ESTIMATORS = (
    "SG-B", "SG-2B", "SVRG", "GC", "GC-online", "heavy-ball", "Nesterov", "Adam", "IGT", "K-FAC", "EK-FAC",
    "NTK", "snapshot-average",
)  # fmt: skip


@dataclass
class NonInterferenceConfig(ComputeOptions):
    """Weights with and without measuring.

    Attributes:
        dropout: Dropout probability of the network.
    """

    num_steps: int = 200
    dropout: float = 0.3
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])


def compute(config: NonInterferenceConfig, run: Run) -> Result:
    """Train with one estimator measured beside, and compare all weights and buffers with the plain run."""
    differences = np.zeros((len(ESTIMATORS), len(config.seeds)))
    for column, seed in enumerate(config.seeds):
        plain = run.piece(f"plain/seed={seed}", partial(_weights, config, seed, None))["weights"]
        for row, name in enumerate(ESTIMATORS):
            piece = run.piece(f"{name}/seed={seed}", partial(_weights, config, seed, name))
            differences[row, column] = np.abs(piece["weights"] - plain).max()
    identical = [bool(value) for value in (differences == 0).all(0)]
    return Result(
        {"bit_identical": identical, "largest_difference": float(differences.max())},
        {"differences": differences},
    )


def _weights(config: NonInterferenceConfig, seed: int, measured: str | None) -> dict[str, np.ndarray]:
    source = generator(seed, "data")
    x = torch.from_numpy(source.standard_normal((80, 6))).float()
    y = torch.from_numpy(source.integers(3, size=80))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(named_seed(seed, "init"))
        model = config.network(
            nn.Sequential(
                nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(12, 3)
            )
        )
    objective = Objective(model, cross_entropy)
    setting = Setting(
        model,
        objective,
        config.population(TensorPopulation(x, y, _jitter)),
        batch_size=8,
        learning_rate=lambda step: 0.05,
        momentum=0.9,
        weight_decay=1e-3,
        timing=Timing(frequent_every=5, infrequent_every=40, measure_every=25),
        mode="unbiased",
        num_draws=3,
        seed=seed,
    )
    options: dict[str, Any] = {"clusters": 4, "iterations": 3, "batch_size": 8, "seed": seed}
    estimators = estimators_for([measured] if measured else [], objective, learning_rate=0.05, **options)
    trainer = trainer_for(setting, estimators)
    trainer.run(config.num_steps)
    point = trainer.optimizer.point
    buffers = [value.double().flatten() for value in point.buffers.values()]
    return {"weights": torch.cat([point.flat().double(), *buffers]).numpy()}


def _jitter(inputs: Tensor, source: np.random.Generator) -> Tensor:
    return inputs + 0.1 * torch.from_numpy(source.standard_normal(inputs.shape)).to(inputs)


def plot(result: Result) -> Figure:
    """Draw the largest difference per estimator (all dots should be at zero)."""
    figure, ax = new_figure()
    largest = result.arrays["differences"].max(1)
    ax.plot(largest, ESTIMATORS, "o")
    for value, name in zip(largest, ESTIMATORS, strict=True):
        ax.annotate(
            "same bits" if value == 0 else f"{value:.1g}",
            (value, name),
            (8, 0),
            textcoords="offset points",
            va="center",
        )
    ax.set(
        title="Weights after training with and without measuring the variance",
        xlabel="largest difference of any weight",
        xlim=(-0.1, 1.0) if largest.max() == 0 else (-0.1 * largest.max(), 1.1 * largest.max()),
        xticks=[0] if largest.max() == 0 else ax.get_xticks(),
    )
    ax.invert_yaxis()
    return figure
