"""Schedulers that skip examples with small scores for some rounds ("snoozing").

These ideas worked on MNIST and failed on larger data; they are kept for comparison. All of them are *biased*
unless the weights of `MinimumVariance` are applied; `ImportanceSampler` is the unbiased way to prefer
examples by score. A round is one pass over the examples that are awake.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gdyn_common.errors import unknown
from variance.errors import ConfigError, require_count, require_number
from variance.sampling.thresholds import RULES, SelfTuningPercentile, Threshold
from variance.state import Stateful


class Scheduler(Stateful, ABC):
    """Decides, round by round, which examples are visited.

    Args:
        num_examples: N.
        min_examples: Smallest round; the examples of largest score are added back when fewer are awake.
    """

    STATE: ClassVar[tuple[str, ...]] = ("round", "wait", "weights")

    def __init__(self, num_examples: int, *, min_examples: int = 1) -> None:
        require_count("num_examples", num_examples)
        require_count("min_examples", min_examples, 1, num_examples)
        self.num_examples, self.min_examples = num_examples, min_examples
        self.round = 0
        self.wait = np.zeros(num_examples, dtype=np.int64)
        self.weights = np.ones(num_examples)

    def next_round(self, scores: Float[Tensor, "n"]) -> Int[Tensor, "m"]:
        """Return the examples of the next round, in index order, given the scores of all examples."""
        values = scores.detach().double().cpu().numpy()
        if values.shape != (self.num_examples,) or np.isnan(values).any():
            raise ConfigError(
                f"scores must be {self.num_examples} numbers without NaN, got shape {values.shape}."
            )
        awake = self.wait == 0
        self.wait = np.maximum(self.wait - 1, 0)
        chosen = awake & ~self._snoozes(values, awake)
        missing = self.min_examples - int(chosen.sum())
        if missing > 0:
            asleep = np.flatnonzero(~chosen)
            chosen[asleep[np.argsort(-values[asleep], kind="stable")[:missing]]] = True
        self.round += 1
        return torch.from_numpy(np.flatnonzero(chosen))

    @abstractmethod
    def _snoozes(self, scores: np.ndarray, awake: np.ndarray) -> np.ndarray:
        """Return which awake examples fall asleep now, and set how long they wait."""


class LinearRank(Scheduler):
    """Drop the lowest share of examples, the share and the delay linear in rounds and rank. Biased.

    Args:
        num_examples: N.
        shares: Share dropped in the first and in the last round.
        delays: Rounds of waiting for the highest and the lowest dropped rank.
        num_rounds: Rounds over which the share moves.
        min_examples: Smallest round.
    """

    def __init__(
        self,
        num_examples: int,
        *,
        shares: tuple[float, float] = (0.0, 0.5),
        delays: tuple[float, float] = (1, 1),
        num_rounds: int = 10,
        min_examples: int = 1,
    ) -> None:
        super().__init__(num_examples, min_examples=min_examples)
        (first_share, last_share), (highest, lowest) = shares, delays
        for share in (first_share, last_share):
            require_number("a share", share, 0, below=1)
        for delay in (highest, lowest):
            require_number("a delay", delay, 0)
        require_count("num_rounds", num_rounds)
        self.shares, self.delays, self.num_rounds = shares, delays, num_rounds

    def _snoozes(self, scores: np.ndarray, awake: np.ndarray) -> np.ndarray:
        progress = min(1.0, self.round / self.num_rounds)
        share = self.shares[0] + progress * (self.shares[1] - self.shares[0])
        rows = np.flatnonzero(awake)
        lowest = rows[np.argsort(scores[rows], kind="stable")[: int(share * len(rows))]]
        self.wait[lowest] = np.round(np.linspace(self.delays[1], self.delays[0], len(lowest))).astype(
            np.int64
        )
        dropped = np.zeros(len(scores), dtype=bool)
        dropped[lowest] = True
        return dropped


class ExponentialSnooze(Scheduler):
    """An example with score below tau waits 2^delta rounds; delta grows on repeats. Biased.

    Args:
        num_examples: N.
        threshold: How tau follows from the finite scores, see `variance.sampling.thresholds`;
            `self-tuning` is a percentile that starts at `value` and rises while few examples wake.
        value: See `threshold`.
        period: Rounds per decade, for the thresholds that follow time.
        max_exponent: Largest delta.
        min_examples: Smallest round.

    Example:
        >>> snooze = ExponentialSnooze(3, threshold="constant", value=1.0)
        >>> scores = torch.tensor([0.0, 2.0, 2.0])
        >>> [snooze.next_round(scores).tolist() for _ in range(3)]
        [[1, 2], [1, 2], [1, 2]]
    """

    STATE = (*Scheduler.STATE, "exponent", "_tuned")

    def __init__(
        self,
        num_examples: int,
        *,
        threshold: Threshold = "median",
        value: float = 0.1,
        period: int = 10,
        max_exponent: int = 10,
        min_examples: int = 1,
    ) -> None:
        super().__init__(num_examples, min_examples=min_examples)
        if threshold not in get_args(Threshold):
            raise ConfigError(unknown("threshold", str(threshold), get_args(Threshold)))
        is_percentile = threshold in ("percentile", "self-tuning")
        require_number("value", value, *((0, 100) if is_percentile else ()))
        require_count("period", period)
        require_count("max_exponent", max_exponent, 0, 62)  # 2**63 rounds are beyond int64
        self.threshold, self.value, self.period, self.max_exponent = threshold, value, period, max_exponent
        self.exponent = np.zeros(num_examples, dtype=np.int64)
        self._tuned = SelfTuningPercentile(value)

    def _tau(self, scores: np.ndarray) -> float:
        known = scores[np.isfinite(scores)]
        if len(known) == 0:
            return self.value if self.threshold == "constant" else -np.inf
        if self.threshold == "self-tuning":
            return RULES["percentile"](known, self._tuned.percentile, 0)
        return RULES[self.threshold](known, self.value, self.round // self.period)

    def _snoozes(self, scores: np.ndarray, awake: np.ndarray) -> np.ndarray:
        low = awake & (scores < self._tau(scores))
        slept = awake & (self.exponent > 0)
        self._tuned.update(woken=int((slept & ~low).sum()), asleep=int((~awake | slept).sum()))
        self.wait[low] = 2 ** self.exponent[low]
        self.exponent[low] = np.minimum(self.exponent[low] + 1, self.max_exponent)
        self.exponent[awake & ~low] = 0
        return low


class MinimumVariance(Scheduler):
    """Wait delta = rate / (2 score) rounds after each visit, which then weighs delta + 1.

    Args:
        num_examples: N.
        rate: lambda.
        max_wait: Largest delta.
        min_examples: Smallest round.
    """

    def __init__(self, num_examples: int, *, rate: float, max_wait: int = 100, min_examples: int = 1) -> None:
        super().__init__(num_examples, min_examples=min_examples)
        require_number("rate", rate, 0, math.inf)
        require_count("max_wait", max_wait, 0)
        self.rate, self.max_wait = float(rate), int(max_wait)

    def _snoozes(self, scores: np.ndarray, awake: np.ndarray) -> np.ndarray:
        delay = np.clip(self.rate / (2 * np.maximum(scores, 1e-300)), 0, self.max_wait).astype(np.int64)
        self.wait[awake] = delay[awake]
        self.weights[awake] = delay[awake] + 1
        return np.zeros(len(scores), dtype=bool)
