"""Training: measuring changes no bit, interrupted runs continue bit for bit; streams and data."""

import io
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from variance.data import DatasetPopulation, IndexedDataset, TensorPopulation, shift_and_flip
from variance.errors import ConfigError, NonFiniteGradient
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
)
from variance.gradient_clustering import BatchClustering, OnlineClustering
from variance.losses import cross_entropy
from variance.measurement import Measurement, measure_model, preserved_randomness
from variance.objective import Objective, Point
from variance.optimizer import Optimizer
from variance.stream import DataStream, IterableStream
from variance.training import Timing, Trainer

ESTIMATORS: dict[str, Callable[[Objective], GradientEstimator]] = {
    "SG-B": SGB,
    "SG-2B": lambda o: SGB(o, batch_factor=2),
    "SVRG": SVRG,
    "SVRG-partial": lambda o: SVRG(o, snapshot_fraction=0.5),
    "SVRG-clipped": lambda o: SVRG(o, clip="norm_var", clip_threshold=0.5),
    "GC": lambda o: GC(o, BatchClustering(3, chunk=8), iterations=2),
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
    """200 steps with and without measuring; every estimator meets dropout, batch norm and augmentation."""
    plain = plain_weights(features, 200)
    logged: list[dict[str, float]] = []
    trainer = make_trainer(features, measured=name)
    torch.manual_seed(5)
    trainer.run(200, lambda step, metrics: logged.append(metrics))
    point = trainer.optimizer.point
    measured = torch.cat([point.flat(), *(b.double().flatten() for b in point.buffers.values())])
    assert torch.equal(measured, plain)
    assert len(logged) == 7
    assert any(key.endswith("/avg_var") and value > 0 for key, value in logged[-1].items())


@pytest.mark.parametrize("measured", [None, "SVRG"])
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


def test_preserved_randomness_restores_all_global_states() -> None:
    import random

    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global state is the subject
    expected = (torch.rand(1), random.random(), np.random.rand())  # noqa: NPY002
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    with preserved_randomness():
        _ = torch.rand(5), random.random(), np.random.rand()  # noqa: NPY002
        torch.manual_seed(7)
    assert (torch.rand(1), random.random(), np.random.rand()) == expected  # noqa: NPY002


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_draws": 2}, "num_draws is 2; the noise floor needs at least 3"),
        ({"mode": "fast"}, "mode is 'fast'; allowed are unbiased, reference, exact"),
    ],
)
def test_bad_measurements(options: dict[str, object], message: str, problem) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=message):
        Measurement([SGB(problem.objective)], problem.stream(), **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="distinct names"):
        Measurement([SGB(problem.objective), SGB(problem.objective)], problem.stream())


def test_measured_variance_agrees_with_the_exact_one(problem) -> None:  # type: ignore[no-untyped-def]
    """Unbiased mode against exact mode within 5 standard errors (batches without replacement)."""
    found = Measurement([SGB(problem.objective)], problem.stream(4), num_draws=300)(0, problem.point)
    from variance.statistics import exact

    truth = exact(problem.gradients(), 4, replacement=False).avg_var
    assert abs(found["SG-B[B=4]/avg_var"] - truth) <= 5 * found["SG-B[B=4]/avg_var_se"]


def test_measure_model_is_a_line_in_any_loop(problem) -> None:  # type: ignore[no-untyped-def]
    model = network("dropout")
    before = torch.get_rng_state()
    found = measure_model(model, nn.CrossEntropyLoss(), problem.x.float(), problem.y, batch_size=8)
    assert torch.equal(torch.get_rng_state(), before)
    assert found["noise_scale_se"] > 0


