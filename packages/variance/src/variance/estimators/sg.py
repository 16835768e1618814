"""Plain mini-batch gradients."""

import torch
from jaxtyping import Int
from typing_extensions import override

from variance.data import Population
from variance.errors import require_count
from variance.estimators.base import Direction, GradientEstimator
from variance.objective import Batch, Objective, Point
from variance.per_example import quantities
from variance.statistics import PIECE, ExactStatistics, from_moments

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
    sizes = [value.numel() for value in point.parameters.values()]
    place = next(iter(point.parameters.values())).device

    def moments(*, in_double: bool) -> tuple[torch.Tensor, torch.Tensor, torch.dtype]:
        first, second = (torch.zeros(sum(sizes), dtype=torch.float64, device=place) for _ in range(2))
        pairs = zip(first.split(sizes), second.split(sizes), strict=True)
        parts = dict(zip(point.parameters, pairs, strict=True))
        for indices in passes(len(population)):
            found = objective.capture(point, population.fetch(indices), training=training)
            kind = found.losses.dtype
            found = quantities.in_double(found) if in_double else found
            for name, *sums in quantities.moments(found):  # one parameter at a time, which saves memory
                for total, part in zip(parts[name], sums, strict=True):
                    total += part.flatten()
        return first.div_(len(population)), second.div_(len(population)), kind

    mean, power, dtype = moments(in_double=False)
    total = float(power.sum())
    if quantities.cancels(float(_variance(mean, power).sum()), total, dtype):
        mean, power, _ = moments(in_double=True)
        _variance(mean, power)
    return mean, power.clamp_min_(0)


def _variance(mean: torch.Tensor, power: torch.Tensor) -> torch.Tensor:
    """Take the squared mean from the mean square, in place and without a copy."""
    for one, other in zip(mean.split(PIECE), power.split(PIECE), strict=True):
        other -= one.square()
    return power
