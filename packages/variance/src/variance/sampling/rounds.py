"""Training batches from a scheduler: random order within a round, a new round when it is used up."""

import math
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from variance.errors import require_count, require_number, require_word
from variance.randomness import Seed, generator_of
from variance.sampling.index_samplers import Draw
from variance.sampling.schedulers import Scheduler
from variance.sampling.scores import Normalisation, ScoreMemory
from variance.state import Stateful


class RoundSampler(Stateful):
    """Draws the examples that a scheduler keeps awake; call `update` with the scores of every batch.

    A batch may cross the end of a round. Biased unless the scheduler's weights undo its choice (see
    `variance.sampling.schedulers`).

    Args:
        scheduler: Decides the rounds.
        memory: Scores of the examples.
        seed: Seed or generator of the order.
        weighting: How a weight w above 1 acts: `scale` the loss by it, or `repeat` the example round(w)
            times.
        cap: Largest weight.
        normalisation: How scores are read.
        classes: Class of every example, for normalisation by class.

    Example:
        >>> from variance.sampling.schedulers import ExponentialSnooze
        >>> memory = ScoreMemory(3)
        >>> memory.update(torch.arange(3), torch.tensor([0.0, 2.0, 2.0]))
        >>> sampler = RoundSampler(ExponentialSnooze(3, threshold="constant", value=1.0), memory, seed=0)
        >>> sorted(sampler.draw(2).indices.tolist())
        [1, 2]
    """

    STATE = ("_generator", "_pending", "scheduler", "memory")

    def __init__(
        self,
        scheduler: Scheduler,
        memory: ScoreMemory,
        seed: Seed = 0,
        *,
        weighting: Literal["scale", "repeat"] = "scale",
        cap: float = 10.0,
        normalisation: Normalisation = "none",
        classes: Int[Tensor, "n"] | None = None,
    ) -> None:
        require_word("weighting", weighting, ("scale", "repeat"))
        require_word("normalisation", normalisation, get_args(Normalisation))
        require_number("cap", cap, 1, math.inf)
        self.scheduler, self.memory, self.weighting, self.cap = scheduler, memory, weighting, cap
        self.normalisation, self.classes = normalisation, classes
        self._generator = generator_of(seed)
        self._pending = np.empty(0, dtype=np.int64)

    def draw(self, count: int) -> Draw:
        """Draw `count` indices with their loss weights."""
        require_count("count", count)
        count = int(count)
        while len(self._pending) < count:
            rows = self.scheduler.next_round(self.memory.read(self.normalisation, self.classes)).numpy()
            if self.weighting == "repeat":
                rows = np.repeat(rows, np.rint(self._capped()[rows]).astype(np.int64))
            self._pending = np.concatenate([self._pending, self._generator.permutation(rows)])
        chosen, self._pending = self._pending[:count], self._pending[count:]
        weights = self._capped()[chosen] if self.weighting == "scale" else np.ones(count)
        return Draw(torch.from_numpy(chosen), torch.from_numpy(weights))

    def update(self, indices: Int[Tensor, "n"], scores: Float[Tensor, "n"]) -> None:
        """Remember the scores of a batch; of examples that occur twice, the last score."""
        last = {int(index): position for position, index in enumerate(indices)}
        self.memory.update(torch.tensor(list(last)), scores[list(last.values())])

    @property
    def num_examples(self) -> int:
        """Size of the population."""
        return self.scheduler.num_examples

    def _capped(self) -> np.ndarray:
        return np.asarray(np.minimum(self.scheduler.weights, self.cap))