def test_forks_are_independent_and_repeatable(problem) -> None:  # type: ignore[no-untyped-def]
    one, two = problem.stream(), problem.stream()
    fork = one.fork("measure")
    first = [fork.next().indices.tolist() for _ in range(20)]
    assert [one.next().indices.tolist() for _ in range(20)] == [
        two.next().indices.tolist() for _ in range(20)
    ]
    again = two.fork("measure")
    assert [again.next().indices.tolist() for _ in range(20)] == first
    assert [problem.stream().fork("other").next().indices.tolist()] != first[:1]


def test_iterable_data_feed_online_clustering_but_have_no_stratified_sampler() -> None:
    class Endless(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self):  # type: ignore[no-untyped-def]
            generator = torch.Generator().manual_seed(0)
            while True:
                yield torch.randn(10, 5, generator=generator), torch.randint(3, (10,), generator=generator)

    model = network("")
    objective, stream = Objective(model, cross_entropy), IterableStream(Endless())
    online = GCOnline(objective, OnlineClustering(3))
    draws = []
    for step in range(5):
        batch = stream.next()
        online.on_frequent(step, Point.of(model), batch)
        draws.append(SGB(objective).direction(Point.of(model), batch).values)
    assert online.clustering.num_batches == 5
    assert batch.indices.tolist() == list(range(40, 50))
    with pytest.raises(ConfigError, match=r"has no length or no indices.*TensorPopulation"):
        DatasetPopulation(Endless())
    with pytest.raises(ConfigError, match="cannot fetch by index; wrap it"):
        DataStream(Endless(), 4)  # type: ignore[arg-type]


def test_variants_of_a_data_set() -> None:
    base = TensorPopulation(torch.arange(100.0).unsqueeze(1), torch.arange(100) % 10)
    copied = IndexedDataset(base, duplicates=(3, 5), seed=1)
    assert len(copied) == 115
    assert torch.bincount(copied.source).sort(descending=True).values[:4].tolist() == [6, 6, 6, 1]
    corrupted = IndexedDataset(base, corrupt_percent=20, seed=1)
    assert corrupted.corrupted.sum() == 20
    assert corrupted.corrupted[:20].all()
    assert torch.equal(corrupted.targets[20:], base.targets[20:])
    assert not IndexedDataset(base, corrupt_percent=20, shuffle_ids=True, seed=1).corrupted[:20].all()
    skewed = IndexedDataset(base, imbalance=(3, 2.5), seed=1)
    assert int((skewed.targets == 3).sum()) == 25
    assert len(skewed) == 115
    small = IndexedDataset(base, max_size=7, seed=1)
    batch = small.fetch(torch.tensor([0, 6]))
    assert len(small) == 7
    assert batch.inputs.flatten().long().remainder(10).tolist() == batch.targets.tolist()


def test_constructing_a_data_set_leaves_global_randomness_alone() -> None:
    before = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]  # noqa: NPY002
    IndexedDataset(
        TensorPopulation(torch.zeros(9, 1), torch.zeros(9).long()), corrupt_percent=50, duplicates=(2, 2)
    )
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]  # noqa: NPY002


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"duplicates": (10, 1)}, r"duplicates=\(10, 1\): choose 1 to 9"),
        ({"corrupt_percent": 101}, "must lie in"),
        ({"imbalance": (7, 2.0)}, "class 7 has 0 examples"),
        ({"max_size": 0}, "max_size is 0"),
    ],
)
def test_bad_variants(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IndexedDataset(TensorPopulation(torch.zeros(9, 1), torch.zeros(9).long()), **options)  # type: ignore[arg-type]


def test_an_empty_population_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 inputs and 0 targets"):
        TensorPopulation(torch.zeros(0, 1), torch.zeros(0))


def test_shift_and_flip_keeps_pixels() -> None:
    images = torch.rand(8, 3, 6, 6) + 1
    out = shift_and_flip(images, np.random.default_rng(0), padding=0)
    assert all(torch.equal(o, i) or torch.equal(o, i.flip(2)) for o, i in zip(out, images, strict=True))
    assert any(torch.equal(o, i.flip(2)) for o, i in zip(out, images, strict=True))
