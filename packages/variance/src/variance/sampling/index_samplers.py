"""Who decides which examples come next: uniform epochs, uniform with replacement, importance sampling."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from variance.errors import ConfigError, require_count
from variance.randomness import Seed, generator_of
from variance.state import Stateful


@dataclass(frozen=True, repr=False)
class Draw:
    """Chosen examples and the weights of their losses; the estimate is mean(weight * gradient)."""

    indices: Int[Tensor, "batch"]
    weights: Float[Tensor, "batch"]

    def __repr__(self) -> str:
        low, high = (float(end) for end in self.weights.aminmax())
        return f"Draw({len(self.indices)} examples, weights {low:.4g} to {high:.4g})"


class IndexSampler(Protocol):
    """Restartable source of weighted indices."""

    @property
    def num_examples(self) -> int:
        """Size of the population the indices refer to."""

    def draw(self, count: int) -> Draw:
        """Draw `count` indices."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue the sequence."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""


class UniformSampler(Stateful):
    """Every example equally likely.

    Without replacement the population is visited in random order, epoch after epoch; a batch may cross the
    end of an epoch, so all batches have the same size.

    Args:
        num_examples: Population size.
        seed: Seed or generator of this sampler.
        replacement: Draw independently instead of in epochs.

    Example:
        >>> sorted(UniformSampler(4, seed=0).draw(4).indices.tolist())
        [0, 1, 2, 3]
    """

    STATE = ("_generator", "epoch", "_pending")

    def __init__(self, num_examples: int, seed: Seed = 0, *, replacement: bool = False) -> None:
        require_count("num_examples", num_examples)
        self.num_examples = int(num_examples)
        self.epoch = 0
        self._generator = generator_of(seed)
        self._replacement = replacement
        self._pending = np.empty(0, dtype=np.int64)

    def draw(self, count: int) -> Draw:
        """Draw `count` indices with unit weights.

        Raises:
            ConfigError: Without replacement, more than the population holds.
        """
        require_count("count", count)
        count = int(count)
        if not self._replacement and count > self.num_examples:
            raise ConfigError(
                f"a batch of {count} exceeds the {self.num_examples} examples; draw with replacement or use "
                "a smaller batch."
            )
        if self._replacement:
            indices = self._generator.integers(self.num_examples, size=count)
        else:
            while len(self._pending) < count:
                self._pending = np.concatenate(
                    [self._pending, self._generator.permutation(self.num_examples)]
                )
                self.epoch += 1
            indices, self._pending = self._pending[:count], self._pending[count:]
        return Draw(torch.from_numpy(indices), torch.ones(count, dtype=torch.float64))


class ImportanceSampler(Stateful):
    """Draw with replacement with probability proportional to a score, weight 1/(N p).

    Unbiased for every positive score; with scores equal to gradient norms the variance is the smallest
    possible (Needell et al. 2014). Zero scores would never be drawn and are refused.

    Args:
        scores: One positive score per example.
        seed: Seed or generator of this sampler.

    Example:
        >>> draw = ImportanceSampler(torch.tensor([1.0, 3.0]), seed=0).draw(1)
        >>> bool(draw.weights[0] == (2.0 if draw.indices[0] == 0 else 2 / 3))
        True
    """

    STATE = ("_generator", "probabilities")

    def __init__(self, scores: Float[Tensor, "n"], seed: Seed = 0) -> None:
        self._generator = generator_of(seed)
        self.set_scores(scores)

    def set_scores(self, scores: Float[Tensor, "n"]) -> None:
        """Replace the scores.

        Raises:
            ConfigError: A score is not positive and finite.
        """
        values = torch.as_tensor(scores).detach().double().cpu().numpy()
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if values.ndim != 1:
            raise ConfigError(f"scores have shape {values.shape}; pass one per example.")
        if len(values) == 0 or len(bad):
            raise ConfigError(
                f"importance sampling needs positive finite scores; {len(bad)} of {len(values)} are not "
                f"(first: {bad[:3].tolist()}). Add a small constant: such examples would never be drawn."
            )
        if values.max() > np.finfo(float).max / len(values):  # else the sum overflows
            values = values / values.max()
        self.num_examples = len(values)
        self.probabilities = values / values.sum()
        self._cumulative = np.cumsum(self.probabilities)

    def draw(self, count: int) -> Draw:
        """Draw `count` indices with weights 1/(N p)."""
        require_count("count", count)
        count = int(count)
        indices = np.searchsorted(self._cumulative, self._generator.random(count), side="right").clip(
            max=self.num_examples - 1
        )
        return Draw(
            torch.from_numpy(indices), torch.from_numpy(1 / (self.num_examples * self.probabilities[indices]))
        )

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.num_examples, self._cumulative = len(self.probabilities), np.cumsum(self.probabilities)
