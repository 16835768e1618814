"""Snoozing: published rules on scores small enough to follow by hand."""

import pytest
import torch

from variance.errors import ConfigError
from variance.sampling.schedulers import ExponentialSnooze, LinearRank, MinimumVariance


def test_waiting_doubles_and_resets() -> None:
    snooze = ExponentialSnooze(2, threshold="constant", value=1.0)
    low, high = torch.tensor([0.0, 9.0]), torch.tensor([9.0, 9.0])
    for _ in range(2):  # asleep now and in the next round
        assert snooze.next_round(low).tolist() == [1]
    assert snooze.next_round(low).tolist() == [1]  # awake, low again: waits 2
    assert snooze.wait[0] == 2
    for _ in range(2):
        assert snooze.next_round(high).tolist() == [1]
    assert snooze.next_round(high).tolist() == [0, 1]
    assert snooze.exponent[0] == 0


def test_thresholds_ignore_examples_without_a_score() -> None:
    snooze = ExponentialSnooze(4, threshold="median", value=0.5)
    assert snooze._tau(torch.tensor([1.0, 2.0, 6.0, float("inf")]).numpy()) == 1.0


def test_decades_fall_with_rounds() -> None:
    snooze = ExponentialSnooze(2, threshold="falling-decades", value=5.0, period=1)
    scores = torch.tensor([1.0, 9.0])
    assert [snooze.next_round(scores).tolist() for _ in range(3)] == [[1], [1], [0, 1]]


def test_a_self_tuning_percentile_rises_until_examples_wake() -> None:
    snooze = ExponentialSnooze(100, threshold="self-tuning", value=10.0)
    scores = torch.arange(100.0)
    sizes = [len(snooze.next_round(scores)) for _ in range(3)]
    assert sizes[0] == 90
    assert snooze._tuned.percentile > 10.0


def test_linear_rank_drops_the_lowest_share() -> None:
    rank = LinearRank(4, shares=(0.5, 0.5), delays=(1, 3))
    assert rank.next_round(torch.tensor([3.0, 1.0, 2.0, 4.0])).tolist() == [0, 3]
    assert rank.wait.tolist() == [0, 3, 1, 0]


def test_rounds_keep_a_minimum() -> None:
    snooze = ExponentialSnooze(4, threshold="constant", value=10.0, min_examples=2)
    assert snooze.next_round(torch.tensor([1.0, 3.0, 2.0, 0.0])).tolist() == [1, 2]


def test_minimum_variance_weights_cover_the_waiting() -> None:
    """Over a period every example counts the same in total: visits times weight."""
    scheduler, scores = MinimumVariance(2, rate=4.0), torch.tensor([1.0, 4.0])
    total = torch.zeros(2)
    for _ in range(30):
        rows = scheduler.next_round(scores)
        total[rows] += torch.from_numpy(scheduler.weights)[rows].float()
    assert total.tolist() == [30.0, 30.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LinearRank(3, shares=(0.0, 1.0)), "a share is 1.0; pass a number of at least 0, below 1"),
        (lambda: ExponentialSnooze(3, threshold="mode"), "Unknown threshold 'mode'"),
        (lambda: MinimumVariance(3, rate=-1.0), "rate is -1.0; pass a number of at least 0"),
        (lambda: LinearRank(3, min_examples=4), "min_examples is 4"),
        (lambda: LinearRank(3).next_round(torch.ones(2)), "scores must be 3 numbers"),
    ],
)
def test_bad_input(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=message):
        call()
