"""Where a figure computes, and in which precision."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from gdyn_reproduce.runs import RunOptions
from variance.data import Population
from variance.objective import Batch
from variance.paper.checks import require


@dataclass
class ComputeOptions(RunOptions):
    """What the configurations of all figures share.

    Attributes:
        device: cpu, cuda, cuda:1, mps.
        dtype: float32 or float64.
    """

    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        require(
            self.dtype in ("float32", "float64"), f"dtype={self.dtype} is unknown. Allowed: float32, float64."
        )
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError, NotImplementedError):
            raise ValueError(f"device={self.device} is not present here; use device=cpu.") from None

    def network(self, model: nn.Module) -> nn.Module:
        """Return a network, moved there."""
        return model.to(device=self.device, dtype=getattr(torch, self.dtype))

    def tensor(self, values: Tensor) -> Tensor:
        """Return a tensor, moved there; integers keep their type."""
        kind = getattr(torch, self.dtype) if values.is_floating_point() else values.dtype
        return values.to(self.device, kind)

    def population(self, found: Population) -> Population:
        """Return a population whose batches are there."""
        is_default = self.device == "cpu" and self.dtype == "float32"
        return found if is_default else Placed(found, self)


class Placed:
    """A population whose batches are moved to where a configuration computes."""

    def __init__(self, population: Population, where: ComputeOptions) -> None:
        self._population, self._where = population, where

    def __len__(self) -> int:
        return len(self._population)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._population, name)

    def fetch(self, indices: Int[Tensor, "n"], generator: np.random.Generator | None = None) -> Batch:
        """Return examples with unit weights."""
        found = self._population.fetch(indices, generator)
        inputs, targets = self._where.tensor(found.inputs), self._where.tensor(found.targets)
        return Batch(inputs, targets, found.indices, found.weights)
