"""F8: distortion against the number of clusters, beside random assignment and D0/K."""

from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure

from gdyn_common.plotting import new_figure
from gdyn_common.records import Result
from gdyn_common.runs import Run
from gdyn_common.seeding import generator, named_seed
from variance.config import ClusterCountConfig, TrainingConfig
from variance.estimators import SGB
from variance.estimators.clustered import stratified_statistics
from variance.gradient_clustering import BatchClustering
from variance.losses import cross_entropy
from variance.models import build
from variance.objective import Objective, Point
from variance.training import Timing
from variance.trajectory import Setting, follow, population_for, trainer_for


def compute(config: ClusterCountConfig, run: Run) -> Result:
    """Train, then cluster with every K; D is the stratified variance of one draw per cluster."""
    seeds = run.progress(config.seeds, "seeds")
    found = [run.piece(f"seed={seed}", partial(_scan, config, seed)) for seed in seeds]
    clustered, chance = (np.stack([piece[name] for piece in found]) for name in ("clustered", "chance"))
    counts = np.array(config.counts)
    ideal = clustered[:, :1] / counts
    many = counts >= counts[-1] / 4
    measurements = {
        "random_over_ideal": (chance / ideal).mean(1).tolist(),
        "clustered_over_ideal_many": (clustered / ideal)[:, many].mean(1).tolist(),
        "falls_monotonically": [bool((np.diff(row) < 0).all()) for row in clustered],
    }
    return Result(measurements, {"counts": counts, "clustered": clustered, "chance": chance})


def _scan(config: ClusterCountConfig, seed: int) -> dict[str, np.ndarray]:
    population = population_for(TrainingConfig(dataset=config.dataset, model=config.model), seed)
    model = build(config.model, config.classes, seed)
    objective = Objective(model, cross_entropy)
    setting = Setting(
        model, cross_entropy, population, config.batch_size, lambda step: config.learning_rate,
        config.momentum, config.weight_decay, config.num_steps, Timing(), seed=seed,
    )  # fmt: skip
    follow(trainer_for(setting, [SGB(objective)], SGB(objective)), config.num_steps)
    point = Point.of(model).copy()
    clustered: list[float] = []
    chance: list[float] = []
    for count in config.counts:
        clustering = BatchClustering(count, chunk=config.batch_size, seed=named_seed(seed, "clusters", count))
        result = clustering.fit(
            lambda rows: objective.capture(point, population.fetch(rows), weights_only=True),
            len(population),
            config.cluster_iterations,
        )
        source = generator(seed, "random assignment", count)
        random_ids = torch.from_numpy(source.integers(count, size=len(population)))
        for collected, ids in ((clustered, result.assignment), (chance, random_ids)):
            found = stratified_statistics(objective, point, population, ids)
            collected.append(found.avg_var * len(found.mean))
    return {"clustered": np.array(clustered), "chance": np.array(chance)}


def plot(result: Result) -> Figure:
    """Draw distortion against K on doubly logarithmic axes."""
    a = result.arrays
    figure, ax = new_figure()
    ax.loglog(a["counts"], a["clustered"].mean(0), "o-", label="gradient clustering")
    ax.loglog(a["counts"], a["chance"].mean(0), "s--", label="random assignment")
    for factor, label in ((1, "D0 / K"), (2, "D0 / 2K")):
        ax.loglog(a["counts"], a["clustered"][:, 0].mean() / factor / a["counts"], ":", label=label)
    ax.set(xlabel="number of clusters K", ylabel="variance of one draw per cluster")
    ax.legend()
    return figure
