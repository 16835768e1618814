"""What a gradient estimator is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from variance.data import Population
from variance.errors import ConfigError
from variance.objective import Batch, Objective, Point
from variance.sampling.index_samplers import IndexSampler, UniformSampler
from variance.state import Stateful
from variance.statistics import ExactStatistics


@dataclass(frozen=True, repr=False)
class Direction:
    """One value of an estimator.

    Attributes:
        values: Step direction, to be subtracted from the parameters.
        loss: Batch loss at the point where the gradient was taken.
        info: Further numbers for the log.
    """

    values: Float[Tensor, "p"]
    loss: float
    info: Mapping[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        norm = float(self.values.norm())
        return f"Direction({len(self.values)} coordinates of norm {norm:.4g}, loss {self.loss:.4g})"


class GradientEstimator(Stateful, ABC):
    """A step direction without side effects, and two operations that change its state.

    `direction` may be called any number of times at any point. State moves only in `on_frequent` (cost of
    about one gradient) and `on_infrequent` (cost of about a pass over the data).

    Args:
        objective: The function whose gradient is estimated.
    """

    name: str
    batch_factor: int = 1
    """Examples per draw, in units of the batch size."""
    is_derived: bool = False
    """Whether its state follows from that of another estimator, which must be updated first."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    @abstractmethod
    def direction(self, point: Point, batch: Batch, generator: torch.Generator | None = None) -> Direction:
        """Return the direction at a point for one batch drawn by `sampler`."""

    def sampler(self, num_examples: int, generator: np.random.Generator) -> IndexSampler:
        """Return the index sampler that this estimator's batches must come from."""
        return UniformSampler(num_examples, generator)

    def on_frequent(
        self, step: int, point: Point, batch: Batch, generator: torch.Generator | None = None
    ) -> None:
        """Update state that costs about one gradient."""

    def on_infrequent(
        self, step: int, point: Point, population: Population, generator: torch.Generator | None = None
    ) -> None:
        """Update state that costs about a pass over the data."""

    def exact(self, point: Point, population: Population, batch_size: int) -> ExactStatistics:
        """Return the statistics of this estimator over the whole population, without sampling error.

        Raises:
            ConfigError: This estimator has no closed form.
        """
        raise ConfigError(f"{self.name} has no exact variance; measure it with mode='unbiased'.")

    def info(self) -> dict[str, float]:
        """Return numbers about the current state for the log."""
        return {}
