"""Numbers and words that mean nothing are refused in one line, by every public function that takes them."""

import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from variance import (
    EKFAC,
    GC,
    KFAC,
    NTK,
    SGB,
    SVRG,
    Adam,
    BatchClustering,
    ClusteringOptions,
    DataStream,
    GCOnline,
    GradientMonitor,
    HeavyBall,
    ImportanceSampler,
    IndexedDataset,
    Measurement,
    Nesterov,
    NoiseMeter,
    NonFiniteGradient,
    Objective,
    OnlineClustering,
    SnapshotAverage,
    StratifiedSampler,
    TensorPopulation,
    UniformSampler,
    cluster,
    cluster_subset,
    exact_moves,
    exact_moves_gram,
    losses,
    measure_model,
    per_example,
    statistics,
    stratified_variance,
)  # fmt: skip
from variance.errors import require_number
from variance.randomness import generator_of
from variance.sampling import (
    ExponentialSnooze,
    LinearRank,
    MinimumVariance,
    RoundSampler,
    ScoreMemory,
    check_assignment,
    cluster_variances,
    neyman_fractions,
    neyman_variance,
)  # fmt: skip

torch.manual_seed(0)
MODEL, LOSS = nn.Linear(4, 3), nn.functional.cross_entropy
X, Y = torch.randn(20, 4), torch.arange(20) % 3
G, IDS = torch.randn(20, 5), torch.arange(20) % 3
OBJECTIVE, POPULATION = Objective(MODEL, LOSS), TensorPopulation(X, Y)
CONSTANT: dict[str, Any] = {"threshold": "constant", "value": 1.0}

