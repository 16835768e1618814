"""Training with measurements: interruption at any point, data variants, schedules, packed states."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gdyn_common.logging import read_jsonl
from gdyn_reproduce.records import Header
from gdyn_reproduce.runs import Run
from variance.data import TensorPopulation
from variance.estimators import SGB
from variance.losses import half_squared_error
from variance.objective import Objective
from variance.paper.estimators import estimators_for
from variance.paper.training import Timing, Trainer
from variance.paper.trajectory import (
    Setting,
    TrainingConfig,
    column_name,
    follow,
    image_run,
    pack,
    population_for,
    timing_for,
    trainer_for,
    unpack,
)

NAMES = ("SG-B", "SG-2B", "SVRG", "GC", "GC-online")
HEADER = Header("variance", "0", "", "F1", "", "", "variance.paper.trajectory", "smoke", "smoke")
STEPS = 60


def make_trainer(mode: str = "exact", measure_every: int = 20, rate: float = 0.05) -> Trainer:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 4, generator=generator), torch.randn(30, 1, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.2), nn.Tanh(), nn.Linear(5, 1))
    objective = Objective(model, half_squared_error)
    timing = Timing(
        frequent_every=5, infrequent_every=25, measure_every=measure_every, first_measure=measure_every
    )
    setting = Setting(
        model, objective, TensorPopulation(x, y), 6, lambda step: rate, 0.5, 1e-3, timing,
        mode=mode, num_draws=3, seed=1,
    )  # fmt: skip
    estimators = estimators_for(NAMES, objective, clusters=3, iterations=2, batch_size=6, seed=1)
    return trainer_for(setting, estimators, SGB(objective))


class Killed(BaseException):
    """Not an Exception, so that nothing on the way can handle it."""


def kill_after(trainer: Trainer, steps: int) -> None:
    step, count = trainer.step, [0]

    def limited() -> dict[str, float]:
        if count[0] == steps:
            raise Killed
        count[0] += 1
        return step()

    trainer.step = limited  # type: ignore[method-assign]


@pytest.mark.parametrize("mode", ["exact", "unbiased", "reference"])
@pytest.mark.parametrize("stop", [0, 20, 21, 59])
def test_an_interrupted_run_continues_bit_for_bit(mode: str, stop: int, tmp_path: Path) -> None:
    """Killed before the first checkpoint, right before and after one, and in the last step."""
    whole = make_trainer(mode)
    expected = follow(whole, STEPS)
    with Run(tmp_path, {}, HEADER) as run:
        first = make_trainer(mode)
        kill_after(first, stop)
        with pytest.raises(Killed):
            follow(first, STEPS, run, "one", checkpoint_every=7)
        second = make_trainer(mode)
        kill_after(second, STEPS - 7 * (stop // 7))  # no step before the last checkpoint is repeated
        found = follow(second, STEPS, run, "one", checkpoint_every=7)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert torch.equal(second.optimizer.point.flat(), whole.optimizer.point.flat())
    assert [line["step"] for line in read_jsonl(tmp_path / "metrics.jsonl")] == [20, 40]


def test_a_finished_run_is_read_from_its_last_checkpoint(tmp_path: Path) -> None:
    with Run(tmp_path, {}, HEADER) as run:
        first, second = make_trainer(measure_every=0), make_trainer(measure_every=0)
        follow(first, STEPS, run, "one", checkpoint_every=10)
        kill_after(second, 0)
        assert list(follow(second, STEPS, run, "one", checkpoint_every=10)) == ["steps"]
    assert torch.equal(second.optimizer.point.flat(), first.optimizer.point.flat())


def test_columns_are_statistics_at_their_steps() -> None:
    trainer = make_trainer()
    found = follow(trainer, STEPS)
    assert found["steps"].tolist() == [20, 40]
    assert not [name for name in found if name.endswith("seconds")]
    size, count = trainer.stream.batch_size, len(trainer.stream.population)
    ratio = (count - 2 * size) / (count - size) / 2  # without replacement
    np.testing.assert_allclose(found["SG-2B.avg_var"], ratio * found["SG-B.avg_var"], rtol=1e-6)
    assert (found["gc.nonempty"] <= 3).all()
    assert (found["gc.largest"] != found["gc-online.largest"]).any()  # two clusterings, two names
    assert column_name("GC-online[B=64]/norm_var_trace") == "GC-online.norm_var_trace"
    assert column_name("loss") == "loss"


def test_estimators_are_made_by_name() -> None:
    objective = Objective(nn.Linear(2, 1), half_squared_error)
    made = estimators_for(NAMES, objective, clusters=2, iterations=1, batch_size=2, seed=0)
    assert tuple(estimator.name for estimator in made) == NAMES
    with pytest.raises(ValueError, match="Unknown estimator 'SG-3B'"):
        estimators_for(["SG-3B"], objective, clusters=2, iterations=1, batch_size=2, seed=0)


def test_states_survive_packing() -> None:
    state = {"a": torch.arange(3), "b": {"c": 2.5, "d": None}, "e": [torch.zeros(0)]}
    found = unpack(pack(state))
    assert repr(found) == repr(state)
    assert pack(state).dtype == np.uint8


def test_images_are_standardised_over_the_whole_set() -> None:
    population = population_for(TrainingConfig(dataset="digits"), seed=0)
    x = population.fetch(torch.arange(len(population))).inputs
    assert x.shape[1:] == (1, 8, 8)
    assert abs(float(x.double().mean())) < 1e-6
    assert float(x.double().std()) == pytest.approx(1, abs=1e-6)


def test_variants_depend_on_the_seed_only() -> None:
    config = TrainingConfig(dataset="digits", corrupt_percent=20.0, duplicates=[3, 10], max_size=200)
    first, again, other = (population_for(config, seed) for seed in (0, 0, 1))
    assert len(first) == 230
    rows = torch.arange(230)
    assert torch.equal(first.fetch(rows).targets, again.fetch(rows).targets)
    assert torch.equal(first.fetch(rows).inputs, again.fetch(rows).inputs)
    assert not torch.equal(first.fetch(rows).inputs, other.fetch(rows).inputs)
    assert first.corrupted.sum() == 46  # type: ignore[attr-defined]


def test_imagenet_has_no_variants() -> None:
    with pytest.raises(ValueError, match="dataset=imagenet has no duplicates, corrupt_percent or max_size"):
        population_for(TrainingConfig(dataset="imagenet", max_size=10), 0)


def test_the_timing_is_that_of_the_configuration() -> None:
    """Table of section 9: MNIST is measured every 500 steps, with snapshots at 10, 2 000, 4 000, ..."""
    timing = timing_for(TrainingConfig())
    assert [s for s in range(6001) if timing.infrequent_is_due(s)] == [10, 2000, 4000, 6000]
    assert [s for s in range(2001) if timing.measure_is_due(s)] == [500, 1000, 1500, 2000]


def test_the_learning_rate_drops_by_ten_at_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    original = Trainer.step

    def recorded(trainer: Trainer) -> dict[str, float]:
        assert trainer.schedule is not None
        rates.append(trainer.schedule(trainer.step_count))
        return original(trainer)

    monkeypatch.setattr(Trainer, "step", recorded)
    config = TrainingConfig(
        dataset="digits",
        model="digits-mlp",
        num_steps=6,
        drop_at=[2, 4],
        batch_size=10,
        estimators=["SG-B"],
        max_size=50,
    )
    with Run(tmp_path, {}, HEADER) as run:
        image_run(config, 0.5, 0, run)
    np.testing.assert_allclose(rates, [0.5, 0.5, 0.05, 0.05, 0.005, 0.005])
