"""Snooze thresholds against values worked out by hand."""

import math

import numpy as np
import pytest

from variance.sampling.thresholds import RULES, SelfTuningPercentile, cumulative_share

SCORES = np.array([1.0, 2.0, 6.0])


@pytest.mark.parametrize(
    ("rule", "value", "tau"),
    [
        ("constant", 0.7, 0.7),
        ("median", 0.5, 1.0),
        ("mean", 0.5, 1.5),
        ("percentile", 50, 2.0),
        ("deviation", 0, 3.0),
        ("deviation", 1, 3 - math.sqrt(14 / 3)),
        ("log-deviation", 0, 12 ** (1 / 3)),
        ("cumulative", 0.4, 6.0),  # 1 + 2 of 9 is a third
        ("biased-log", 1.0, 42 ** (1 / 3) - 1),
        ("falling-decades", 5.0, 0.05),
        ("rising-decades", 5.0, 500.0),
    ],
)
def test_rules(rule: str, value: float, tau: float) -> None:
    assert RULES[rule](SCORES, value, 2) == pytest.approx(tau, rel=1e-12)


def test_the_whole_sum_admits_everything() -> None:
    assert cumulative_share(SCORES, 1.0) == math.inf


def test_the_self_tuned_percentile_stops_at_its_limit() -> None:
    rule = SelfTuningPercentile(80.0, step=20.0, largest=90.0)
    assert rule.update(woken=0, asleep=10) == 90.0