COUNTS: dict[str, Callable[[Any], object]] = {
    "noise_floor": statistics.noise_floor,
    "unbiased": lambda n: statistics.unbiased(G, n),
    "exact": lambda n: statistics.exact(G, n),
    "population of a design": lambda n: statistics.Design("epochs", n),
    "draws of a design": lambda n: statistics.Design("epochs", 10).factors(n, 2),
    "batch of a design": lambda n: statistics.Design().factors(2, n),
    "batch_mean_factor": lambda n: statistics.batch_mean_factor(n, 2),
    "stratified_variance": lambda n: stratified_variance(G, IDS, draws_per_cluster=n),
    "neyman_variance": lambda n: neyman_variance(G, IDS, n),
    "check_assignment": lambda n: check_assignment(IDS, n),
    "UniformSampler": UniformSampler,
    "UniformSampler.draw": lambda n: UniformSampler(9, replacement=True).draw(n),
    "ImportanceSampler.draw": lambda n: ImportanceSampler(torch.ones(4)).draw(n),
    "StratifiedSampler.draw": lambda n: StratifiedSampler(IDS).draw(n),
    "StratifiedSampler.law": lambda n: StratifiedSampler(IDS).law(n),
    "RoundSampler.draw": lambda n: RoundSampler(LinearRank(9), ScoreMemory(9)).draw(n),
    "ScoreMemory": ScoreMemory,
    "num_examples": lambda n: LinearRank(n),
    "min_examples": lambda n: LinearRank(9, min_examples=n),
    "num_rounds": lambda n: LinearRank(9, num_rounds=n),
    "period": lambda n: ExponentialSnooze(9, **CONSTANT, period=n),
    "cluster": lambda n: cluster(MODEL, LOSS, X, Y, n),
    "iterations": lambda n: cluster(MODEL, LOSS, X, Y, 3, iterations=n),
    "subset_size": lambda n: cluster_subset(MODEL, LOSS, X, Y, 1, subset_size=n),
    "chunk": lambda n: cluster_subset(MODEL, LOSS, X, Y, 3, subset_size=9, chunk=n),
    "rank": lambda n: ClusteringOptions(rank=n, form="svd"),
    "reinit_every": lambda n: OnlineClustering(3, reinit_every=n),
    "num_draws": lambda n: measure_model(MODEL, LOSS, X, Y, batch_size=4, num_draws=n),
    "num_draws of a monitor": lambda n: GradientMonitor(MODEL, LOSS, X, Y, batch_size=4, num_draws=n),
    "num_draws of a measurement": lambda n: Measurement(
        [SGB(OBJECTIVE)], DataStream(POPULATION, 4), num_draws=n
    ),
    "window": lambda n: NoiseMeter(MODEL, 4).plot(window=n),
    "DataStream": lambda n: DataStream(POPULATION, n),
    "DataStream.next": lambda n: DataStream(POPULATION, 2).next(n),
    "max_size": lambda n: IndexedDataset(POPULATION, max_size=n),
    "duplicates": lambda n: IndexedDataset(POPULATION, duplicates=(n, 1)),
    "batch_factor": lambda n: SGB(OBJECTIVE, batch_factor=n),
    "alpha_decay_steps": lambda n: SVRG(OBJECTIVE, alpha_decay_steps=n),
    "count": lambda n: SnapshotAverage(OBJECTIVE, count=n),
    "covariance_every": lambda n: KFAC(OBJECTIVE, covariance_every=n),
    "average_points": lambda n: GC(OBJECTIVE, BatchClustering(3), average_points=n),
    "chunk of GCOnline": lambda n: GCOnline(OBJECTIVE, OnlineClustering(3), chunk=n),
}
FROM_ZERO: dict[str, Callable[[Any], object]] = {
    "sweeps": lambda n: exact_moves(G, IDS, n),
    "sweeps of a Gram matrix": lambda n: exact_moves_gram(G @ G.T, IDS, n),
    "within_cluster": lambda n: StratifiedSampler(IDS, within_cluster=n),
    "seed of a sampler": lambda n: UniformSampler(9, n),
    "seed of measure_model": lambda n: measure_model(MODEL, LOSS, X, Y, batch_size=4, seed=n),
    "batch_size": lambda n: measure_model(MODEL, LOSS, X, Y, batch_size=n or 2),
    "num_workers": lambda n: DataStream(POPULATION, 2, num_workers=n),
    "max_wait": lambda n: MinimumVariance(9, rate=1.0, max_wait=n),
    "min_size": lambda n: ClusteringOptions(min_size=n),
    "seed of K-FAC": lambda n: KFAC(OBJECTIVE, seed=n),
}
NUMBERS: dict[str, Callable[[Any], object]] = {
    "floor": lambda v: StratifiedSampler(IDS, allocation="neyman", spreads=torch.ones(3), floor=v),
    "robust": lambda v: StratifiedSampler(IDS, robust=(0.5, v)),
    "shares": lambda v: LinearRank(9, shares=(0.1, v)),
    "delays": lambda v: LinearRank(9, delays=(1, v)),
    "value": lambda v: ExponentialSnooze(9, threshold="percentile", value=v),
    "decay of scores": lambda v: ScoreMemory(9, decay=v),
    "decay": lambda v: OnlineClustering(3, decay=v),
    "min_size": lambda v: OnlineClustering(3, min_size=v),
    "initial_size": lambda v: OnlineClustering(3, initial_size=v),
    "global_mean": lambda v: ClusteringOptions(global_mean=v),
    "size_regularisation": lambda v: ClusteringOptions(size_regularisation=v),
    "corrupt_percent": lambda v: IndexedDataset(POPULATION, corrupt_percent=v),
    "imbalance": lambda v: IndexedDataset(POPULATION, imbalance=(0, v)),
    "snapshot_fraction": lambda v: SVRG(OBJECTIVE, snapshot_fraction=v),
    "damping of NTK": lambda v: NTK(OBJECTIVE, damping=v),
    "damping": lambda v: EKFAC(OBJECTIVE, damping=v),
    "kl_clip": lambda v: KFAC(OBJECTIVE, kl_clip=v),
    "momentum": lambda v: HeavyBall(OBJECTIVE, momentum=v),
    "learning_rate": lambda v: Nesterov(OBJECTIVE, learning_rate=v),
    "betas": lambda v: Adam(OBJECTIVE, betas=(0.9, v)),
    "epsilon": lambda v: Adam(OBJECTIVE, epsilon=v),
    "clamp": lambda v: GC(OBJECTIVE, BatchClustering(3), clamp=v),
    "smoothing": lambda v: losses.smoothed_cross_entropy(X, Y, smoothing=v),
}
WORDS: dict[str, Callable[[Any], object]] = {
    "dead": lambda v: statistics.unbiased(G, dead=v),
    "dead of exact": lambda v: statistics.exact(G, 1, dead=v),
    "dead of a measurement": lambda v: Measurement([SGB(OBJECTIVE)], DataStream(POPULATION, 2), dead=v),
    "allocation": lambda v: StratifiedSampler(IDS, allocation=v),
    "weighting": lambda v: cluster(MODEL, LOSS, X, Y, 3, weighting=v),
    "form": lambda v: ClusteringOptions(form=v),
    "compare": lambda v: ClusteringOptions(compare=v),
    "use": lambda v: measure_model(MODEL, LOSS, X, Y, batch_size=2, use=v),
    "threshold": lambda v: ExponentialSnooze(9, threshold=v),
}


@pytest.mark.parametrize("value", [True, 2.5, 0, -1, math.nan, "3"])
@pytest.mark.parametrize("name", COUNTS)
def test_counts(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match="pass a whole number") as found:
        COUNTS[name](value)
    assert "\n" not in str(found.value)
    assert repr(value) in str(found.value)


@pytest.mark.parametrize("value", [True, 2.5, -1, math.nan, "3"])
@pytest.mark.parametrize("name", FROM_ZERO)
def test_counts_that_may_be_zero(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"is {value!r}; pass a whole number (of at least|from) 0"):
        FROM_ZERO[name](value)
    FROM_ZERO[name](np.int64(0))


