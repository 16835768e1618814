"""Gradient clustering as an estimator: stratified batches from batch or online clusters."""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from typing_extensions import override

from variance.data import Population
from variance.errors import ConfigError, NotReady, require_count, require_number
from variance.estimators.base import Direction, GradientEstimator
from variance.estimators.sg import passes
from variance.gradient_clustering import BatchClustering, OnlineClustering
from variance.gradient_clustering.centres import dense_sums, sums_by_cluster
from variance.gradient_clustering.initialisation import Initialisation
from variance.objective import Batch, Objective, Point, mean_point
from variance.per_example import quantities
from variance.per_example.capturing import Capture
from variance.sampling.index_samplers import IndexSampler, UniformSampler
from variance.sampling.stratified import StratifiedSampler, cluster_sizes
from variance.statistics import ExactStatistics, batch_mean_factor, from_moments


class Stratified(GradientEstimator):
    """Weighted gradients of batches drawn from clusters."""

    STATE: ClassVar[tuple[str, ...]] = ("assignment",)

    def __init__(self, objective: Objective, *, clamp: float | None = None, **sampler_options: Any) -> None:
        super().__init__(objective)
        if clamp is not None:
            require_number("clamp", clamp, above=0)
        self.clamp = clamp
        self.assignment: Int[Tensor, "n"] | None = None
        self._sampler_options = sampler_options

    @override
    def sampler(self, num_examples: int, generator: np.random.Generator) -> IndexSampler:
        """Return a stratified sampler, or a uniform one while there are no clusters."""
        if self.assignment is None:
            return UniformSampler(num_examples, generator)
        if len(self.assignment) != num_examples:
            raise ConfigError(
                f"{len(self.assignment)} examples were clustered but the data now hold {num_examples}; "
                "cluster again."
            )
        return StratifiedSampler(self.assignment, generator, **self._sampler_options)

    @override
    def direction(self, point: Point, batch: Batch, generator: torch.Generator | None = None) -> Direction:
        if self.assignment is None:
            raise NotReady(
                f"{self.name} has no clusters yet; on_infrequent makes them at the first snapshot."
            )
        gradient, loss = self.objective.gradient(point, batch, generator)
        return Direction(gradient if self.clamp is None else gradient.clamp(-self.clamp, self.clamp), loss)

    @override
    def exact(self, point: Point, population: Population, batch_size: int) -> ExactStatistics:
        """Return exact statistics of a batch of its sampler, see `StratifiedSampler.law`.

        Trace and noise scale are those of one example: what plain batches of this variance would be made of.
        """
        if self.assignment is None:
            raise NotReady(f"{self.name} has no clusters yet.")
        if self.clamp is not None:
            raise ConfigError(f"{self.name} with clamp has no exact variance; use mode='unbiased'.")
        sampler = StratifiedSampler(self.assignment, 0, **self._sampler_options)
        found = stratified_statistics(self.objective, point, population, sampler, batch_size)
        n = len(population)
        per_batch = batch_mean_factor(n, batch_size, replacement=batch_size >= n)
        per_example = {name: getattr(found, name) / per_batch for name in ("trace_cov", "noise_scale")}
        return replace(found, **per_example)

    def _capture_at(self, point: Point, population: Population, indices: Tensor) -> Capture:
        return self.objective.capture(point, population.fetch(indices), weights_only=True)


def stratified_statistics(
    objective: Objective,
    point: Point,
    population: Population,
    sampler: StratifiedSampler,
    count: int,
) -> ExactStatistics:
    """Return exact statistics of the weighted mean gradient of `count` draws of a sampler.

    With weights v_k = w_k / B, numbers n_k of draws and cluster means mu_k, a coordinate has the variance
    sum_k v_k^2 within_k (E_k[g^2] - mu_k^2) + sum_kl Cov(n_k, n_l) v_k mu_k v_l mu_l; the second term
    vanishes where every cluster is drawn equally often. Needs memory for one mean gradient per cluster;
    per-example gradients of linear layers are never formed.
    """
    n, assignment = len(population), sampler.assignment
    numbers, covariance, within = sampler.law(count)
    drawn, sizes = sampler.clusters, cluster_sizes(assignment).double()
    v = sampler.weights[drawn] / count
    spread = torch.zeros(len(sizes), dtype=torch.float64).index_copy_(0, drawn, v.square() * within)
    row_weights = (spread / sizes.clamp_min(1))[assignment]

    def moments(*, in_double: bool) -> tuple[Tensor, Tensor, torch.dtype]:
        sums: list[Tensor] = []
        second: Tensor = torch.zeros((), dtype=torch.float64)
        for indices in passes(n):
            found = objective.capture(point, population.fetch(indices))
            kind = found.losses.dtype
            found = quantities.in_double(found) if in_double else found
            second = second + quantities.weighted_second_moments(found, row_weights[indices]).double()
            parts = _sums_by_cluster(found, assignment[indices], len(sizes)).values()
            sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else [a.double() for a in parts]
        return torch.cat(sums, 1)[drawn] / sizes[drawn].unsqueeze(1), second, kind

    means, second, kind = moments(in_double=False)
    inside = second - spread[drawn] @ means.square()
    if quantities.cancels(float(inside.sum()), float(second.sum()), kind):
        means, second, kind = moments(in_double=True)
        inside = second - spread[drawn] @ means.square()
    weighted = v.unsqueeze(1) * means
    between = (weighted * (covariance @ weighted)).sum(0)
    return from_moments(numbers @ weighted, (inside + between).clamp_min(0), n, 1)


