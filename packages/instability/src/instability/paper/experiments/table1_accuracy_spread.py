"""Table 1: the final accuracy varies over rounding perturbations as it does over seeds."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from gdyn_reproduce.plotting import COLOURS, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Estimate, Run
from instability.copies import Copies
from instability.determinism import bit_reproducible
from instability.metrics import accuracy_spread
from instability.paper.calibration import steps_per_epoch, training_cost
from instability.paper.config import NetworkConfig, check_not_empty, check_perturbations
from instability.paper.networks import build_model, load_configured_images
from instability.paper.training import TrainingPlan, make_copies, test_accuracies, train

NULL_CONTROLS = [1, 2]


@dataclass
class Table1Config(NetworkConfig):
    """Spread of final accuracies over perturbations and over seeds.

    Attributes:
        activations: Activations to train with; they replace `activation`.
        perturbations: The integers k; null controls run beside the first seed.
        num_epochs: Passes over the data.
        milestones: Epochs at which the learning rate is divided by 10.
        last: Final epochs whose accuracies are averaged.
    """

    activations: list[str] = field(default_factory=lambda: ["relu", "swish"])
    perturbations: list[int] = field(default_factory=lambda: [1, 3, 5, 7, 9, 11])
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5, 6])
    num_epochs: int = 200
    milestones: list[int] = field(default_factory=lambda: [40, 80, 120, 160])
    last: int = 10
    momentum: float = 0.9
    nesterov: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_empty("activations", self.activations)
        check_perturbations(self.perturbations)
        if not 1 <= self.last <= self.num_epochs:
            raise ValueError(f"last={self.last} must lie between 1 and num_epochs={self.num_epochs}.")


def compute(config: Table1Config, run: Run) -> Result:
    """Train every perturbation for every seed and activation; the first seed also the null controls."""
    run.note(data=load_configured_images(config, config.seeds[0]).source)
    keys = [(a, s) for a in config.activations for s in config.seeds]
    with bit_reproducible(config.device):
        pieces = [
            run.piece(f"activation={a}/seed={s}", partial(_train, config, run, a, s))
            for a, s in run.progress(keys, "trainings")
        ]
    shape = (len(config.activations), len(config.seeds), *pieces[0]["test"].shape)
    test = 100 * np.array([p["test"] for p in pieces]).reshape(shape)  # activation, seed, epoch, perturbation
    train_accuracy = 100 * np.array([p["train"] for p in pieces]).reshape(shape)
    spreads = [accuracy_spread(np.moveaxis(a, (0, 1, 2), (1, 2, 0)), last=config.last) for a in test]
    measurements: dict[str, float | bool | list[float]] = {
        "controls": all(float(p["controls"]) == 0 for p in pieces),
    }
    for activation, spread in zip(config.activations, spreads, strict=True):
        over_perturbations, over_seeds = spread["over_perturbations"], spread["over_seeds"]
        null = next(p["null_test"] for (a, _), p in zip(keys, pieces, strict=True) if a == activation)
        null_spread = (100 * np.asarray(null))[-config.last :].mean(axis=0).std()
        measurements |= {
            f"{activation}_null_spread_ratio": float(null_spread / max(over_seeds.mean(), 1e-12)),
            f"{activation}_std_over_perturbations": over_perturbations.tolist(),
            f"{activation}_std_over_seeds": over_seeds.tolist(),
            f"{activation}_spread_ratio": float(over_perturbations.mean() / max(over_seeds.mean(), 1e-12)),
        }
    return Result(
        measurements,
        arrays={
            "final": test[:, :, -config.last :].mean(axis=2),  # activation, seed, perturbation
            "test": test,
            "train": train_accuracy,
            "activations": np.array(config.activations),
            "perturbations": np.array(config.perturbations),
            "seeds": np.array(config.seeds),
        },
    )


def estimate(config: Table1Config) -> Estimate:
    """Time a few updates of one copy and count all trainings."""
    trainings = len(config.activations) * (len(config.seeds) * len(config.perturbations) + len(NULL_CONTROLS))
    return training_cost(config, trainings * config.num_epochs * steps_per_epoch(config))


def plot(result: Result) -> Figure:
    """Draw every final accuracy: columns are seeds, points within a column perturbations."""
    arrays = result.arrays
    figure, axes = new_figure(1, len(arrays["activations"]), squeeze=False)
    for axis, activation, final in zip(axes[0], arrays["activations"], arrays["final"], strict=True):
        aside = np.linspace(-0.2, 0.2, final.shape[1])
        for colour, k, row, shift in zip(COLOURS, arrays["perturbations"], final.T, aside, strict=False):
            axis.plot(
                np.arange(len(row)) + shift,
                row,
                "o",
                color=colour,
                markersize=5,
                label=f"k = {k}",
            )
        axis.set_xticks(np.arange(final.shape[0]), [str(s) for s in arrays["seeds"]])
        axis.set(xlabel="seed", ylabel="final test accuracy (%)")
        axis.set_title(
            f"{activation}: standard deviation over perturbations {final.std(axis=1).mean():.2f}, "
            f"over seeds {final.std(axis=0).mean():.2f}"
        )
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=8)
    return figure


def _train(config: Table1Config, run: Run, activation: str, seed: int) -> dict[str, np.ndarray | float]:
    images = load_configured_images(config, seed)
    epoch = images.steps_per_epoch(config.batch_size)
    plan = TrainingPlan.of(
        config, config.num_epochs * epoch, milestones=[m * epoch for m in config.milestones]
    )
    controls = NULL_CONTROLS if seed == config.seeds[0] else []
    copies = make_copies(
        build_model(config, images, seed, activation), plan, [*config.perturbations, *controls]
    )

    def measure(copies: Copies, train_accuracy: np.ndarray) -> list[np.ndarray]:
        return [train_accuracy, test_accuracies(copies, images)]

    history = train(
        copies,
        images,
        plan,
        seed=seed,
        measure=measure,
        measure_every=epoch,
        checkpoint=run.checkpoint(f"{activation}/{seed}"),
        progress=lambda steps: run.progress(steps, f"{activation}, seed {seed}"),
    )
    kept = len(config.perturbations)
    divergence = copies.divergence()
    return {
        "train": history[:, 0, :kept],
        "test": history[:, 1, :kept],
        "controls": max(divergence[kept:], default=0.0),
        "null_test": history[:, 1, [0, *range(kept, history.shape[2])]],
    }
