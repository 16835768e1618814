"""Below which score an example is snoozed: functions of the known scores, a value and the round.

Each rule is one line of the table `RULES`; all but `constant` follow the scale of the scores or of time.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np

from variance.errors import require_number
from variance.state import Stateful

Threshold = Literal[
    "constant", "median", "mean", "percentile", "self-tuning", "falling-decades", "rising-decades",
    "deviation", "log-deviation", "cumulative", "biased-log",
]  # fmt: skip
Rule = Callable[[np.ndarray, float, int], float]

TINY = 1e-30
"""Added to scores before taking logarithms."""


def cumulative_share(scores: np.ndarray, share: float) -> float:
    """Return the largest tau such that scores below it sum to at most `share` of the total.

    Example:
        >>> cumulative_share(np.array([1.0, 2.0, 3.0, 4.0]), 0.3)  # 1 + 2 of 10
        3.0
    """
    ordered = np.sort(scores)
    running = np.cumsum(ordered)
    first_above = int(np.searchsorted(running, share * running[-1] * (1 + 1e-12), side="right"))
    return float(ordered[first_above]) if first_above < len(ordered) else np.inf


def _log_deviation(scores: np.ndarray, deviations: float) -> float:
    logs = np.log(scores + TINY)
    return float(np.exp(logs.mean() - deviations * logs.std()))


RULES: dict[str, Rule] = {
    "constant": lambda scores, value, round_: value,
    "median": lambda scores, value, round_: value * float(np.median(scores)),
    "mean": lambda scores, value, round_: value * float(scores.mean()),
    "percentile": lambda scores, value, round_: float(np.percentile(scores, value)),
    "falling-decades": lambda scores, value, round_: value * 0.1**round_,
    "rising-decades": lambda scores, value, round_: value * 10.0**round_,
    "deviation": lambda scores, value, round_: float(scores.mean() - value * scores.std()),
    "log-deviation": lambda scores, value, round_: _log_deviation(scores, value),
    "cumulative": lambda scores, value, round_: cumulative_share(scores, value),
    "biased-log": lambda scores, value, round_: value * float(np.expm1(np.log1p(scores).mean())),
}
"""tau = rule(finite scores, value, period). `constant`: value; `median`, `mean`: value times it;
`percentile`: the value-th; `falling-decades`, `rising-decades`: value divided or multiplied by 10 per period;
`deviation`, `log-deviation`: value standard deviations below the mean of scores or of their logarithms;
`cumulative`: scores below tau sum to the share `value`; `biased-log`: value times the geometric mean of
1 + score, minus 1."""


class SelfTuningPercentile(Stateful):
    """A percentile that rises by `step` after every round in which at most 2 % of the sleepers woke.

    Args:
        start: First percentile.
        step: Increase per quiet round.
        largest: Largest percentile.

    Example:
        >>> rule = SelfTuningPercentile(10.0, step=5.0)
        >>> rule.update(woken=0, asleep=100), rule.update(woken=50, asleep=100)
        (15.0, 15.0)
    """

    STATE = ("percentile",)
    QUIET = 0.02

    def __init__(self, start: float, *, step: float = 5.0, largest: float = 90.0) -> None:
        for name, value in (("start", start), ("step", step), ("largest", largest)):
            require_number(name, value, 0, 100)
        self.percentile, self.step, self.largest = start, step, largest

    def update(self, woken: int, asleep: int) -> float:
        """Take notice of a round and return the percentile from now on."""
        if woken <= self.QUIET * max(asleep, 1):
            self.percentile = min(self.largest, self.percentile + self.step)
        return self.percentile
