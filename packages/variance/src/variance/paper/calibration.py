"""How long a run will take on this machine: a few timed passes, and how often each of them occurs."""

import time
from collections.abc import Callable

import torch

from gdyn_reproduce.runs import Estimate
from variance.gradient_clustering import ClusteringOptions
from variance.gradient_clustering.centres import RunningSums, squared_distances
from variance.losses import cross_entropy
from variance.objective import Objective, Point
from variance.paper.training import Timing
from variance.paper.trajectory import TrainingConfig, network_for, population_for, timing_for

REPEATS = 3
GRADIENTS = {"SG-2B": 2, "SVRG": 2, "EK-FAC": 2, "NTK": 2}
"""Mini-batch gradients behind one draw, where it is not one."""
BYTES = 4


def seconds_of(job: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the shortest wall time of a few calls, after one to warm up."""
    job()
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        job()
        found.append(time.perf_counter() - started)
    return min(found)


def occurrences(timing: Timing, num_steps: int) -> tuple[int, int]:
    """Return how many measurements and how many snapshots a run takes.

    Example:
        >>> occurrences(Timing(infrequent_every=20, measure_every=10, first_measure=5), 50)
        (4, 3)
    """
    steps = range(num_steps)
    return sum(map(timing.measure_is_due, steps)), sum(map(timing.infrequent_is_due, steps))


def estimate_images(config: TrainingConfig) -> Estimate:
    """Return the expected cost of all training runs of an image figure.

    Counts mini-batch gradients (training, draws, SVRG snapshots) and clustering passes, each timed on the
    figure's own network and data.
    """
    population = population_for(config, config.seeds[0])
    model = network_for(config, population, config.seeds[0])
    objective, point = Objective(model, cross_entropy), Point.of(model)
    batch = population.fetch(torch.arange(min(config.batch_size, len(population))))
    gradient = seconds_of(lambda: objective.gradient(point, batch))
    options = ClusteringOptions()
    sums = RunningSums(config.clusters, options)
    captured = objective.capture(point, batch, weights_only=True)
    sums.add(captured, torch.arange(len(batch)) % config.clusters)
    centres = sums.means(torch.ones(config.clusters, dtype=torch.long))

    def cluster() -> None:
        found = objective.capture(point, batch, weights_only=True)
        ids = squared_distances(found, centres, options).argmin(1)
        RunningSums(config.clusters, options).add(found, ids)

    passed = seconds_of(cluster)
    measurements, snapshots = occurrences(timing_for(config), config.num_steps)
    batches = len(population) / len(batch)
    if config.mode == "exact":
        passes = 1 + sum({"SVRG": 2, "GC": 1, "GC-online": 1}.get(name, 0) for name in config.estimators)
        measurement = passes * batches * passed
    else:
        sets = 2 if config.mode == "reference" else 1
        draws = sets * sum(GRADIENTS.get(name, 1) for name in config.estimators) + (sets - 1)
        measurement = draws * config.num_draws * gradient
    snapshot = batches * (
        ("SVRG" in config.estimators) * gradient
        + ("GC" in config.estimators) * config.cluster_iterations * passed
    )
    one_run = config.num_steps * gradient + measurements * measurement + snapshots * snapshot
    held = config.num_draws if config.mode == "unbiased" else 16
    memory = BYTES * len(point.flat()) * (held + 10) + len(population) * batch.inputs[0].numel() * BYTES
    return Estimate(one_run * len(config.seeds) * len(config.learning_rates), memory)
