"""Leaving a trained point: closed form of the ascent, statistics of the noise."""

import pytest
import torch
from torch import nn

from variance.data import TensorPopulation
from variance.errors import ConfigError
from variance.losses import half_squared_error
from variance.objective import Objective, Point
from variance.paper.untraining import untrain, weight_noise
from variance.stream import DataStream

RTOL = 1e-12  # float64, a product of ten factors


def test_ascent_on_a_parabola_grows_by_the_known_factor() -> None:
    """Loss = w^2 / 2 at x = 1, y = 0: every step multiplies w by 1 + eta."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 0.5)
    population = TensorPopulation(torch.ones(4, 1).double(), torch.zeros(4, 1).double())
    points = untrain(
        Objective(model, half_squared_error), Point.of(model), DataStream(population, 2), learning_rate=0.1,
        num_steps=10,
    )  # fmt: skip
    assert [float(p.flat()) for p in points] == pytest.approx([0.5 * 1.1**k for k in range(11)], rel=RTOL)
    assert float(model.weight.detach()) == 0.5


def test_noise_has_the_stated_deviation_and_repeats() -> None:
    """20 000 normal numbers: the standard error of the deviation is 0.5 %, 5 of them allowed."""
    point = Point({"a": torch.full((10_000,), 2.0), "b": torch.full((10_000,), -0.1)}, {})
    first, again = (weight_noise(point, 0.3, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(first.flat(), again.flat())
    assert float((first.flat() - point.flat()).std()) == pytest.approx(0.3, rel=0.025)
    scaled = weight_noise(point, 0.3, torch.Generator().manual_seed(0), relative=True)
    for name, size in (("a", 0.6), ("b", 0.03)):
        assert float((scaled.parameters[name] - point.parameters[name]).std()) == pytest.approx(
            size, rel=0.035
        )


def test_noisy_untraining_raises_the_loss(problem) -> None:  # type: ignore[no-untyped-def]
    everything = problem.population.fetch(torch.arange(len(problem.population)))
    points = untrain(
        problem.objective, problem.point, problem.stream(), learning_rate=0.5, num_steps=20, noise=0.01
    )
    losses = [float(problem.objective.losses(p, everything).mean()) for p in (points[0], points[-1])]
    assert losses[1] > losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0, "num_steps": 1}, "learning_rate 0.0 must be positive"),
        ({"learning_rate": 0.1, "num_steps": 0}, "num_steps 0 at least 1"),
        ({"learning_rate": 0.1, "num_steps": 1, "noise": -1.0}, "noise -1.0 not negative"),
    ],
)
def test_bad_input(options: dict[str, float], message: str, problem) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=message):
        untrain(problem.objective, problem.point, problem.stream(), **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="must not be negative"):
        weight_noise(problem.point, -1.0, torch.Generator())
