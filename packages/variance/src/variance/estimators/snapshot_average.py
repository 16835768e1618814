"""Gradients of one batch, averaged over the points of recent snapshots."""

import torch
from typing_extensions import override

from variance.data import Population
from variance.errors import require_count
from variance.estimators.base import Direction, GradientEstimator
from variance.objective import Batch, Objective, Point


class SnapshotAverage(GradientEstimator):
    """Mean gradient of a batch over the current point and the last snapshots of the model.

    Biased by the distance of the snapshots; its variance falls only as far as gradients at different points
    are uncorrelated, which they are not for nearby snapshots.

    Args:
        objective: The function whose gradient is estimated.
        count: Snapshots kept.
    """

    name = "snapshot-average"
    STATE = ("points",)
    KINDS = (("points", Point),)

    def __init__(self, objective: Objective, *, count: int = 3) -> None:
        super().__init__(objective)
        require_count("count", count)
        self.count = count
        self.points: list[Point] = []

    @override
    def on_infrequent(
        self, step: int, point: Point, population: Population, generator: torch.Generator | None = None
    ) -> None:
        self.points = [*self.points, point.copy()][-self.count :]

    @override
    def direction(self, point: Point, batch: Batch, generator: torch.Generator | None = None) -> Direction:
        found = [self.objective.gradient(where, batch, generator) for where in (point, *self.points)]
        return Direction(torch.stack([gradient for gradient, _ in found]).mean(0), found[0][1])
