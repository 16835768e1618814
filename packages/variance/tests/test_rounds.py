"""Batches of a scheduled round: who is drawn, with which weight, and that no one is starved for ever."""

import numpy as np
import pytest
import torch

from variance.errors import ConfigError
from variance.sampling.rounds import RoundSampler
from variance.sampling.schedulers import ExponentialSnooze, MinimumVariance
from variance.sampling.scores import ScoreMemory


def remembered(scores: list[float]) -> ScoreMemory:
    memory = ScoreMemory(len(scores))
    memory.update(torch.arange(len(scores)), torch.tensor(scores))
    return memory


def test_snoozed_examples_return() -> None:
    sampler = RoundSampler(
        ExponentialSnooze(4, threshold="constant", value=1.0), remembered([0, 2, 2, 2]), seed=1
    )
    drawn = [sampler.draw(3).indices.tolist() for _ in range(3)]
    assert all(0 not in batch for batch in drawn[:2])
    sampler.update(torch.tensor([0, 1, 0]), torch.tensor([7.0, 2.0, 5.0]))
    assert sampler.memory.read()[0] == 5.0
    assert 0 in np.concatenate([sampler.draw(4).indices for _ in range(3)])


@pytest.mark.parametrize("weighting", ["scale", "repeat"])
def test_minimum_variance_rounds_keep_every_examples_total_weight(weighting: str) -> None:
    scheduler = MinimumVariance(2, rate=4.0)  # waits 2 and 0 rounds, weights 3 and 1
    sampler = RoundSampler(scheduler, remembered([1.0, 4.0]), seed=0, weighting=weighting)  # type: ignore[arg-type]
    total = np.zeros(2)
    for _ in range(300):
        draw = sampler.draw(4)
        np.add.at(total, draw.indices.numpy(), draw.weights.numpy())
    assert total[0] / total[1] == pytest.approx(1.0, abs=0.02)  # 1 / 300 rounds at the end


def test_a_restored_sampler_continues_the_sequence() -> None:
    def build() -> RoundSampler:
        return RoundSampler(
            ExponentialSnooze(6, threshold="self-tuning", value=30.0), remembered([1, 2, 3, 4, 5, 6])
        )

    one, two = build(), build()
    for _ in range(5):
        one.draw(4)
    two.load_state_dict(one.state_dict())
    assert all(torch.equal(one.draw(4).indices, two.draw(4).indices) for _ in range(20))


def test_weights_are_capped() -> None:
    sampler = RoundSampler(MinimumVariance(1, rate=100.0), remembered([1.0]), cap=5.0)
    assert sampler.draw(1).weights.tolist() == [5.0]


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="weighting is 'drop'; allowed are scale, repeat"):
        RoundSampler(MinimumVariance(1, rate=1.0), ScoreMemory(1), weighting="drop")  # type: ignore[arg-type]