@pytest.mark.parametrize("value", [True, math.nan, math.inf, -1.0, "0.1"])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"is {value!r}; pass a number"):
        NUMBERS[name](value)
    NUMBERS[name](np.float32(0.5))


@pytest.mark.parametrize("value", ["x", 3, None])
@pytest.mark.parametrize("name", WORDS)
def test_words(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"[Aa]llowed"):
        WORDS[name](value)


def test_infinity_is_a_number_only_where_it_is_a_bound() -> None:
    require_number("cap", math.inf, 1, math.inf)
    with pytest.raises(ValueError, match="cap is inf; pass a number of at least 1"):
        require_number("cap", math.inf, 1)
    with pytest.raises(ValueError, match="alpha is -inf; pass a number that is finite"):
        require_number("alpha", -math.inf)


@pytest.mark.parametrize("value", [torch.tensor(0.5), np.array(0.5), np.float32(0.5), Decimal("0.5")])
def test_whatever_holds_one_number_is_one(value: Any) -> None:
    require_number("decay", value, 0, below=1)
    with pytest.raises(ValueError, match="pass a number of at least 1"):
        require_number("cap", value, 1)


@pytest.mark.parametrize(
    "value", ["0.5", b"0.5", True, np.True_, torch.tensor(True), torch.ones(1), 1j, 10**400]
)
def test_what_only_turns_into_a_number_is_none(value: Any) -> None:
    with pytest.raises(ValueError, match="pass a number"):
        require_number("decay", value, 0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: 3,
        lambda: np.int64(3),
        lambda: 2**70,
        lambda: [1, 2],
        lambda: (np.int64(1), 2),
        lambda: np.array([1, 2]),
        lambda: np.random.SeedSequence(3),
        lambda: np.random.PCG64(3),
        lambda: np.random.default_rng(3),
    ],
)
def test_seeds_are_those_of_numpy(make: Callable[[], Any]) -> None:
    assert generator_of(make()).integers(2**60) == np.random.default_rng(make()).integers(2**60)
    assert torch.equal(UniformSampler(20, make()).draw(5).indices, UniformSampler(20, make()).draw(5).indices)
    measure_model(MODEL, LOSS, X, Y, batch_size=4, num_draws=3, seed=make())


def test_a_tensor_is_the_seed_that_it_holds_and_none_is_any() -> None:
    assert generator_of(torch.tensor(3)).integers(2**60) == np.random.default_rng(3).integers(2**60)
    assert generator_of(None).integers(2**60) != generator_of(None).integers(2**60)


@pytest.mark.parametrize(
    "seed", [True, (True,), 0.5, math.nan, "3", b"3", -1, [-1], [0.5], np.array([True]), {}]
)
def test_what_is_no_seed(seed: Any) -> None:
    with pytest.raises(ValueError, match="several, a seed or generator of NumPy, or None"):
        generator_of(seed)


@pytest.mark.parametrize(
    "make", [lambda s: KFAC(Objective(MODEL, LOSS), seed=s), lambda s: statistics.RunningDraws(seed=s)]
)
def test_a_seed_of_torch_has_64_bits(make: Callable[[int], Any]) -> None:
    make(2**64 - 1)
    with pytest.raises(ValueError, match="pass a whole number from 0 to 18446744073709551615"):
        make(2**70)


SEEDED: dict[str, Callable[[Any], Any]] = {
    "SVRG": lambda s: SVRG(OBJECTIVE, snapshot_fraction=0.5, seed=s).seed,
    "KFAC": lambda s: KFAC(OBJECTIVE, seed=s)._labels.initial_seed(),
    "RunningDraws": lambda s: statistics.RunningDraws(seed=s)._seed,
    "GradientMonitor": lambda s: GradientMonitor(MODEL, LOSS, X, Y, seed=s).seed,
    "DataStream": lambda s: DataStream(POPULATION, 4, seed=s).seed,
    "UniformSampler": lambda s: UniformSampler(20, seed=s).draw(5).indices.tolist(),
    "measure_model": lambda s: measure_model(MODEL, LOSS, X, Y, batch_size=4, num_draws=3, seed=s)["avg_var"],
}


@pytest.mark.parametrize("name", SEEDED)
def test_whatever_takes_a_seed_takes_the_same_ones(name: str) -> None:
    """Several numbers and a tensor give the same twice, and a number what it always gave."""
    make = SEEDED[name]
    assert make([1, 2]) == make((1, 2)) == make(torch.tensor([1, 2])) != make([1, 3])
    assert make(7) == make(np.int64(7)) == make(torch.tensor(7))
    assert make(np.random.default_rng(3)) == make(np.random.default_rng(3))
    if name not in ("UniformSampler", "measure_model"):
        assert make(7) == 7
    for wrong in (True, -1, 0.5, "3"):
        with pytest.raises(ValueError, match="pass a whole number of at least 0, several"):
            make(wrong)


