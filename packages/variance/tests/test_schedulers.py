"""Snoozing: published rules on scores small enough to follow by hand."""

import pytest
import torch

from variance.errors import ConfigError
from variance.sampling.schedulers import ExponentialSnooze, LinearRank, MinimumVariance, ScoreMemory


def test_memory_is_bias_corrected_and_resumes() -> None:
    memory, twin = ScoreMemory(3, decay=0.5), ScoreMemory(3, decay=0.5)
    memory.update(torch.tensor([0, 1]), torch.tensor([2.0, 4.0]))
    memory.update(torch.tensor([0]), torch.tensor([4.0]))
    assert memory.read().tolist() == pytest.approx([(0.25 * 2 + 0.5 * 4) / 0.75, 4.0, float("inf")])
    twin.load_state_dict(memory.state_dict())
    assert torch.equal(twin.read(), memory.read())
    assert memory.read("sum")[:2].sum() == pytest.approx(1)
    assert memory.read("softmax")[:2].sum() == pytest.approx(1)
    changes = ScoreMemory(1, difference=True)
    for score in (2.0, 5.0):
        changes.update(torch.tensor([0]), torch.tensor([score]))
    assert changes.read().tolist() == [3.0]


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


@pytest.mark.parametrize(
    ("threshold", "value", "tau"),
    [("median", 0.5, 1.0), ("mean", 0.5, 1.5), ("percentile", 50, 2.0), ("deviation", 0, 3.0)],
)
def test_thresholds(threshold: str, value: float, tau: float) -> None:
    snooze = ExponentialSnooze(4, threshold=threshold, value=value)  # type: ignore[arg-type]
    assert snooze._tau(torch.tensor([1.0, 2.0, 6.0, float("inf")]).numpy()) == pytest.approx(tau)


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
        (lambda: ScoreMemory(0), "must be at least 1"),
        (lambda: ScoreMemory(2).update(torch.tensor([0, 0]), torch.ones(2)), "indices repeat"),
        (lambda: ScoreMemory(2).read("class"), "allowed are none, sum, softmax, batch"),
        (lambda: LinearRank(3, shares=(0.0, 1.0)), "must lie in"),
        (lambda: ExponentialSnooze(3, threshold="mode"), "allowed are constant"),
        (lambda: MinimumVariance(3, rate=-1.0), "must not be negative"),
        (lambda: LinearRank(3, min_examples=4), "min_examples is 4"),
        (lambda: LinearRank(3).next_round(torch.ones(2)), "scores must be 3 numbers"),
    ],
)
def test_bad_input(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=message):
        call()
