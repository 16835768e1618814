"""Plain mini-batch gradients."""

import torch
from jaxtyping import Int
from typing_extensions import override

from variance.data import Population
from variance.errors import require_count
from variance.estimators.base import Direction, GradientEstimator
from variance.objective import Batch, Objective, Point
from variance.per_example import quantities
from variance.statistics import ExactStatistics, from_moments

EXACT_CHUNK = 512
"""Examples per pass when a whole population is summed."""


class SGB(GradientEstimator):
    """SG-B: the (weighted) mean gradient of a mini-batch of B examples.

    Args:
        objective: The function whose gradient is estimated.
        batch_factor: 2 makes it SG-2B, the doubled batch that costs what variance reduction costs.
    """

    def __init__(self, objective: Objective, *, batch_factor: int = 1) -> None:
        super().__init__(objective)
        require_count("batch_factor", batch_factor)
        self.batch_factor = batch_factor
        self.name = "SG-B" if batch_factor == 1 else f"SG-{batch_factor}B"

    @override
    def direction(self, point: Point, batch: Batch, generator: torch.Generator | None = None) -> Direction:
        return Direction(*self.objective.gradient(point, batch, generator))

    @override
    def exact(self, point: Point, population: Population, batch_size: int) -> ExactStatistics:
        mean, variance = population_moments(self.objective, point, population)
        size = self.batch_factor * batch_size
        return from_moments(mean, variance, len(population), size, replacement=False)  # as `sampler` draws


def passes(num_examples: int) -> list[Int[torch.Tensor, "n"]]:
    """Return the indices of each pass over a population, spread over all of it.

    In sorted data neighbours are alike: that a loss weighs classes would not be seen in passes of one class.
    """
    count = -(-num_examples // EXACT_CHUNK)
    return [torch.arange(first, num_examples, count) for first in range(count)]


def population_moments(
    objective: Objective, point: Point, population: Population, *, training: bool | None = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance of every coordinate over the per-example gradients, in float64.

    `training` is that of `Objective.capture`.
    """

    def moments(*, in_double: bool) -> tuple[torch.Tensor, torch.Tensor, torch.dtype]:
        first = second = torch.zeros((), dtype=torch.float64)
        for indices in passes(len(population)):
            found = objective.capture(point, population.fetch(indices), training=training)
            kind = found.losses.dtype
            found = quantities.in_double(found) if in_double else found
            sums, squares = quantities.first_and_second_moments(found)
            first, second = first + sums.double(), second + squares.double()
        return first / len(population), second / len(population), kind

    mean, power, dtype = moments(in_double=False)
    if quantities.cancels(float((power - mean.square()).sum()), float(power.sum()), dtype):
        mean, power, _ = moments(in_double=True)
    return mean, (power - mean.square()).clamp_min(0)
