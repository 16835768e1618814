"""An experiment of one file: does gradient descent halve the distance to a minimum as theory says?"""

from dataclasses import dataclass, field

import numpy as np

from gdyn_common.seeding import generator
from gdyn_reproduce.claims import Claim, Control, Within
from gdyn_reproduce.cli import main
from gdyn_reproduce.plotting import new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.registry import Figure, Paper, Preset
from gdyn_reproduce.runs import RunOptions


@dataclass
class HalvingConfig(RunOptions):
    """Gradient descent on a quadratic with noisy gradients.

    Attributes:
        learning_rate: Step size, in units of one over the curvature.
        num_steps: Steps of each descent.
        seeds: One descent each.
    """

    learning_rate: float = 0.5
    num_steps: int = 20
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])


def compute(config, run):
    """Return a factor per seed, and that of the control."""
    curves = [
        run.piece(
            f"seed={seed}", lambda seed=seed: {"x": descend(config.learning_rate, config.num_steps, seed)}
        )["x"]
        for seed in config.seeds
    ]
    still = [descend(0.0, config.num_steps, seed) for seed in config.seeds]
    measurements = {"factor": [factor(x) for x in curves], "factor_at_rate_0": [factor(x) for x in still]}
    return Result(measurements, {"x": np.array(curves)})


def descend(learning_rate, num_steps, seed):
    """Return all positions."""
    noise = generator(seed, "gradient noise").normal(0, 1e-9, num_steps)
    x = [1.0]
    for step in range(num_steps):
        x.append(x[-1] - learning_rate * (x[-1] + noise[step]))
    return np.array(x)


def factor(x):
    """Return the mean factor per step."""
    return float(abs(x[-1] / x[0]) ** (1 / (len(x) - 1)))


def plot(result):
    """Draw the distance to the minimum."""
    figure, axes = new_figure()
    axes.semilogy(np.abs(result.arrays["x"]).T)
    axes.set(xlabel="step", ylabel="distance to the minimum")
    return figure


PAPER = Paper(
    package="halving",
    title="Halving",
    authors="You",
    venue="a notebook",
    arxiv="",
    bibtex="",
    figures=(
        Figure(
            id="halving",
            source="Section 1",
            shows="The distance halves at every step.",
            module="halving",
            config="halving:HalvingConfig",
            presets={"quick": Preset("1 s, 1 core", "scaled")},
        ),
    ),
    claims=(
        Claim(
            "halving.factor",
            statement="At rate 0.5 the distance halves.",
            source="Section 1",
            metric="factor",
            paper=0.5,
            accept=Within(absolute=0.01),
            because="the noise of the gradients is a hundred-millionth of the first distance",
            control=Control("factor_at_rate_0", removes="learning rate 0", deterministic=True),
        ),
    ),
)

if __name__ == "__main__":
    main("halving:PAPER")
