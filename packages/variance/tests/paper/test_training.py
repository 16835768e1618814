"""Training: measuring changes no bit, interrupted runs continue bit for bit."""

import io
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from variance.data import TensorPopulation
from variance.errors import NonFiniteGradient, NotReady
from variance.estimators import (
    EKFAC,
    GC,
    IGT,
    KFAC,
    NTK,
    SGB,
    SVRG,
    Adam,
    GCOnline,
    GradientEstimator,
    HeavyBall,
    Nesterov,
    SnapshotAverage,
)
from variance.gradient_clustering import BatchClustering, ClusteringOptions, OnlineClustering
from variance.losses import cross_entropy
from variance.measurement import Measurement
from variance.objective import Objective, Point
from variance.paper.optimizer import Optimizer
from variance.paper.training import Timing, Trainer
from variance.stream import DataStream

ESTIMATORS: dict[str, Callable[[Objective], GradientEstimator]] = {
    "SG-B": SGB,
    "SG-2B": lambda o: SGB(o, batch_factor=2),
    "SVRG": SVRG,
    "snapshot-average": SnapshotAverage,
    "GC-averaged": lambda o: GC(o, BatchClustering(3, options=ClusteringOptions(chunk=8)), average_points=2),
    "SVRG-partial": lambda o: SVRG(o, snapshot_fraction=0.5),
    "SVRG-clipped": lambda o: SVRG(o, clip="norm_var", clip_threshold=0.5),
    "GC": lambda o: GC(o, BatchClustering(3, options=ClusteringOptions(chunk=8)), iterations=2),
    "GC-online": lambda o: GCOnline(o, OnlineClustering(3)),
    "heavy-ball": HeavyBall,
    "Nesterov": lambda o: Nesterov(o, learning_rate=0.05),
    "Adam": Adam,
    "IGT": IGT,
    "K-FAC": KFAC,
    "EK-FAC": EKFAC,
    "NTK": NTK,
}


