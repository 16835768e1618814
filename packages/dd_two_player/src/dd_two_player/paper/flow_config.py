"""Configurations of the experiments that take the second paper to networks."""

from __future__ import annotations

from dataclasses import dataclass, field

from dd_two_player.paper.config import DTYPES, choice, require
from gdyn_reproduce.runs import RunOptions

__all__ = ["ContinuousModelsConfig", "DalSweepConfig"]


@dataclass
class DalSweepConfig(RunOptions):
    """DAL against a sweep of fixed rates on digits, full batch.

    Attributes:
        learning_rates: The fixed rates.
        powers: ``p`` of each DAL-p, the more careful first.
        cap: Largest rate of DAL.
        width: Hidden units.
        num_examples: Training examples; the other digits are the test set.
        seeds: Of the weights.
        device: Where to compute; by default where JAX does.
        dtype: float32 or float64.
    """

    learning_rates: list[float] = field(default_factory=lambda: [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2])
    powers: list[float] = field(default_factory=lambda: [1.0, 0.5])
    cap: float = 5.0
    num_steps: int = 400
    width: int = 32
    num_examples: int = 1000
    seeds: list[int] = field(default_factory=lambda: list(range(8)))
    device: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        choice("dtype", self.dtype, DTYPES)
        for name in ("learning_rates", "powers"):
            values = getattr(self, name)
            require(
                name, values, bool(values) and all(0 < v < float("inf") for v in values), "positive numbers"
            )
        require("powers", self.powers, len(self.powers) == 2, "two numbers")
        require("cap", self.cap, 0 < self.cap < float("inf"), "positive and finite")
        for name in ("num_steps", "width"):
            require(name, getattr(self, name), getattr(self, name) >= 1, "integers of at least 1")
        require("num_examples", self.num_examples, 1 <= self.num_examples < 1797, "from 1 to 1796")


@dataclass
class ContinuousModelsConfig(RunOptions):
    """Gradient descent on a small network, one step at a time against its continuous models.

    Attributes:
        learning_rates: Of gradient descent: one that stays below the edge of stability, one that reaches it.
        num_points: Steps among them, evenly spaced, that are compared with the models.
        width: Hidden units.
        num_features: Principal components of the digits that the network sees.
        seeds: Of the weights.
        device: Where to compute, in float64; by default where JAX does.
    """

    learning_rates: list[float] = field(default_factory=lambda: [0.05, 0.65])
    num_steps: int = 1000
    num_points: int = 10
    width: int = 4
    num_features: int = 6
    seeds: list[int] = field(default_factory=lambda: list(range(5)))
    device: str | None = None

    def __post_init__(self) -> None:
        good = len(self.learning_rates) == 2 and all(0 < v < float("inf") for v in self.learning_rates)
        require("learning_rates", self.learning_rates, good, "two positive numbers")
        for name in ("num_steps", "num_points", "width"):
            require(name, getattr(self, name), getattr(self, name) >= 1, "integers of at least 1")
        require("num_points", self.num_points, self.num_points <= self.num_steps, "at most num_steps")
        require("num_features", self.num_features, 1 <= self.num_features <= 64, "from 1 to 64")