def test_dropout_follows_a_generator_that_is_given_as_seed() -> None:
    model = nn.Sequential(MODEL, nn.Dropout(0.5))
    found = [
        measure_model(model, LOSS, X, Y, batch_size=4, num_draws=3, seed=np.random.default_rng(3))
        for _ in range(2)
    ]
    assert found[0]["avg_var"] == found[1]["avg_var"]


def test_counts_may_be_tensors() -> None:
    four = torch.tensor(4)
    assert len(UniformSampler(torch.tensor(20), replacement=True).draw(four).indices) == 4  # type: ignore[arg-type]
    assert len(UniformSampler(torch.tensor(20)).draw(four).indices) == 4  # type: ignore[arg-type]
    assert measure_model(MODEL, LOSS, X, Y, batch_size=four, num_draws=four).num_draws == 4  # type: ignore[arg-type]


def test_a_batch_size_may_be_left_to_the_loader() -> None:
    GradientMonitor(MODEL, LOSS, X, Y, batch_size=None)
    with pytest.raises(ValueError, match="batch_size is missing; give the examples per draw"):
        measure_model(MODEL, LOSS, X, Y, batch_size=None)


def test_factors_of_robust_may_be_an_array() -> None:
    given = [StratifiedSampler(IDS, robust=robust) for robust in ((0.5, 1.5), np.array([0.5, 1.5]))]  # type: ignore[arg-type]
    assert torch.equal(given[0].weights, given[1].weights)


def test_an_infinite_rate_waits_longest() -> None:
    scheduler = MinimumVariance(3, rate=math.inf, max_wait=7)
    scheduler.next_round(torch.ones(3))
    assert scheduler.wait.tolist() == [7, 7, 7]
    for rate in (True, math.nan, -1.0, "0.1"):
        with pytest.raises(ValueError, match=r"rate is .*; pass a number"):
            MinimumVariance(3, rate=rate)  # type: ignore[arg-type]


ONE_BAD = {
    "unbiased": statistics.unbiased,
    "exact": lambda g: statistics.exact(g, 1),
    "reference": lambda g: statistics.reference(g, g),
    "stratified_variance": lambda g: stratified_variance(g, IDS),
    "cluster_variances": lambda g: cluster_variances(g, torch.arange(20)),
    "neyman_fractions": lambda g: neyman_fractions(g, IDS),
    "exact_moves": lambda g: exact_moves(g, IDS, 1),
    "exact_moves_gram": lambda g: exact_moves_gram((g @ g.T).fill_diagonal_(1.0), IDS, 1),
}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ONE_BAD)
def test_one_bad_gradient_is_refused(name: str, value: float) -> None:
    gradients = G.clone()
    gradients[3, 2] = value
    with pytest.raises(NonFiniteGradient, match="NaN or infinite"):
        ONE_BAD[name](gradients)


def test_a_finite_loss_with_a_gradient_that_is_not() -> None:
    """The root of zero: measure_model said that the noise in each coordinate was zero."""
    model = nn.Linear(4, 3, bias=False)
    nn.init.zeros_(model.weight)
    with pytest.raises(NonFiniteGradient, match="draws hold NaN or infinite values"):
        measure_model(model, lambda o, t: o.square().sum(1).sqrt().mean(), X, Y, batch_size=4)


@pytest.mark.parametrize("layers", [("0", "typo"), ("typo",)])
def test_layers_that_do_not_exist(layers: tuple[str, ...]) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"layers \('typo',\) match nothing; weight layers are 0, 1"):
        cluster(model, LOSS, X, Y, 3, options=ClusteringOptions(layers=layers))
    with pytest.raises(ValueError, match="layers is '01'; pass a tuple of names"):
        ClusteringOptions(layers="01")  # type: ignore[arg-type]


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"differ in their coordinates: \[\(3,\), \(5,\)\]"):
        statistics.reference(G, G[:, :3])
    with pytest.raises(ValueError, match=r"gram has shape \(20, 5\)"):
        exact_moves_gram(G, IDS, 1)
    with pytest.raises(ValueError, match=r"directions have shape \(2, 3\); pass \(k, 15\)"):
        per_example.inner_products(MODEL, LOSS, X, Y, torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"scores have shape \(2, 2\); pass one per example"):
        ImportanceSampler(torch.ones(2, 2))


def test_scores_near_the_end_of_the_range_are_proportional() -> None:
    assert ImportanceSampler(torch.tensor([1e308, 1.5e308], dtype=torch.float64)).probabilities.tolist() == [
        pytest.approx(0.4),
        pytest.approx(0.6),
    ]
