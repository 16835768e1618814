"""F8: distortion against the number of clusters, beside random assignment and D0/K."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np
import torch
from jaxtyping import Int
from matplotlib.figure import Figure
from torch import Tensor

from gdyn_common.seeding import generator, named_seed
from gdyn_reproduce.plotting import label_curves, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Estimate, Run
from variance.data import Population, TensorPopulation
from variance.estimators.clustered import stratified_statistics
from variance.estimators.sg import EXACT_CHUNK
from variance.gradient_clustering import BatchClustering, ClusteringOptions
from variance.objective import Objective, Point
from variance.paper.calibration import seconds_of
from variance.paper.checks import require
from variance.paper.training import Trainer
from variance.paper.trajectory import NetworkConfig, follow, setting_for, trainer_for
from variance.per_example.capturing import Capture
from variance.sampling import StratifiedSampler

CHECKPOINTS = 10
"""Checkpoints in the training before clustering."""


@dataclass
class ClusterCountConfig(NetworkConfig):
    """Distortion against the number of clusters.

    Attributes:
        learning_rate: Learning rate of the training before clustering.
        num_steps: Training steps before clustering.
        counts: Values of K.
        cluster_iterations: Passes per clustering (the first pass only assigns to initial centres).
    """

    model: str = "mnist-cnn"
    learning_rate: float = 0.02
    num_steps: int = 1000
    counts: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32, 64, 128, 256])
    cluster_iterations: int = 2
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.counts[:1] == [1],
            f"counts={self.counts} must start with 1, the distortion D0 of one cluster.",
        )


@dataclass(frozen=True)
class _Trained:
    """A trained network on its data: what is clustered with every K."""

    objective: Objective
    point: Point
    population: Population

    def capture(self, rows: Int[Tensor, "n"]) -> Capture:
        return self.objective.capture(self.point, self.population.fetch(rows), weights_only=True)

    def distortion(self, assignment: Int[Tensor, "n"]) -> dict[str, np.ndarray]:
        """Return D, the variance of one draw per cluster summed over coordinates."""
        sampler = StratifiedSampler(assignment)
        found = stratified_statistics(
            self.objective, self.point, self.population, sampler, len(sampler.clusters)
        )
        return {"distortion": np.array(found.avg_var * len(found.mean))}


def compute(config: ClusterCountConfig, run: Run) -> Result:
    """Train, then cluster with every K; D is the stratified variance of one draw per cluster."""
    config.note_data(run)
    clustered, chance = (np.zeros((len(config.seeds), len(config.counts))) for _ in range(2))
    for row, seed in enumerate(run.progress(config.seeds, "seeds")):
        trained = cache(partial(_train, config, seed, run))  # not at all where every piece is stored
        for column, count in enumerate(config.counts):
            clustered[row, column], chance[row, column] = _distortions(config, seed, count, trained, run)
    counts = np.array(config.counts)
    ideal = clustered[:, :1] / counts
    many = counts >= counts[-1] / 4
    measurements = {
        "random_over_ideal": (chance / ideal).mean(1).tolist(),
        "clustered_over_ideal_many": (clustered / ideal)[:, many].mean(1).tolist(),
        "falls_monotonically": [bool((np.diff(row) < 0).all()) for row in clustered],
    }
    return Result(measurements, {"counts": counts, "clustered": clustered, "chance": chance})


def _train(config: ClusterCountConfig, seed: int, run: Run) -> _Trained:
    trained, trainer = _start(config, seed)
    every = max(1, config.num_steps // CHECKPOINTS)
    follow(trainer, config.num_steps, run, f"seed={seed}/training", checkpoint_every=every)
    return trained


def _start(config: ClusterCountConfig, seed: int) -> tuple[_Trained, Trainer]:
    """Return the network, and the trainer that moves it."""
    setting = setting_for(config, seed, config.learning_rate)
    trainer = trainer_for(setting)
    return _Trained(setting.objective, trainer.optimizer.point, setting.population), trainer


def _distortions(
    config: ClusterCountConfig, seed: int, count: int, trained: Callable[[], _Trained], run: Run
) -> tuple[float, float]:
    """Return D of gradient clusters and of random ones; passes over the data are stored one by one."""

    def cluster() -> dict[str, np.ndarray]:
        clustering = BatchClustering(
            count,
            seed=named_seed(seed, "clusters", count),
            options=ClusteringOptions(chunk=config.batch_size),
        )
        network = trained()
        found = clustering.fit(network.capture, len(network.population), config.cluster_iterations)
        source = generator(seed, "random assignment", count)
        return {
            "clustered": found.assignment.numpy(),
            "chance": source.integers(count, size=len(network.population)),
        }

    name = f"seed={seed}/K={count}"
    ids = run.piece(f"{name}/clusters", cluster)

    def distortion(kind: str) -> dict[str, np.ndarray]:
        return trained().distortion(torch.from_numpy(ids[kind]))

    clustered, chance = (
        run.piece(f"{name}/{kind}", partial(distortion, kind)) for kind in ("clustered", "chance")
    )
    return float(clustered["distortion"]), float(chance["distortion"])


def estimate(config: ClusterCountConfig) -> Estimate:
    """Return the expected cost: training, and the passes for every K, timed on the first examples."""
    whole, trainer = _start(config, config.seeds[0])
    step = seconds_of(trainer.step)
    some = whole.population.fetch(torch.arange(min(len(whole.population), EXACT_CHUNK)))
    sample = _Trained(whole.objective, whole.point, TensorPopulation(some.inputs, some.targets))
    passes = 0.0
    for count in config.counts:
        clustering = BatchClustering(
            min(count, len(some)), options=ClusteringOptions(chunk=config.batch_size)
        )
        ids = torch.arange(len(some)) % count
        passes += config.cluster_iterations * seconds_of(
            partial(clustering.fit, sample.capture, len(some), 1), 1
        )
        passes += 2 * seconds_of(partial(sample.distortion, ids), 1)
    seconds = config.num_steps * step + passes * len(whole.population) / len(some)
    parameters = len(whole.point.flat())
    return Estimate(len(config.seeds) * seconds, 8.0 * parameters * (max(config.counts) + 8))


def plot(result: Result) -> Figure:
    """Draw distortion against K on doubly logarithmic axes."""
    a = result.arrays
    figure, ax = new_figure()
    ax.loglog(a["counts"], a["clustered"].mean(0), "o-", label="clustered")
    ax.loglog(a["counts"], a["chance"].mean(0), "s--", label="at random")
    for factor, label in ((1, "1 / K"), (2, "1 / 2K")):
        ax.loglog(a["counts"], a["clustered"][:, 0].mean() / factor / a["counts"], ":", label=label)
    ax.set(
        title="Variance of one gradient drawn from each of K clusters",
        xlabel="number of clusters K",
        ylabel="variance",
    )
    label_curves(ax)
    return figure