def _sums_by_cluster(found: Capture, ids: Int[Tensor, "n"], num_clusters: int) -> dict[str, Tensor]:
    """Return gradient sums by cluster, (K, *shape) by parameter in model order."""
    parts = {
        name: sums_by_cluster(value, ids, num_clusters) for name, value in quantities.small_gradients(found)
    }
    for name, layer in quantities.weight_layers(found):
        parts[name] = dense_sums(layer, ids, num_clusters).flatten(1)
    zero = found.losses.new_zeros(())
    return {name: parts.get(name, zero.expand(num_clusters, s.numel())) for name, s in found.shapes.items()}


class GC(Stratified):
    """Batch gradient clustering: clusters from passes over the population, then stratified sampling.

    Args:
        objective: The function whose gradient is estimated.
        clustering: The clustering loop (K, weighting, options, seed).
        iterations: Passes per snapshot.
        init: First centres of a snapshot. "data" starts anew the first time and continues from the previous
            centres afterwards.
        average_points: Cluster at the mean of the points of the last so many snapshots.
        clamp: Limit of every coordinate of the direction (biased).
        sampler_options: Passed to `StratifiedSampler`.
    """

    name = "GC"
    STATE = ("assignment", "clustering", "_points", "_distortion", "_num_splits")
    KINDS = (("_points", Point),)

    def __init__(
        self,
        objective: Objective,
        clustering: BatchClustering,
        *,
        iterations: int = 3,
        init: Initialisation = "data",
        average_points: int = 1,
        clamp: float | None = None,
        **sampler_options: Any,
    ) -> None:
        super().__init__(objective, clamp=clamp, **sampler_options)
        require_count("iterations", iterations)
        require_count("average_points", average_points)
        self.clustering, self.iterations, self.init = clustering, iterations, init
        self.average_points = average_points
        self._points: list[Point] = []
        self._distortion = float("nan")
        self._num_splits = 0

    @override
    def on_infrequent(
        self, step: int, point: Point, population: Population, generator: torch.Generator | None = None
    ) -> None:
        points = [*self._points, point.copy()]
        where = mean_point(points)
        self._points = points[1 - self.average_points :] if self.average_points > 1 else []
        found = self.clustering.fit(
            lambda indices: self._capture_at(where, population, indices),
            len(population),
            self.iterations,
            self.init,
        )
        self.assignment = found.assignment
        self._distortion = float(found.distortions[-1])
        self._num_splits += found.num_splits

    @override
    def info(self) -> dict[str, float]:
        if self.assignment is None:
            return {}
        sizes = cluster_sizes(self.assignment)
        return {
            f"{self.name.lower()}/distortion": self._distortion,
            f"{self.name.lower()}/reinits": float(self._num_splits),
            f"{self.name.lower()}/nonempty": float((sizes > 0).sum()),
            f"{self.name.lower()}/largest": float(sizes.max()),
        }


class GCOnline(Stratified):
    """Online gradient clustering: centres follow the stream, an infrequent pass assigns the population.

    Args:
        objective: The function whose gradient is estimated.
        clustering: The online centres.
        chunk: Examples per pass when the population is assigned.
        sampler_options: Passed to `StratifiedSampler`.
    """

    name = "GC-online"
    STATE = ("assignment", "clustering")

    def __init__(
        self, objective: Objective, clustering: OnlineClustering, *, chunk: int = 128, **sampler_options: Any
    ) -> None:
        super().__init__(objective, **sampler_options)
        require_count("chunk", chunk)
        self.clustering, self.chunk = clustering, chunk

    @override
    def on_frequent(
        self, step: int, point: Point, batch: Batch, generator: torch.Generator | None = None
    ) -> None:
        self.clustering.update(self.objective.capture(point, batch, weights_only=True))

    @override
    def on_infrequent(
        self, step: int, point: Point, population: Population, generator: torch.Generator | None = None
    ) -> None:
        if self.clustering.centres is None:
            return
        found = [
            self.clustering.assign(self._capture_at(point, population, indices))
            for indices in torch.arange(len(population)).split(self.chunk)
        ]
        self.assignment = torch.cat(found)

    @override
    def info(self) -> dict[str, float]:
        return {
            "gc-online/distortion": float(self.clustering.distortions.sum()),
            "gc-online/reinits": float(self.clustering.num_reinits),
            "gc-online/largest": float(self.clustering.sizes.max()),
        }
