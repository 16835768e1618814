"""Every estimator by name, with the settings that the figures share; and the control of gradient clustering.

`GC-<K>` is gradient clustering with K clusters of its own. `GC-chance` deals the examples to the clusters
of the `GC` before it at random: strata of the same sizes, without what makes them alike.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np
import torch
from typing_extensions import override

from gdyn_common.errors import unknown
from gdyn_common.seeding import generator as seeded
from gdyn_common.seeding import named_seed
from variance.data import Population
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
from variance.estimators.clustered import Stratified
from variance.gradient_clustering import BatchClustering, ClusteringOptions, OnlineClustering
from variance.objective import Objective, Point


class ChanceStrata(Stratified):
    """Strata of the same sizes as those of another estimator, filled at random.

    Args:
        like: The estimator; its clusters are renewed first.
        seed: Seed of the permutations.
    """

    name = "GC-chance"
    is_derived = True

    def __init__(self, like: Stratified, seed: int) -> None:
        super().__init__(like.objective)
        self._like, self._seed = like, seed

    @override
    def on_infrequent(
        self, step: int, point: Point, population: Population, generator: torch.Generator | None = None
    ) -> None:
        if (found := self._like.assignment) is not None:
            order = seeded(self._seed, "chance", step).permutation(len(found))
            self.assignment = found[torch.from_numpy(np.asarray(order))]


def has_exact(name: str) -> bool:
    """Whether an estimator has an exact variance over a finite population."""
    return name.startswith(("SG-", "SVRG", "GC"))


def estimators_for(
    names: Sequence[str],
    objective: Objective,
    *,
    clusters: int,
    iterations: int,
    batch_size: int,
    seed: int,
    learning_rate: float = 0.02,
    kahan: bool = False,
) -> list[GradientEstimator]:
    """Return an estimator of its own for every name.

    Clusters are balanced after every mini-batch of `batch_size` examples: with larger ones a small population
    would be assigned almost without weights.

    Raises:
        ValueError: Unknown name, or `GC-chance` without `GC` before it.

    Example:
        >>> objective = Objective(torch.nn.Linear(2, 2), torch.nn.functional.cross_entropy)
        >>> sizes = {"clusters": 4, "iterations": 1, "batch_size": 8, "seed": 0}
        >>> [found.name for found in estimators_for(["SG-2B", "GC", "GC-2", "Adam"], objective, **sizes)]
        ['SG-2B', 'GC', 'GC-2', 'Adam']
    """
    options = ClusteringOptions(kahan=kahan, chunk=batch_size)
    own = named_seed(seed, "clusters")
    made: list[GradientEstimator] = []

    def clustered(count: int) -> GC:
        return GC(objective, BatchClustering(count, options, seed=own), iterations=iterations)

    def chance() -> GradientEstimator:
        for found in made:
            if found.name == GC.name and isinstance(found, GC):
                return ChanceStrata(found, seed)
        raise ValueError("GC-chance shuffles the clusters of GC; name GC before it.")

    known: dict[str, Callable[[], GradientEstimator]] = {
        "SG-B": lambda: SGB(objective),
        "SG-2B": lambda: SGB(objective, batch_factor=2),
        "SVRG": lambda: SVRG(objective),
        "GC": lambda: clustered(clusters),
        "GC-online": lambda: GCOnline(objective, OnlineClustering(clusters, seed=own)),
        "GC-chance": chance,
        "heavy-ball": lambda: HeavyBall(objective),
        "Nesterov": lambda: Nesterov(objective, learning_rate=learning_rate),
        "Adam": lambda: Adam(objective),
        "IGT": lambda: IGT(objective),
        "K-FAC": lambda: KFAC(objective, learning_rate=learning_rate, seed=named_seed(seed, "labels")),
        "EK-FAC": lambda: EKFAC(objective, learning_rate=learning_rate, seed=named_seed(seed, "labels")),
        "NTK": lambda: NTK(objective),
        "snapshot-average": lambda: SnapshotAverage(objective),
    }
    for name in names:
        if count := re.fullmatch(r"GC-(\d+)", name):
            made.append(clustered(int(count[1])))
            made[-1].name = name
        elif name in known:
            made.append(known[name]())
        else:
            raise ValueError(unknown("estimator", name, known))
    return made