def noise(inputs: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    return inputs + 0.1 * torch.from_numpy(generator.standard_normal(inputs.shape)).to(inputs)


def network(features: str) -> nn.Module:
    torch.manual_seed(0)
    dropout = nn.Dropout(0.3) if "dropout" in features else nn.Identity()
    norm = nn.BatchNorm1d(8) if "batch norm" in features else nn.Identity()
    return nn.Sequential(nn.Linear(5, 8), dropout, norm, nn.Tanh(), nn.Linear(8, 3))


def make_trainer(
    features: str = "",
    measured: str | None = None,
    driver: str = "SG-B",
    workers: int = 0,
    mode: str = "unbiased",
    **timing: object,
) -> Trainer:
    model = network(features)
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(40, 5, generator=generator), torch.randint(3, (40,), generator=generator)
    population = TensorPopulation(x, y, noise if "augmentation" in features else None)
    stream = DataStream(population, 6, seed=3, num_workers=workers)
    objective, point = Objective(model, cross_entropy), Point.of(model)
    optimizer = Optimizer(
        point, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    )
    beside = [ESTIMATORS[measured](objective)] if measured else []
    measurement = Measurement(beside, stream, num_draws=3, mode=mode) if beside else None  # type: ignore[arg-type]
    options = {
        "frequent_every": 5,
        "infrequent_every": 20,
        "measure_every": 25,
        "first_measure": 25,
        **timing,
    }
    return Trainer(
        optimizer,
        stream,
        ESTIMATORS[driver](objective),
        measured=beside,
        measurement=measurement,
        timing=Timing(**options),  # type: ignore[arg-type]
    )


@cache
def plain_weights(features: str, steps: int) -> torch.Tensor:
    return weights_after(make_trainer(features), steps)


def weights_after(trainer: Trainer, steps: int) -> torch.Tensor:
    torch.manual_seed(99)
    trainer.run(steps)
    return torch.cat(
        [
            trainer.optimizer.point.flat(),
            *(b.double().flatten() for b in trainer.optimizer.point.buffers.values()),
        ]
    )


ALL = "dropout, batch norm, augmentation"


@pytest.mark.parametrize(
    ("name", "features"),
    [*((name, ALL) for name in ESTIMATORS), *(("GC", one) for one in ("", *ALL.split(", ")))],
)
def test_measuring_changes_no_bit(name: str, features: str) -> None:
    """100 steps with and without measuring; every estimator meets dropout, batch norm and augmentation."""
    plain = plain_weights(features, 100)
    logged: list[dict[str, float]] = []
    trainer = make_trainer(features, measured=name)
    torch.manual_seed(5)
    trainer.run(100, lambda step, metrics: logged.append(metrics))
    point = trainer.optimizer.point
    measured = torch.cat([point.flat(), *(b.double().flatten() for b in point.buffers.values())])
    assert torch.equal(measured, plain)
    assert len(logged) == 3
    assert any(key.endswith("/avg_var") and value > 0 for key, value in logged[-1].items())


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker")  # on a single core
@pytest.mark.parametrize("measured", [None, "SVRG", "GC", "K-FAC"])
def test_workers_change_no_bit(measured: str | None) -> None:
    assert torch.equal(
        weights_after(make_trainer("augmentation", measured, workers=2), 60),
        plain_weights("augmentation", 60),
    )


@pytest.mark.parametrize("mode", ["reference", "exact"])
def test_the_other_modes_change_no_bit(mode: str) -> None:
    assert torch.equal(
        weights_after(make_trainer("dropout", "GC", mode=mode), 60), plain_weights("dropout", 60)
    )


@pytest.mark.parametrize("driver", ["SG-B", "GC", "GC-online", "SVRG", "K-FAC", "Adam"])
@pytest.mark.parametrize("stop", [1, 37])
def test_a_resumed_run_equals_the_unbroken_one(driver: str, stop: int) -> None:
    timing = {"first_infrequent": 0, "snapshot_timing": "before"}
    build = lambda: make_trainer("dropout", "SVRG-clipped", driver, **timing)  # noqa: E731
    unbroken: list[dict[str, float]] = []
    whole = build()
    whole.run(80, lambda step, metrics: unbroken.append(metrics))
    first = build()
    first.run(stop)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second, resumed = build(), list[dict[str, float]]()
    second.load_state_dict(torch.load(file, weights_only=True))
    second.run(80, lambda step, metrics: resumed.append(metrics))
    assert torch.equal(second.optimizer.point.flat(), whole.optimizer.point.flat())

    def strip(metrics: dict[str, float]) -> str:  # as text, so that NaN equals NaN
        return repr({name: value for name, value in metrics.items() if not name.endswith("seconds")})

    assert [strip(m) for m in resumed] == [strip(m) for m in unbroken[-len(resumed) :]]


def test_a_checkpoint_of_another_model_is_refused() -> None:
    state = make_trainer().state_dict()
    state["optimizer"]["point"]["parameters"]["0.weight"] = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"0.weight: \(2, 2\), the model has \(8, 5\)"):
        make_trainer().load_state_dict(state)
    with pytest.raises(ValueError, match=r"estimators \[\], this run has \['SVRG'\]"):
        make_trainer(measured="SVRG").load_state_dict(make_trainer().state_dict())


def test_snapshots_before_and_after_the_update_differ() -> None:
    results = [
        make_trainer(driver="SVRG", first_infrequent=0, snapshot_timing=timing)
        for timing in ("before", "after")
    ]
    results[1].driver.on_infrequent(0, results[1].optimizer.point.copy(), results[1].stream.population)
    assert not torch.equal(weights_after(results[0], 30), weights_after(results[1], 30))


def test_divergence_stops_training_with_step_and_last_loss() -> None:
    trainer = make_trainer()
    trainer.schedule = lambda step: 1e30
    with pytest.raises(NonFiniteGradient, match=r"stopped at step \d+; the last finite loss was"):
        trainer.run(50)


@pytest.mark.parametrize(("driver", "measured"), [("GC", None), ("SG-B", "SVRG")])
def test_an_estimator_used_too_early_names_the_step_of_its_snapshot(
    driver: str, measured: str | None
) -> None:
    trainer = make_trainer(driver=driver, measured=measured, first_infrequent=30)
    with pytest.raises(NotReady, match=r"step (0|25): .*The first snapshot is due at step 30"):
        trainer.run(40)
